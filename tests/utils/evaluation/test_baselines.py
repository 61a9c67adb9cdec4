"""The simple methods that results are compared with."""

from __future__ import annotations

import numpy as np
import pytest

from tools.evaluate import main
from utils.evaluation.baselines import BASELINES, laplacian_pyramid, maximum, mean


def test_mean_and_maximum_are_stretched():
    a, b = np.array([[0, 10], [20, 40]], np.float32), np.array([[0, 30], [0, 0]], np.float32)
    # means 0 20 10 20, stretched by 255 / 20; maxima 0 30 20 40, by 255 / 40; truncated
    assert mean(a, b).tolist() == [[0, 255], [127, 255]]
    assert maximum(a, b).tolist() == [[0, 191], [127, 255]]


@pytest.mark.parametrize("shape", [(64, 80), (45, 61), (1, 7)])
def test_a_laplacian_pyramid_of_one_image_is_that_image(shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    image.flat[:2] = 0, 255  # so that the stretch changes nothing; truncation may take one level
    assert np.abs(laplacian_pyramid(image, image).astype(int) - image).max() <= 1


def test_a_laplacian_pyramid_takes_the_details_of_both():
    # a constant brightness with a bright dot in A and a dark one in B
    a, b = np.full((64, 64), 100, np.float32), np.full((64, 64), 100, np.float32)
    a[20, 20], b[40, 40] = 200, 20
    fused = laplacian_pyramid(a, b).astype(int)
    background = np.median(fused)
    assert fused[20, 20] > background + 50
    assert fused[40, 40] < background - 50


def test_they_reproduce_known_figures(shared, capsys):
    """Measured when the task was set, on RoadScene's 50 test pairs (EN, SD, SF, AG, VIFF, Qabf)."""
    data = shared / "data" / "RoadScene"
    folders = ["--dir_a", data / "cropinfrared", "--dir_b", data / "crop_LR_visible", "--list", data / "test.txt"]
    main([*map(str, folders), "--baselines"])
    table = capsys.readouterr().out.splitlines()
    expected = {
        "mean": "6.95 36.86 9.80 3.74 0.62 0.48",
        "maximum": "7.03 61.14 16.37 5.74 0.97 0.58",
        "Laplacian pyramid": "7.33 49.73 15.42 5.77 0.71 0.57",
    }
    assert list(expected) == list(BASELINES)
    for line, (name, values) in zip(table[3:6], expected.items(), strict=True):
        assert line.split() == [*name.split(), *values.split()]
