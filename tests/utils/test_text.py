from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from utils.datasets import Pair
from utils.errors import UserError
from utils.text import FEATURE_SHAPE, FeatureFiles


def pair(path: Path) -> Pair:
    return Pair("x", path, path, path, path)


def test_a_feature_is_read_as_it_is(tmp_path):
    feature = np.random.default_rng(0).standard_normal(FEATURE_SHAPE).astype(np.float32)
    np.save(tmp_path / "x.npy", feature)
    read = FeatureFiles().feature(pair(tmp_path / "x.npy"))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, feature)


@pytest.mark.parametrize(
    "content",
    [
        np.zeros((149, 768), np.float32),
        np.zeros((1, 148, 768), np.float32),
        np.zeros(FEATURE_SHAPE, np.int64),
        np.full(FEATURE_SHAPE, np.nan, np.float32),
        np.array([{"a": 1}], dtype=object),
    ],
)
def test_wrong_features_are_named_with_what_was_expected(tmp_path, content):
    np.save(tmp_path / "x.npy", content, allow_pickle=True)
    with pytest.raises(UserError, match=r"x.npy: .*\(1, 149, 768\)"):
        FeatureFiles().feature(pair(tmp_path / "x.npy"))


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY\x01\x00garbage", b"text", b"PK\x03\x04text"])
def test_missing_and_damaged_files_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"x.npy: .*\(1, 149, 768\)"):
        FeatureFiles().feature(pair(tmp_path / "x.npy"))
