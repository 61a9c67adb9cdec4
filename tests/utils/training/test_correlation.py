"""The correlation of the fused images with max(A, B), with A and with B."""

from __future__ import annotations

import math

import numpy as np
import pytest

from utils.runtime.errors import UserError
from utils.training.correlation import (
    Correlation,
    EpochCorrelation,
    correlate,
    read_correlations,
    write_correlations,
)

RNG = np.random.default_rng(0)
A, B = RNG.random((2, 1, 1, 12, 16), np.float32)  # batches of one image


def test_known_values():
    # by hand: deviations (-1, 0, 1) and (1, -2, 1): products sum to 0; with itself 1; with its negative -1
    x, y = np.array([[0.0, 1, 2]]), np.array([[3.0, 0, 3]])
    assert correlate(x, x, y) == pytest.approx((0, 1, 0))  # max is y
    assert correlate(-x, x, y).corr_a == pytest.approx(-1)
    # scale and offset do not matter
    assert correlate(7 * x + 3, x, x) == pytest.approx((1, 1, 1))
    # (0, 1, 2) and (0, 0, 1): deviations (-1, 0, 1), (-1/3, -1/3, 2/3): 1 / sqrt(2 * 6/9)
    assert correlate(np.array([[0.0, 0, 1]]), x, x).corr_max == pytest.approx(1 / math.sqrt(2 * 6 / 9))


def test_a_constant_image_has_none():
    for constant in (1.0, 0.3):  # the mean of many 0.3 is not exactly 0.3
        assert all(math.isnan(value) for value in correlate(np.full((12, 16), constant), A[0, 0], A[0, 0]))
    epoch = EpochCorrelation()
    epoch.add(np.ones_like(A), A, B)
    epoch.add(A, A, A)
    assert epoch.mean().tolist() == [0.5, 0.5, 0.5]
    assert EpochCorrelation().mean().tolist() == [0, 0, 0]


def test_a_warning_for_each_trap():
    best = np.maximum(A, B)
    assert correlate(best, A, B).warning() is None
    assert "are inverted (correlation -1.00" in correlate(1 - best, A, B).warning()
    assert "hardly follow max(A, B) (correlation 0.48)" in Correlation(0.48, 0.6, 0.1).warning()
    assert "nearly copies of B (correlation 0.96)" in Correlation(0.95, 0.3, 0.96).warning()
    # the copied infrared images of docs/training.md
    assert "nearly copies of A (correlation 0.99)" in Correlation(0.48, 0.99, -0.07).warning()
    # a Laplacian pyramid on Lytro's focus pairs, whose sources are nearly equal
    assert Correlation(0.973, 0.969, 0.977).warning() is None
    # where A is the brighter image everywhere, A is the target
    assert correlate(A, A, A - 1).warning() is None
    assert Correlation(math.nan, 0, 0).warning()
    # the values of a good training
    assert Correlation(0.97, 0.7, 0.45).warning() is None


def test_the_file_of_a_run(tmp_path):
    path = tmp_path / "correlation.csv"
    assert read_correlations(path) == {}
    rows = {1: Correlation(0.5, 0.25, -1.0), 2: Correlation(0.75, 0.125, 1.0)}
    write_correlations(path, rows)
    assert read_correlations(path) == rows
    assert path.read_text().splitlines()[:2] == ["epoch,corr_max,corr_a,corr_b", "1,0.500000,0.250000,-1.000000"]
    path.write_text("epoch,corr_max\n1,0.5\n")
    with pytest.raises(UserError, match=r"correlation\.csv: is damaged; delete it"):
        read_correlations(path)
