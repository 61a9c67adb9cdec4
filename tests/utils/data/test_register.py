"""Registration: a known motion is found, a registered pair stays, unrelated images are refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.data.images import read_gray
from utils.data.pairs import Pair
from utils.data.register import MIN_CONFIDENCE, Registrar, Registration, register
from utils.runtime.errors import UserError


def scene(seed: int, size: tuple[int, int] = (160, 240)) -> np.ndarray:
    """Filled shapes on a gray ground, float32 in 0..255."""
    rng = np.random.default_rng(seed)
    image = np.full(size, 128, np.uint8)
    for _ in range(25):
        centre, axes = rng.integers(0, size[::-1], 2), rng.integers(5, 30, 2)
        cv2.ellipse(image, centre.tolist(), axes.tolist(), int(rng.integers(180)), 0, 360, int(rng.integers(256)), -1)
    return cv2.GaussianBlur(image, (0, 0), 1).astype(np.float32)


def motion(degrees: float, x: float, y: float, shape: tuple[int, int]) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D(((shape[1] - 1) / 2, (shape[0] - 1) / 2), degrees, 1)
    matrix[:, 2] += x, y
    return matrix


def corner_errors(found: np.ndarray, moved: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How far the corners are from their places after they were `moved` and moved back by `found`, in pixels."""
    height, width = shape
    corners = np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]], float)
    back = found @ np.vstack([moved @ corners, np.ones(4)])
    return np.hypot(*(back - corners[:2]))


def pair(name: str = "a") -> Pair:
    return Pair(name, Path(f"{name}.png"), Path("b.png"), Path("t"), Path("f"))


@pytest.mark.parametrize("move", [(0, 6, -4), (2, -8.5, 5), (-1.5, 0, 0)])
def test_a_known_motion_is_found_although_the_contrast_is_inverted(move):
    a = scene(0)
    matrix = motion(*move, a.shape)
    b = cv2.warpAffine(255 - 0.5 * a, matrix, a.shape[::-1], borderMode=cv2.BORDER_REFLECT)
    found = register(a, b)
    assert found.confidence > 2 * MIN_CONFIDENCE
    assert corner_errors(found.matrix, matrix, a.shape).max() < 0.7


def test_a_registered_pair_is_not_changed():
    a = scene(0)
    found = register(a, 255 - a)
    assert found.moved == 0
    np.testing.assert_array_equal(found.crop(a), a)
    np.testing.assert_array_equal(found.move(255 - a), 255 - a)


def test_unrelated_and_constant_images_are_refused_and_named():
    for other in (scene(1), np.zeros((160, 240), np.float32)):
        with pytest.raises(UserError, match=r"^a\.png: cannot be registered with b\.png: confidence -?0\.\d\d, "):
            Registrar().align(pair(), scene(0), other)


def test_both_images_are_cropped_to_what_both_show():
    """B shows the scene 3 pixels to the right and 2 up, so it moves 3 left and 2 down: A loses 2 rows at the top and 3
    columns at the right."""
    image = np.arange(20.0 * 30).reshape(20, 30).astype(np.float32)
    a, b = image[:, :], np.roll(image, (-2, 3), (0, 1))
    back = Registration(np.array([[1, 0, -3.0], [0, 1, 2]]), 1, a.shape)
    assert back.common == (slice(2, 20), slice(0, 27))
    for cropped in (back.crop(a), back.move(b)):
        np.testing.assert_array_equal(cropped, image[2:, :27])
    assert back.moved == pytest.approx(13**0.5)


def test_colours_move_as_the_gray_images_do_and_the_report_counts():
    a = scene(0)
    b = cv2.warpAffine(a, motion(0, 5, 0, a.shape), a.shape[::-1], borderMode=cv2.BORDER_REFLECT)
    registrar = Registrar()
    gray = registrar.align(pair(), a, b)
    read = registrar.reading(pair(), lambda path: np.dstack([a if path.stem == "a" else b] * 3))
    for one, path in zip(gray, (pair().image_a, pair().image_b), strict=True):
        np.testing.assert_allclose(read(path), np.dstack([one] * 3), atol=1e-3)
    assert np.abs(gray[0] - gray[1]).mean() < 2
    registrar.align(pair("c"), a, a)
    assert registrar.report().startswith("registered: 1 of 2 pairs moved by up to 5.")


@pytest.mark.slow
def test_on_roadscene(shared):
    """20 pairs that no constant was chosen on. B is moved by up to 12 pixels in x and in y and 2 degrees.

    Reached: 18 of 20 come back within 1.5 pixels (mean over a grid of 9x9 points; 11 within 1.5 pixels at all points),
    20 of 20 unrelated pairs are refused, and 19 of 20 registered pairs are not moved. The data set's own registration
    is not exact: the two pairs that do not come back are about as far off when nothing moved them.
    """
    folders = [shared / "data" / "RoadScene" / name for name in ("cropinfrared", "crop_LR_visible")]
    names = sorted(path.name for path in folders[0].iterdir())
    order = np.random.default_rng(0).permutation(len(names))
    rng = np.random.default_rng(1)
    back = refused = stays = 0
    for at in range(100, 120):
        a, b = (read_gray(folder / names[order[at]]) for folder in folders)
        other = read_gray(folders[1] / names[order[(at + 100) % len(names)]])
        matrix = motion(rng.uniform(-2, 2), *rng.uniform(-12, 12, 2), a.shape)
        found = register(a, cv2.warpAffine(b, matrix, a.shape[::-1], flags=cv2.INTER_CUBIC))
        height, width = a.shape
        grid = np.stack([*np.mgrid[0 : width - 1 : 9j, 0 : height - 1 : 9j], np.ones((9, 9))]).reshape(3, -1)
        error = np.hypot(*(found.matrix @ np.vstack([matrix @ grid, grid[2:]]) - grid[:2])).mean()
        back += error < 1.5 and found.confidence >= MIN_CONFIDENCE
        refused += register(a, cv2.resize(other, (width, height))).confidence < MIN_CONFIDENCE
        stays += register(a, b).moved < 0.7
    assert (back >= 18, refused >= 18, stays >= 18) == (True, True, True), (back, refused, stays)
