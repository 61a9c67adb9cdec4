"""Colour: the fused luma with the sources' chroma, by values worked out by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from utils.data.color import chroma, colorize, mix_chroma, write_colored
from utils.data.images import write_png
from utils.runtime.errors import UserError


def plain(*bgr: int) -> np.ndarray:
    """An image of one colour."""
    return np.full((3, 4, 3), bgr, np.uint8)


def test_chroma_by_hand():
    """Of pure red, Y = 0.299: Cb = (0 - 0.299) / 1.772 = -0.1687 and Cr = (1 - 0.299) / 1.402 = 0.5 (BT.601).

    OpenCV rounds the two divisors to 1/0.564 and 1/0.713.
    """
    cb, cr = chroma(plain(0, 0, 255))[0, 0]
    assert (cb, cr) == pytest.approx((-0.16874, 0.5), abs=5e-4)
    assert np.abs(chroma(plain(90, 90, 90))).max() < 1e-6


def test_the_weighted_rule_by_hand():
    """DeepFuse with 128 as offset: Cb 138 and 108 give (138*10 + 108*20) / 30 = 118; 128 and 128 stay 128."""
    a, b = np.array([138, 128, 128, 200]) - 128.0, np.array([108, 128, 90, 200]) - 128.0
    np.testing.assert_allclose(mix_chroma(a, b) + 128, [118, 128, 90, 200])
    np.testing.assert_allclose(mix_chroma(b, a), mix_chroma(a, b))


def test_the_fused_luma_with_the_color_of_one_source():
    """A linear transform: a channel becomes F + (channel - Y). (B, G, R) = (60, 120, 200) has Y = 137.08, so
    F = 100 gives (22.92, 82.92, 162.92). A gray source has no part in it."""
    colored = colorize(np.full((3, 4), 100, np.uint8), plain(33, 33, 33), plain(60, 120, 200))
    assert colored.dtype == np.uint8
    np.testing.assert_allclose(colored.astype(int), np.broadcast_to([23, 83, 163], (3, 4, 3)), atol=1)
    swapped = colorize(np.full((3, 4), 100, np.uint8), plain(60, 120, 200), plain(33, 33, 33))
    np.testing.assert_array_equal(swapped, colored)


def test_an_image_gets_its_own_colors_back():
    """Where the fused luma is the source's own, the picture is the source."""
    bgr = np.random.default_rng(0).integers(40, 216, (20, 30, 3), dtype=np.uint8)
    gray = np.round(bgr @ [0.114, 0.587, 0.299]).astype(np.uint8)
    np.testing.assert_allclose(colorize(gray, plain_like(bgr), bgr).astype(int), bgr.astype(int), atol=1)


def plain_like(bgr: np.ndarray) -> np.ndarray:
    return np.full_like(bgr, 77)


def test_gray_sources_give_the_gray_picture():
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    sources = (np.repeat(x[..., None], 3, axis=2) for x in (gray.T, gray[::-1]))
    np.testing.assert_array_equal(colorize(gray, *sources), np.repeat(gray[..., None], 3, axis=2))


def test_impossible_colors_are_cut():
    """Pure red, Y = 76.2, at F = 200: (123.8, 123.8, 378.8), and at F = 10 both lower ones below 0."""
    for f, expected in ((200, (124, 124, 255)), (10, (0, 0, 189))):
        pixel = colorize(np.full((3, 4), f, np.uint8), plain(0, 0, 255), plain(0, 0, 0))[0, 0]
        np.testing.assert_allclose(pixel.astype(int), expected, atol=1)


def test_written_files(tmp_path):
    gray = np.full((3, 4), 100, np.uint8)
    write_png(tmp_path / "gray.png", plain(5, 5, 5)[..., 0])
    write_png(tmp_path / "红 1.0.png", plain(60, 120, 200))
    assert write_colored(tmp_path / "out.png", gray, tmp_path / "gray.png", tmp_path / "红 1.0.png")
    written = cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written, colorize(gray, plain(5, 5, 5), plain(60, 120, 200)))
    # gray files where colour is asked for: said, and the picture is gray
    assert not write_colored(tmp_path / "out.png", gray, tmp_path / "gray.png", tmp_path / "gray.png")
    written = cv2.imread(str(tmp_path / "out.png"))
    assert (written == written[..., :1]).all()


def test_a_source_of_another_size_is_refused_or_resized(tmp_path):
    write_png(tmp_path / "a.png", plain(60, 120, 200))
    gray = np.zeros((6, 8), np.uint8)
    with pytest.raises(UserError, match=r"a.png: is 3x4, the fused image 6x8"):
        write_colored(tmp_path / "out.png", gray, tmp_path / "a.png", tmp_path / "a.png")
    assert not (tmp_path / "out.png").exists()
    write_colored(tmp_path / "out.png", gray, tmp_path / "a.png", tmp_path / "a.png", resize=True)
    assert cv2.imread(str(tmp_path / "out.png")).shape == (6, 8, 3)
