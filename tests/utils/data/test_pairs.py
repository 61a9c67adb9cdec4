"""Lists and the files they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.data.pairs import find_pairs, read_list
from utils.data.tasks import TASKS
from utils.runtime.errors import UserError


def make(root: Path, listed: str, files: dict[str, list[str]], task: str = "IVF", dataset: str = "Set") -> None:
    base = root / "Image" / task / dataset
    for folder, names in files.items():
        (base / folder).mkdir(parents=True)
        for name in names:
            (base / folder / name).write_bytes(b"")
    (base / "train.txt").write_bytes(listed.encode())


@pytest.mark.parametrize("task", list(TASKS))
def test_pairs_come_in_the_order_of_the_list(tmp_path, task):
    a, b = TASKS[task].folders
    make(tmp_path, "2.png\n10.png\n1.png\n", {a: ["1.png", "2.png", "10.png"], b: ["1.png", "2.png", "10.png"]}, task)
    pairs = find_pairs(tmp_path, task, "Set", "train")
    assert [pair.name for pair in pairs] == ["2", "10", "1"]
    assert pairs[0].image_b == tmp_path / "Image" / task / "Set" / b / "2.png"
    assert pairs[0].text == tmp_path / "Text" / task / "Set" / "2.txt"
    assert pairs[0].feature == tmp_path / "TextFeature" / task / "Set" / "2.npy"


def test_images_are_found_whichever_suffix_the_list_names(tmp_path):
    names = ["a.jpg", "b.c d.TIF", "图.bmp", "e.jpeg"]
    make(tmp_path, "a.png\nb.c d.png\n图.jpg\ne\n", {"IR": names, "VI": names})
    found = [pair.image_a.name for pair in find_pairs(tmp_path, "IVF", "Set", "train")]
    assert found == names


def test_the_named_file_wins_and_a_choice_is_an_error(tmp_path):
    make(tmp_path, "a.png\n", {"IR": ["a.png", "a.jpg"], "VI": ["a.bmp", "a.jpg"]})
    with pytest.raises(UserError, match=r"VI/a.png: .*a.bmp, a.jpg"):
        find_pairs(tmp_path, "IVF", "Set", "train")


def test_lists_of_other_editors_are_read(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbf1.png\r\n\r\n 2.png \r\n")
    assert read_list(path) == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "the list is empty"),
        (b"1.png\n1.jpg\n", "duplicate name '1.jpg'"),
        (b"../1.png\n", "leads out"),
        (b"/etc/1.png\n", "leads out"),
        (b"..\n", "leads out"),
        (b"1\0.png\n", "leads out"),
        (b"\xff\xfe1\x00", "UTF-8"),
    ],
)
def test_wrong_lists_are_named(tmp_path, content, message):
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"train.txt: .*{message}"):
        read_list(tmp_path / "train.txt")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"Set/IR: no such folder"):
        find_pairs(tmp_path, "IVF", "Set", "train")
    make(tmp_path, "1.png\n", {"IR": ["1.png"], "VI": []})
    with pytest.raises(UserError, match=r"VI/1.png: no such image"):
        find_pairs(tmp_path, "IVF", "Set", "train")
    with pytest.raises(UserError, match=r"test.txt: no such list"):
        find_pairs(tmp_path, "IVF", "Set", "test")


@pytest.mark.parametrize("link", ["Image/IVF/Set/VI/1.png", "Text/IVF/Set/1.txt", "TextFeature/IVF/Set/1.npy"])
def test_a_link_out_of_the_data_is_refused(tmp_path, link):
    root = tmp_path / "VLF"
    make(root, "1.png\n", {"IR": ["1.png"], "VI": ["1.png"]})
    (tmp_path / "secret").write_text("secret")
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).unlink(missing_ok=True)
    (root / link).symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=f"{link}: is a link that leads out of its folder"):
        find_pairs(root, "IVF", "Set", "train")
