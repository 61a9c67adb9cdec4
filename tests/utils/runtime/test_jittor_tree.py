"""The patched copy of Jittor: what is changed, when, and by several processes at the same time."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from utils.runtime import jittor_tree
from utils.runtime.errors import UserError
from utils.runtime.jittor_tree import PATCH, Change, applies, patched_copy, prefer_patched, read_patch

INSTALLED = Path(importlib.metadata.distribution("jittor").locate_file(""))


@pytest.fixture
def installed(tmp_path) -> Path:
    """A Jittor of three files."""
    folder = tmp_path / "site-packages"
    for name, text in {
        "jittor/a.h": "one\ntwo\nthree\n",
        "jittor/test/t.py": "",
        "jittor_utils/__init__.py": "u\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def patch_for(installed: Path) -> str:
    digest = hashlib.sha256((installed / "jittor/a.h").read_bytes()).hexdigest()
    return f"Why.\n\n--- jittor/a.h\tsha256:{digest}\n+++ jittor/a.h\n@@ -1,2 +1,3 @@\n one\n-two\n+2\n+2.5\n"


def test_a_patch_is_read_by_file_and_hunk():
    first = "--- a/b.h\tsha256:12\n+++ a/b.h\n@@ -1,2 +1,2 @@\n x\n-y\n+z\n@@ -9 +9 @@\n-p\n+q\n\n"
    text = "Why.\n" + first + "--- c\tsha256:3\n+++ c\n@@\n+n\n"
    assert read_patch(text) == {
        "a/b.h": Change("12", [("x\ny\n", "x\nz\n"), ("p\n", "q\n")]),
        "c": Change("3", [("", "n\n")]),
    }


@pytest.mark.skipif(importlib.metadata.version("jittor") != "1.3.11.0", reason="the patch is for Jittor 1.3.11.0")
def test_the_patch_fits_the_jittor_that_is_installed():
    changes = read_patch(PATCH.read_text())
    assert applies(changes, INSTALLED)
    for name, change in changes.items():
        text = (INSTALLED / name).read_text()
        assert [text.count(old) for old, _ in change.hunks] == [1] * len(change.hunks), name


def test_the_copy_is_changed_and_the_original_is_not(installed, tmp_path):
    tree = patched_copy(installed, read_patch(patch_for(installed)), tmp_path / "cache")
    assert (tree / "jittor/a.h").read_text() == "one\n2\n2.5\nthree\n"
    assert (installed / "jittor/a.h").read_text() == "one\ntwo\nthree\n"
    assert sorted(str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_file()) == [
        "jittor/a.h",
        "jittor_utils/__init__.py",
    ]


def test_a_jittor_that_was_edited_gets_a_copy_of_its_own(installed, tmp_path):
    changes = read_patch(patch_for(installed))
    first = patched_copy(installed, changes, tmp_path / "cache")
    (installed / "jittor_utils/__init__.py").write_text("edited\n")
    second = patched_copy(installed, changes, tmp_path / "cache")
    assert first != second
    assert (second / "jittor_utils/__init__.py").read_text() == "edited\n"


def test_another_jittor_is_used_as_it_is(installed, tmp_path, monkeypatch):
    patch = tmp_path / "p.patch"
    patch.write_text(patch_for(installed))
    (installed / "jittor/a.h").write_text("one\n2\nthree\n")
    (installed / "jittor/__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(installed)])
    assert prefer_patched(patch) is None
    assert sys.path == [str(installed)]


def test_processes_that_start_together_share_one_complete_copy(installed, tmp_path):
    changes = read_patch(patch_for(installed))
    with ProcessPoolExecutor(4) as pool:
        trees = set(pool.map(patched_copy, [installed] * 8, [changes] * 8, [tmp_path / "cache"] * 8))
    assert [tmp_path / "cache" / tree for tree in (tmp_path / "cache").iterdir()] == list(trees)


def test_a_cache_that_cannot_be_written_is_one_line(installed, tmp_path, monkeypatch):
    patch = tmp_path / "p.patch"
    patch.write_text(patch_for(installed))
    (installed / "jittor/__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(installed)])
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match=r"film: cannot be written \(Not a directory\);.* JITTOR_HOME=DIR puts"):
        prefer_patched(patch)


def test_a_cache_is_tried_before_jittor_starts(tmp_path, monkeypatch):
    """Jittor locks a file there at every start, also if everything is compiled."""
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "new"))
    jittor_tree.require_cache()
    assert list((tmp_path / "new").rglob("*")) == [tmp_path / "new" / ".cache", tmp_path / "new/.cache/jittor"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file/.cache/jittor: cannot be written \(.*\);.* JITTOR_HOME=DIR puts"):
        jittor_tree.require_cache()


def test_this_process_uses_the_copy():
    from utils.runtime.jittor_env import jt

    if applies(read_patch(PATCH.read_text()), INSTALLED):
        assert Path(jt.__file__).parents[2].name == "film"
    assert jittor_tree.PACKAGES == ("jittor", "jittor_utils")


def test_jittor_home_is_found_without_jittor(tmp_path, monkeypatch):
    """$JITTOR_HOME, else what Jittor noted at a start that had it, else the home; a damaged note counts as none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JITTOR_HOME", raising=False)
    assert jittor_tree.jittor_home() == tmp_path
    note = tmp_path / ".cache" / "jittor" / "config.json"
    note.parent.mkdir(parents=True)
    note.write_text('{"JITTOR_HOME": "/elsewhere"}')
    assert jittor_tree.jittor_home() == Path("/elsewhere")
    for text in ("{", "[]", "{}", '{"JITTOR_HOME": null}'):
        note.write_text(text)
        assert jittor_tree.jittor_home() == tmp_path
    monkeypatch.setenv("JITTOR_HOME", "/mine")
    assert jittor_tree.jittor_home() == Path("/mine")
