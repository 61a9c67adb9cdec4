from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from net.shapes import TEXT_SHAPE
from utils.data.pairs import Pair
from utils.runtime.errors import UserError
from utils.text.features import FeatureFiles, read_paragraph


def pair(path: Path) -> Pair:
    return Pair("x", path, path, path, path)


def test_a_feature_is_read_without_its_leading_axis(tmp_path):
    feature = np.random.default_rng(0).standard_normal((1, *TEXT_SHAPE)).astype(np.float32)
    np.save(tmp_path / "x.npy", feature)
    read = FeatureFiles().feature(pair(tmp_path / "x.npy"))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, feature[0])


@pytest.mark.parametrize(
    "content",
    [
        np.zeros((149, 768), np.float32),
        np.zeros((1, 148, 768), np.float32),
        np.zeros((1, *TEXT_SHAPE), np.int64),
        np.full((1, *TEXT_SHAPE), np.nan, np.float32),
        np.array([{"a": 1}], dtype=object),
    ],
)
def test_wrong_features_are_named_with_what_was_expected(tmp_path, content):
    np.save(tmp_path / "x.npy", content, allow_pickle=True)
    with pytest.raises(UserError, match=r"x.npy: .*\(1, 149, 768\)"):
        FeatureFiles().feature(pair(tmp_path / "x.npy"))


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY\x01\x00garbage", b"text"])
def test_missing_and_damaged_files_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"x.npy: .*\(1, 149, 768\)"):
        FeatureFiles().feature(pair(tmp_path / "x.npy"))


def test_missing_features_show_before_the_first_is_read(tmp_path):
    pairs = [pair(tmp_path / f"{name}.npy") for name in "abc"]
    (tmp_path / "a.npy").touch()
    with pytest.raises(UserError, match=r"b.npy: no such text feature, 2 of 3 are missing; .*--text_encoder bert"):
        FeatureFiles().prepare(pairs)
    assert "1 ready" in FeatureFiles().prepare(pairs[:1])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"A man.\n", "A man."),
        (b"\xef\xbb\xbf\r\n A man.\r\n", "A man."),
        (b"A man.\nA dog.", "A man.\nA dog."),
        ("Ein Mann, 一个人".encode(), "Ein Mann, 一个人"),
    ],
)
def test_a_paragraph_is_read_without_what_editors_put_around_it(tmp_path, content, text):
    (tmp_path / "x.txt").write_bytes(content)
    assert read_paragraph(tmp_path / "x.txt") == text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such text; .*--caption"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n\t", "is empty"),
        (b"A caf\xe9.", r"is not UTF-8 \(byte 6\)"),
        ("A man.".encode("utf-16"), r"is not UTF-8 \(byte 1\)"),
    ],
)
def test_bad_paragraphs_are_named(tmp_path, content, problem):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"x.txt: {problem}"):
        read_paragraph(tmp_path / "x.txt")


def test_a_folder_in_place_of_a_paragraph_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_paragraph(tmp_path)
