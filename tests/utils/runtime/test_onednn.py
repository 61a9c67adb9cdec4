"""The links to oneDNN in a home of Jittor."""

from __future__ import annotations

import pytest

from utils.runtime import onednn

needs_wheels = pytest.mark.skipif(
    onednn.file_of("onednn-cpu-gomp", "libdnnl.so.2") is None, reason="no oneDNN wheels for this platform"
)


@needs_wheels
def test_links_are_made_where_jittor_looks(tmp_path):
    onednn.link(tmp_path)
    folder = tmp_path / ".cache" / "jittor" / "mkl" / "dnnl_lnx_2.2.0_cpu_gomp"
    assert all((folder / name).exists() for name in onednn.PARTS)
    assert (folder / "include" / "dnnl.hpp").is_file()
    assert sorted(p.name for p in folder.rglob(".link*")) == []


@needs_wheels
def test_a_good_set_up_is_left_alone_and_a_stale_link_mended(tmp_path):
    library = tmp_path / onednn.FOLDER / "lib" / "libmkldnn.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"somebody's own")
    stale = library.with_name("libdnnl.so.2")
    stale.symlink_to(tmp_path / "deleted" / "libdnnl.so.2")
    onednn.link(tmp_path)
    assert library.read_bytes() == b"somebody's own"
    assert stale.exists()


def test_without_the_wheels_nothing_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(onednn, "file_of", lambda package, name: None)
    onednn.link(tmp_path)
    assert not (tmp_path / onednn.FOLDER).exists()
