"""Stacks: which images belong to one, in which order they are fused, and what is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.data.images import write_png
from utils.evaluation.stacks import find_stacks, fold
from utils.runtime.errors import UserError


def write(folder: Path, **levels: int) -> list[Path]:
    """Images with a ramp that starts at these gray levels."""
    paths = []
    for name, level in levels.items():
        paths.append(folder / f"{name}.png")
        write_png(paths[-1], ramp(level))
    return paths


def ramp(level: int, size: tuple[int, int] = (4, 5)) -> np.ndarray:
    return (level + np.arange(size[0] * size[1])).reshape(size).astype(np.uint8)


def mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a + b) / 2


def test_the_result_is_fused_with_the_next_image():
    """((8 + 4) / 2 + 2) / 2 = 4."""
    assert fold([np.float32(8), np.float32(4), np.float32(2)], mean) == 4


def test_mff_keeps_the_order_and_mef_starts_with_the_brightest(tmp_path):
    paths = write(tmp_path, a=20, b=90, c=50)
    for task, order in (("MFF", [20, 90, 50]), ("MEF", [90, 50, 20])):
        (stack,) = find_stacks(paths, None, task)
        assert [int(image[0, 0, 0]) for image in stack.read()] == order
    assert find_stacks(paths[:2], None, "IVF") == []


def test_one_stretch_at_the_end_and_colour(tmp_path):
    """The mean of three ramps is a ramp of 20 steps: k / 19 * 255, truncated."""
    (stack,) = find_stacks(write(tmp_path, a=20, b=90, c=50), tmp_path / "o.png", "MFF")
    assert stack.write(mean, color=True) == [tmp_path / "o.png", tmp_path / "o_RGB.png"]
    gray = cv2.imread(str(tmp_path / "o.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(gray.ravel().astype(int), np.arange(20) / 19 * 255, atol=1.001)
    assert (gray[0, 0], gray[-1, -1]) == (0, 255)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "o_RGB.png")), np.dstack([gray] * 3))


def test_folders_and_tiff_pages(tmp_path):
    for name in ("day", "night", "__MACOSX"):
        (tmp_path / "all" / name).mkdir(parents=True)
        write(tmp_path / "all" / name, b=1, a=2, c=3)
    stacks = find_stacks([tmp_path / "all"], tmp_path / "out", "MFF")
    assert [stack.gray for stack in stacks] == [tmp_path / "out/Gray/day.png", tmp_path / "out/Gray/night.png"]
    assert [path.name for path in stacks[0].paths] == ["a.png", "b.png", "c.png"]
    (one,) = find_stacks([tmp_path / "all/day"], tmp_path / "o.png", "MFF")
    assert one.paths == stacks[0].paths

    pages = [ramp(level) for level in (7, 3, 5)]
    (tmp_path / "x.tif").write_bytes(cv2.imencodemulti(".tif", pages)[1].tobytes())
    (tiff,) = find_stacks([tmp_path / "x.tif"], tmp_path / "o.png", "MFF")
    assert [int(image[0, 0, 0]) for image in tiff.read()] == [7, 3, 5]


def test_what_is_refused(tmp_path):
    a, b, c = write(tmp_path, a=20, b=90, c=50)
    (tmp_path / "signed.tif").write_bytes(cv2.imencode(".tif", ramp(0).astype(np.int16))[1].tobytes())
    write_png(tmp_path / "large.png", ramp(0, (6, 6)))
    (tmp_path / "one.tif").write_bytes(cv2.imencode(".tif", ramp(0))[1].tobytes())
    (tmp_path / "empty").mkdir()
    for given, out, task, message in (
        ([tmp_path / "empty"], None, "MEF", "empty: holds no images"),
        ([a, b, c], None, "IVF", "are a stack: --task MEF or MFF"),
        ([a], None, "MEF", "a.png: is one image"),
        ([a, b, tmp_path / "empty"], None, "MEF", "empty: is a folder; expected images"),
        ([a, b, c], tmp_path / "o.jpg", "MEF", "expected the name of a .png file"),
    ):
        with pytest.raises(UserError, match=message):
            find_stacks(given, out, task)
    for given, message in (
        ([a, b, tmp_path / "large.png"], "different sizes"),
        ([a, b, tmp_path / "signed.tif"], "signed.tif: stacks need 8 bits"),
        ([tmp_path / "one.tif"], "one page"),
    ):
        with pytest.raises(UserError, match=message):
            find_stacks(given, tmp_path / "o.png", "MEF")[0].read()
    assert not (tmp_path / "o.png").exists()
