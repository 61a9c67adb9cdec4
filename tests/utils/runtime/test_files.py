from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from utils.data.pairs import ImageFolder
from utils.runtime import files
from utils.runtime.errors import UserError
from utils.runtime.files import (
    atomic_path,
    is_leftover,
    remove_leftovers,
    require_inside,
    require_plain_name,
    require_separate,
    require_writable,
)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x.txt: cannot be written"), atomic_path(tmp_path / "file" / "x.txt"):
        pass


def test_a_full_disk_is_one_line_and_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_text("one")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as caught, atomic_path(path) as temporary:
        temporary.write_text("two")
    assert str(caught.value) == (
        f"{path}: cannot be written (No space left on device); free some space there, then run it again"
    )
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x.txt", "one")]


def test_file_and_folder_reach_the_disk_around_the_rename(tmp_path, monkeypatch):
    """Flushed before the rename, or a crash leaves an empty file; the folder after it, or the name may be lost."""
    seen = []
    fsync = os.fsync

    def spy(handle):
        seen.append((str(Path(f"/proc/self/fd/{handle}").readlink()), (tmp_path / "x.txt").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    with atomic_path(tmp_path / "x.txt") as temporary:
        temporary.write_text("one")
    assert seen == [(str(temporary), False), (str(tmp_path), True)]


def test_what_a_killed_process_left_is_no_data_and_goes(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.png") as temporary:
        left = tmp_path / temporary.name.replace("a.", "b.")
        left.write_bytes(b"half")
        raise RuntimeError
    for name in ("a.png", ".hidden.png", "c.tmp.png"):
        (tmp_path / name).write_bytes(b"")
    assert is_leftover(left.name)
    assert set(ImageFolder(tmp_path).files) == {"a", "c.tmp"}
    remove_leftovers(tmp_path)
    assert left.exists(), "it may be at work still"
    os.utime(left, (time.time() - 7200,) * 2)
    remove_leftovers(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".hidden.png", "a.png", "c.tmp.png"]


def test_a_long_name_in_three_byte_letters_can_be_written(tmp_path):
    path = tmp_path / ("\u56fe" * 80 + ".txt")  # 244 bytes; a name may have 255
    with atomic_path(path) as temporary:
        temporary.write_text("one")
    assert path.read_text() == "one"


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "/etc/x", "a/b", "a/../../x"])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(UserError, match=r"^list.txt: .* leads out of its folder"):
        require_plain_name(name, "list.txt")


@pytest.mark.parametrize("name", ["x\0.png", "x\n.png", "\udcff"])
def test_names_that_cannot_be_listed_are_refused(name):
    with pytest.raises(UserError, match=r"^list.txt: .* holds a control character, or a byte that is not UTF-8"):
        require_plain_name(name, "list.txt")


@pytest.mark.parametrize("name", ["1.png", "..a", "a..b", "红外 1.5", "x y", "-x", "~x", "é\u200d"])
def test_all_other_names_do(name):
    require_plain_name(name, "list.txt")


def test_a_link_may_not_lead_out_but_its_folder_may_be_one(tmp_path):
    store, folder = tmp_path / "store", tmp_path / "data"
    for path in (store, folder):
        path.mkdir()
        (path / "x.png").write_text("")
    (folder / "inside.png").symlink_to("x.png")
    (folder / "outside.png").symlink_to(store / "x.png")
    (folder / "nowhere.png").symlink_to("../gone.png")
    (folder / "linked").symlink_to(store)
    for name in ("x.png", "inside.png", "linked/x.png", "new.png"):
        assert require_inside(folder / name, folder) == folder / name
    for name in ("outside.png", "nowhere.png"):
        with pytest.raises(UserError, match=rf"{name}: is a link that leads out"):
            require_inside(folder / name, folder)


def test_a_file_is_written_in_place_of_a_link_not_through_it(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "x.txt").symlink_to("precious")
    with atomic_path(tmp_path / "x.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "x.txt").read_text() == "new"


def link_to(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def test_an_output_may_not_be_an_input_under_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "x.png"
    source.write_text("precious")
    (tmp_path / "hard.png").hardlink_to(source)
    outputs = (
        source,
        Path("in/x.png"),
        Path("./in/../in/x.png"),
        link_to(tmp_path / "soft.png", source),
        link_to(tmp_path / "folder", source.parent) / "x.png",
        tmp_path / "hard.png",
    )
    for output in outputs:
        with pytest.raises(UserError, match=rf"^{output}: would overwrite an input"):
            require_separate([tmp_path / "new.png", output], [tmp_path / "gone.png", source])
    require_separate([tmp_path / "in" / "y.png", tmp_path / "hard" / "x.png"], [source, Path("x\0")])
    assert source.read_text() == "precious"


def test_two_outputs_may_not_be_one_file(tmp_path, monkeypatch):
    link_to(tmp_path / "b.png", tmp_path / "a.png")
    for other in (tmp_path / "a.png", tmp_path / "c" / ".." / "a.png", tmp_path / "b.png"):
        with pytest.raises(UserError, match="the same file as another output"):
            require_separate([tmp_path / "a.png", other], [])
    upper, lower = tmp_path / "X" / "É.png", tmp_path / "x" / "e\u0301.png"
    require_separate([upper, lower], [])
    monkeypatch.setattr(files, "_ignores_case", lambda folder: True)  # as on FAT, or a Windows drive under WSL
    with pytest.raises(UserError, match="the same file as another output"):
        require_separate([upper, lower], [])


def test_whether_case_matters_is_seen_without_writing(tmp_path):
    folder = tmp_path / "Folder"
    folder.mkdir()
    assert not files._ignores_case(folder / "new")
    link_to(tmp_path / "fOLDER", folder)  # what a file system that ignores case answers to the other name
    assert files._ignores_case(folder)


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/x.txt", "/proc/x.txt", "/sys/x.txt", "/proc/self/fd/1"])
def test_a_file_of_the_system_is_no_output(path):
    """As root, /dev/stdout or /dev/null would become a file. Nothing is written here, whatever the result is."""
    with pytest.raises(UserError, match=rf"^{path}: (cannot be written|is no regular file)"):
        require_writable(Path(path))


def test_memory_is_a_place_for_outputs():
    require_writable(Path("/dev/shm/x.txt"))
