"""Lists and the files they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.data.bad_pairs import BadPairs, list_skipped
from utils.data.images import IMAGE_SUFFIXES, can_read
from utils.data.pairs import find_pairs, left_out, match_folders, read_list
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


# Entries that name a file in one of the folders IR and VI of Image/IVF/Set, and its name in the list
WITHIN = {
    "./a.png": "a.png",
    ".//a.png": "a.png",
    "ir/a.png": "ir/a.png",
    "./VI/a.png": "VI/a.png",
    "Set/IR/a.png": "Set/IR/a.png",
    "IR/../VI/a.png": "VI/a.png",
    ".\\IR\\a.png": "IR/a.png",
}


@pytest.mark.parametrize("entry", WITHIN)
def test_an_entry_may_come_with_its_folder(tmp_path, entry):
    make(tmp_path, f"b.png\n{entry}\n", {"IR": ["a.png", "b.png"], "VI": ["a.png", "b.png"]})
    assert read_list(tmp_path / "Image/IVF/Set/train.txt") == ["b.png", WITHIN[entry]]
    assert [pair.name for pair in find_pairs(tmp_path, "IVF", "Set", "train")] == ["b", "a"]


def test_both_images_of_a_pair_in_a_list_are_one_pair(tmp_path):
    make(tmp_path, "IR/a.png\nVI/a.png\n", {"IR": ["a.png"], "VI": ["a.png"]})
    assert [pair.name for pair in find_pairs(tmp_path, "IVF", "Set", "train")] == ["a"]
    make(tmp_path, "NEAR/a.png\n", {"IR": ["a.png"], "VI": ["a.png"]}, dataset="Other")
    with pytest.raises(UserError, match=r"train.txt: 'NEAR/a.png' is in none of the folders .*Other/IR, .*Other/VI$"):
        find_pairs(tmp_path, "IVF", "Other", "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "the list is empty"),
        (b"1.png\n1.jpg\n", "duplicate name '1.jpg'"),
        (b"../1.png\n", "leads out"),
        (b"/etc/1.png\n", "leads out"),
        (b"..\n", "leads out"),
        (b".\n", "leads out"),
        (b"ir/../../1.png\n", "leads out"),
        (b"..\\1.png\n", "leads out"),
        (b"./1.png\n1.png\n", "duplicate name '1.png'"),
        (b"ir/1.png\nir/1.jpg\n", "duplicate name 'ir/1.jpg'"),
        (b"1\0.png\n", "control character"),
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


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


NFC, NFD = "caf\u00e9", "cafe\u0301"  # é, and e with a combining accent, as macOS stores it


def test_names_match_in_any_unicode_form_and_hidden_files_are_no_images(tmp_path):
    a = touch(tmp_path / "a", f"{NFD}.png", "x.jpg", "._x.jpg", "._y.png", ".DS_Store", "notes.txt")
    b = touch(tmp_path / "b", f"{NFC}.jpg", "x.png", "._x.png", "._y.jpg")
    matches = match_folders(a, b, strict=True)
    assert matches.pairs == {
        NFD: (a / f"{NFD}.png", b / f"{NFC}.jpg"),
        "x": (a / "x.jpg", b / "x.png"),
    }
    assert matches.alone == []


def test_a_list_in_another_unicode_form_finds_image_text_and_feature(tmp_path):
    make(tmp_path, f"{NFC}.png\n", {"IR": [f"{NFD}.png"], "VI": [f"{NFC}.png"]})
    text = touch(tmp_path / "Text/IVF/Set", f"{NFD}.txt") / f"{NFD}.txt"
    (pair,) = find_pairs(tmp_path, "IVF", "Set", "train")
    assert (pair.image_a.name, pair.image_b.name, pair.text) == (f"{NFD}.png", f"{NFC}.png", text)
    (tmp_path / "list.txt").write_text(f"{NFC}.png\n{NFD}.png\n", encoding="utf-8")
    with pytest.raises(UserError, match="duplicate name"):
        read_list(tmp_path / "list.txt")


def test_images_without_a_partner_are_counted_named_and_refused_on_request(tmp_path):
    a = touch(tmp_path / "a", "both.png", "Case.PNG", "copy (1).png", "copy (2).png")
    b = touch(tmp_path / "b", "both.png", "case.png")
    matches = match_folders(a, b)
    assert list(matches.pairs) == ["both"]
    line = (
        f"4 images without a partner left out: {a}/Case.PNG (only the case differs from {b}/case.png), "
        f"{a}/copy (1).png, {a}/copy (2).png, ..."
    )
    assert left_out(matches.alone) == line
    with pytest.raises(UserError) as caught:
        match_folders(a, b, strict=True)
    assert str(caught.value) == f"--strict: {line}"


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([], "b holds no image$"),
        (["1.npy", "2.npy", "3.heic"], r"b holds no image, only other files: .npy \(2\), .heic \(1\)"),
        (["A.png"], r"a.png \(only the case differs from .*A.png\)"),
    ],
)
def test_why_nothing_matches(tmp_path, names, why):
    a, b = touch(tmp_path / "a", "a.png"), touch(tmp_path / "b", *names)
    with pytest.raises(UserError, match=f"no image has a partner of the same name in .*: .*{why}"):
        match_folders(a, b)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_kind_of_image_matches_also_those_that_opencv_may_not_read(tmp_path, suffix):
    a, b = touch(tmp_path / "a", f"1{suffix}"), touch(tmp_path / "b", f"1{suffix.upper()}")
    assert list(match_folders(a, b).pairs) == ["1"]


def test_beside_a_converted_file_the_original_does_not_count(tmp_path):
    if can_read("x.gif"):
        pytest.skip("this OpenCV reads GIF")
    a, b = touch(tmp_path / "a", "1.gif", "1.png"), touch(tmp_path / "b", "1.png")
    assert match_folders(a, b).pairs == {"1": (a / "1.png", b / "1.png")}


def test_bad_pairs_are_skipped_counted_and_listed(tmp_path):
    names = ["1.png", "2.png", "3.png"]
    make(tmp_path, "1.png\n2.png\n3.png\n", {"IR": names, "VI": names[:1] + names[2:]})
    bad = BadPairs(skip=True)
    assert [pair.name for pair in find_pairs(tmp_path, "IVF", "Set", "train", bad)] == ["1", "3"]
    path = tmp_path / "skipped.txt"
    assert list_skipped(path, bad.reasons) == f"skipped: 1 bad pairs, named above, listed in {path}"
    name, reason = path.read_text().strip().split("\t")
    assert name == "2"
    assert reason.startswith(f"{tmp_path}/Image/IVF/Set/VI/2.png: no such image")
    assert list_skipped(path, {}) == ""
    assert not path.exists()
    with pytest.raises(UserError, match="no good pair is left of 1"):
        bad.good([])
