"""False colours: the gray values come back through every palette, and photographs are no palettes."""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import pytest

from utils.data.color import write_colored
from utils.data.images import ImageReader, read_gray, write_png
from utils.data.pairs import pair_of
from utils.data.palette import LUMA, OFF, PALETTES, colors, recognize, to_gray
from utils.data.reading import add_reading_options, pair_reader
from utils.data.tasks import TASKS


def thermal() -> np.ndarray:
    """A scene as a thermal camera sees it, uint8 (96, 128): a ramp, with warm and cold spots that have soft edges."""
    y, x = np.mgrid[:96, :128]
    scene = x * 1.2 + 40
    for row, column, radius, height in ((30, 40, 14, 90), (60, 90, 20, -80), (70, 30, 10, 60)):
        scene = scene + height * np.exp(-((y - row) ** 2 + (x - column) ** 2) / radius**2)
    return np.clip(np.round(scene), 0, 255).astype(np.uint8)


def drawn(gray: np.ndarray, palette: str) -> np.ndarray:
    return colors(palette)[gray].astype(np.uint8)


def as_jpeg(bgr: np.ndarray, quality: int = 95) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def photograph(seed: int) -> np.ndarray:
    """Surfaces of random colours under soft light: (96, 128, 3)."""
    rng = np.random.default_rng(seed)
    surfaces = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (128, 96), interpolation=cv2.INTER_NEAREST)
    light = cv2.resize(rng.uniform(0.4, 1, (3, 4)), (128, 96))[..., None]
    return np.round(cv2.GaussianBlur(surfaces * light, (0, 0), 1.5)).astype(np.uint8)


@pytest.mark.parametrize("palette", PALETTES)
def test_gray_values_come_back_through_every_palette(palette):
    ramp = np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32)
    for gray in (ramp, thermal()):
        found = to_gray(drawn(gray, palette), palette)
        assert found.dtype == np.float32
        assert np.abs(found - gray).max() <= 1
        error = np.abs(to_gray(as_jpeg(drawn(gray, palette)), palette) - gray)
        assert error.mean() <= 3


# Bone and pink are nearly gray: their images are read by their luma, like gray ones.
@pytest.mark.parametrize("palette", [name for name in PALETTES if name not in ("bone", "pink")])
@pytest.mark.parametrize("lossy", [False, True])
def test_every_palette_is_recognized(palette, lossy):
    bgr = drawn(thermal(), palette)
    assert recognize(as_jpeg(bgr) if lossy else bgr) == palette


def test_an_unknown_palette_is_recognized_by_its_curve():
    """An iron of another kind: black, purple, red, orange, yellow, white at equal distances."""
    stops = np.array([(0, 0, 0), (140, 0, 90), (60, 0, 200), (0, 120, 240), (60, 220, 250), (255, 255, 255)])
    bgr = np.stack([np.interp(thermal(), np.linspace(0, 255, len(stops)), column) for column in stops.T], 2)
    bgr = np.round(bgr).astype(np.uint8)
    for image in (bgr, as_jpeg(bgr)):
        assert recognize(image) == LUMA
    gray = to_gray(bgr, LUMA)
    assert np.array_equal(gray, np.round(cv2.cvtColor(bgr.astype(np.float32), cv2.COLOR_BGR2GRAY)))


@pytest.mark.parametrize("seed", range(5))
def test_photographs_and_gray_images_are_no_palettes(seed):
    assert recognize(photograph(seed)) is None
    assert recognize(photograph(seed) // 8) is None
    gray = np.repeat(photograph(seed)[..., :1], 3, axis=2)
    assert recognize(gray) is None
    assert recognize(as_jpeg(gray, 70)) is None


@pytest.mark.slow
def test_photographs_of_the_data_sets_are_no_palettes(shared):
    """Visible images, and MRI, CT, infrared ones, which are gray."""
    folders = ("MSRS/test/vi", "RoadScene/crop_LR_visible", "M3FD/Vis", "Lytro", "MEF/OVER", "MEF/UNDER")
    files = [path for folder in folders for path in sorted((shared / "data" / folder).glob("*.*"))]
    images = ((path, cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)) for path in files)
    assert [path.name for path, image in images if image is not None and recognize(image)] == []


def test_a_reader_takes_the_colours_of_thermal_images_only(tmp_path):
    """Not those of other files, such as the pseudo-coloured PET images of MIF, and none with `OFF`."""
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    for path in (a, b):
        write_png(path, drawn(thermal(), "inferno"))
    reader = ImageReader(thermal=[a])
    assert np.abs(reader.gray(a) - thermal()).max() <= 1
    assert (reader.bgr(a) == reader.bgr(a)[..., :1]).all()
    assert np.array_equal(reader.gray(b), read_gray(b))
    (line,) = reader.report()
    assert line.startswith("false colours in 1 images A")
    assert "a.png (inferno)" in line
    assert "--pseudocolor off" in line
    off = ImageReader(thermal=[a], pseudocolor=OFF)
    assert np.array_equal(off.gray(a), read_gray(a))
    assert off.report() == []


@pytest.mark.parametrize("task", TASKS)
def test_only_image_a_of_ivf_is_looked_at(tmp_path, task):
    """B of IVF may be coloured anyhow, and so may both images of the other tasks: PET is drawn in palettes."""
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    for path in (a, b):
        write_png(path, drawn(thermal(), "jet"))
    parser = argparse.ArgumentParser()
    add_reading_options(parser)
    pair = pair_of("x", a, b, tmp_path, task, "Set", (tmp_path,))
    reader = pair_reader(parser.parse_args([]), [pair], task).images
    assert np.array_equal(reader.gray(b), read_gray(b))
    assert np.array_equal(reader.gray(a), thermal() if task == "IVF" else read_gray(a))


def test_a_declared_palette_needs_no_recognition(tmp_path):
    """A scene of one temperature is one colour; a gray file stays as it is."""
    write_png(tmp_path / "flat.png", drawn(np.full((8, 8), 90, np.uint8), "jet"))
    write_png(tmp_path / "gray.png", thermal())
    reader = ImageReader(thermal=[tmp_path / "flat.png", tmp_path / "gray.png"], pseudocolor="jet")
    assert np.unique(reader.gray(tmp_path / "flat.png")).tolist() == [90]
    assert np.array_equal(reader.gray(tmp_path / "gray.png"), thermal())


def test_false_colours_stay_out_of_the_picture(tmp_path):
    """The fused image has the chroma of B alone, as if A were gray."""
    write_png(tmp_path / "a.png", drawn(thermal(), "jet"))
    write_png(tmp_path / "gray.png", thermal())
    write_png(tmp_path / "b.png", photograph(0))
    reader = ImageReader(thermal=[tmp_path / "a.png"])
    for name in ("a", "gray"):
        write_colored(
            tmp_path / f"out_{name}.png", thermal(), tmp_path / f"{name}.png", tmp_path / "b.png", read=reader.bgr
        )
    assert (tmp_path / "out_a.png").read_bytes() == (tmp_path / "out_gray.png").read_bytes()
