"""What the soak reports, on invented processes; .ci/run runs the soak itself."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tools.soak import Sampled, changes, sample, write_pairs
from utils.data.h5 import H5Dataset


def process(memory: float = 0, files: float = 0, cost: float = 0) -> list[Sampled]:
    """100 samples, a unit each: 500 MiB, 20 files and a second of the processor a unit, and what they grow by in all.

    The first five are of a process that warms up: small, and slow.
    """
    samples = [Sampled(100, 5, 20.0 * i, i) for i in range(5)]
    seconds = 100.0
    for i in range(5, 100):
        seconds += 1 + cost * i / 100
        samples.append(Sampled(500 + memory * i / 100, 20 + round(files * i / 100), seconds, i))
    return samples


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        ({}, []),
        ({"memory": 10}, []),  # from the first third after the warm-up to the last: about 1 %
        ({"memory": 40}, ["train: memory grew by 4."]),
        ({"files": 3}, ["train: open files grew from 21 to 22"]),
        ({"cost": 1}, ["train: a unit costs 3"]),
        ({"memory": -100, "files": -3, "cost": -0.5}, []),
    ],
)
def test_growth_is_reported(growth, expected):
    found = changes(process(**growth), "train", 0.02)
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_a_file_that_is_open_for_a_moment_is_not_growth():
    samples = process()
    samples[60:] = [replace(s, files=s.files + s.done % 2) for s in samples[60:]]
    assert changes(samples, "train", 0.02) == []


def test_the_end_of_a_process_hides_no_growth():
    samples = process(files=3)
    samples[-2:] = [replace(s, files=3) for s in samples[-2:]]
    assert changes(samples, "train", 0.02) == ["train: open files grew from 21 to 22"]


@pytest.mark.parametrize("length", range(80, 120))
def test_units_longer_than_a_sample_cost_the_same_wherever_they_are_cut(length, capsys):
    # a quarter of a second a sample, five samples a unit
    samples = [Sampled(500, 20, i / 4, i // 5) for i in range(length)]
    assert changes(samples, "train", 0.02) == []
    assert "1.250 -> 1.250 processor seconds a unit" in capsys.readouterr().out


def test_a_process_is_sampled():
    before = sample(os.getpid(), 3)
    handle = os.open(os.devnull, os.O_RDONLY)
    after = sample(os.getpid(), 3)
    os.close(handle)
    assert after.files == before.files + 1
    assert after.done == 3
    assert after.memory > 10
    assert sample(2**22 + 1, 0) is None  # above the largest process number


def test_many_names_take_little_room(tmp_path):
    write_pairs(tmp_path / "x.h5", 300)
    with H5Dataset(tmp_path / "x.h5") as dataset:
        assert len(dataset) == 300
        assert (dataset[0].text == dataset[299].text).all()
    # one feature takes 458 KB
    assert (tmp_path / "x.h5").stat().st_size < 2**20
