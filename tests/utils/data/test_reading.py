"""The reader of pairs, and the options that ask for it."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from utils.data.images import write_png
from utils.data.pairs import Pair
from utils.data.reading import PairReader, add_reading_options, pair_reader
from utils.runtime.errors import UserError


@pytest.fixture
def pair(tmp_path) -> Pair:
    """A is 20x30, B is 40x60; both are gray ramps."""
    files = []
    for name, (height, width) in (("a", (20, 30)), ("b", (40, 60))):
        files.append(tmp_path / f"{name}.png")
        write_png(files[-1], np.tile(np.linspace(0, 255, width), (height, 1)).astype(np.uint8))
    return Pair("x", *files, Path(), Path())


def reader(pair: Pair, *options: str) -> PairReader:
    parser = argparse.ArgumentParser()
    add_reading_options(parser)
    return pair_reader(parser.parse_args(options), [pair], "IVF")


def test_a_pair_of_two_sizes_needs_resize(pair):
    with pytest.raises(UserError, match=r"20x30 and 40x60.*--resize"):
        reader(pair).gray(pair)
    a, b = reader(pair, "--resize").gray(pair)
    assert a.shape == b.shape == (40, 60)
    assert np.array_equal(b, np.tile(np.floor(np.linspace(0, 255, 60)), (40, 1)))


def test_percentiles_are_in_order(pair):
    with pytest.raises(UserError, match="the lower one first"):
        reader(pair, "--percentiles", "99", "1")
    with pytest.raises(SystemExit):
        reader(pair, "--percentiles", "-1", "101")


def test_without_registration_colours_are_read_as_they_are(pair):
    unmoved = reader(pair)
    assert unmoved.bgr_of(pair) == unmoved.images.bgr
    assert unmoved.report() == []


def test_a_pair_is_registered_after_it_has_one_size(pair):
    """The ramps have one gradient direction, so they fit."""
    registering = reader(pair, "--resize", "--register")
    a, b = registering.gray(pair)
    assert a.shape == b.shape
    assert registering.report()[0].startswith("registered: ")
