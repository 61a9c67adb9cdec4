"""False colours of thermal cameras: which palette an image was drawn with, and the gray values that they stand for."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

# OpenCV's palettes whose colours are all different: not HSV and TWILIGHT, which return to their first colour.
OPENCV = (
    *("autumn", "bone", "jet", "winter", "rainbow", "ocean", "summer", "spring", "cool", "pink", "hot", "parula"),
    *("magma", "inferno", "plasma", "viridis", "cividis", "turbo", "deepgreen"),
)
PALETTES = (*OPENCV, "iron")
# An unknown palette: gray is the luma. AUTO recognizes a palette, OFF reads colours as the official code does.
LUMA, AUTO, OFF = "luma", "auto", "off"
CHOICES = (AUTO, OFF, LUMA, *PALETTES)

SAMPLE = 1500  # pixels of an image, at least
# All distances are in levels of 0..255; see `recognize`.
COLORED, ON_PALETTE, OF_GRAY, THICKNESS, SPREAD = 12, 20, 0.25, 5, 20
# BGR -> Y, Cb, Cr (ITU-R BT.601), with less weight on the chroma, which JPEG stores with half the resolution.
WEIGHTED = np.array([[0.114, 0.587, 0.299], [0.15, -0.0994, -0.0506], [-0.0244, -0.1256, 0.15]]).T


@cache
def colors(palette: str) -> np.ndarray:
    """The colours of a palette from the coldest to the hottest, float32 (256, 3), BGR.

    Iron is drawn by each camera in its own way, from black through purple and orange to yellow. Here it is gnuplot's
    default palette (rgbformulae 7,5,15), which looks much the same: R = sqrt(x), G = x³, B = sin(2 pi x), clipped.
    """
    if palette == "iron":
        x = np.arange(256) / 255
        return np.round(np.stack([np.clip(np.sin(2 * np.pi * x), 0, 1), x**3, np.sqrt(x)], 1) * 255).astype(np.float32)
    number = getattr(cv2, f"COLORMAP_{palette.upper()}")
    return cv2.applyColorMap(np.arange(256, dtype=np.uint8), number)[:, 0].astype(np.float32)


def recognize(bgr: np.ndarray) -> str | None:
    """The palette of a uint8 BGR image (H, W, 3): one of `PALETTES`, `LUMA` for an unknown one, None for other images.

    The colours of a palette lie on a curve. Tests of a sample of the pixels:

    - The image is coloured: the mean distance from gray is at least `COLORED`.
    - It has a known palette: the mean distance from its curve is at most `ON_PALETTE`, and at most `OF_GRAY` times the
      distance from gray.
    - It has an unknown palette: the chroma is a function of the luma. It varies by at least `SPREAD` over the image
      (standard deviation), and by at most `THICKNESS` among pixels of one luma.
    """
    pixels = bgr.reshape(-1, 3)
    pixels = pixels[:: max(1, len(pixels) // SAMPLE)].astype(np.float32)
    from_gray = np.linalg.norm(pixels - pixels.mean(1, keepdims=True), axis=1).mean()
    if from_gray < COLORED:
        return None
    distances = {name: np.sqrt(_nearest(pixels, colors(name))[1]).mean() for name in PALETTES}
    best = min(distances, key=distances.__getitem__)
    if distances[best] <= min(ON_PALETTE, OF_GRAY * from_gray):
        return best
    return LUMA if _is_function_of_luma(bgr) else None


def _is_function_of_luma(bgr: np.ndarray) -> bool:
    ycrcb = cv2.cvtColor(bgr, cv2.COLOR_BGR2YCrCb).reshape(-1, 3)
    luma, values = ycrcb[:, 0], ycrcb[:, 1:].astype(np.float64)
    count = np.bincount(luma, minlength=256)
    sums, squares = (
        np.stack([np.bincount(luma, weights=column, minlength=256) for column in power.T])
        for power in (values, values**2)
    )
    within = (squares - sums**2 / np.maximum(count, 1)).sum() / len(luma)
    return bool(np.sqrt(within) <= THICKNESS and np.sqrt(values.var(0).sum()) >= SPREAD)


def to_gray(bgr: np.ndarray, palette: str) -> np.ndarray:
    """The gray values of an image in false colours: the position of each pixel's nearest colour along the palette.

    Args:
        bgr: uint8 (H, W, 3).
        palette: one of `PALETTES`, or `LUMA`.

    Returns:
        float32 (H, W), integers in 0..255.
    """
    if palette == LUMA:
        return np.round(cv2.cvtColor(bgr.astype(np.float32), cv2.COLOR_BGR2GRAY))
    codes = bgr.astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)
    found, inverse = np.unique(codes, return_inverse=True)
    distinct = np.stack([found & 255, found >> 8 & 255, found >> 16], 1).astype(np.float32)
    positions, _ = _nearest(distinct @ WEIGHTED, colors(palette) @ WEIGHTED)
    return positions.astype(np.float32)[inverse].reshape(bgr.shape[:2])


def _nearest(pixels: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The position in the `table` (256, 3) of the colour nearest to each of the pixels (n, 3), and its squared
    distance."""
    positions, squares = [], []
    for start in range(0, len(pixels), 1 << 12):
        part = pixels[start : start + (1 << 12)]
        # |p - c|² = |p|² - 2 p c + |c|²
        distances = (part**2).sum(1)[:, None] - 2 * part @ table.T + (table**2).sum(1)
        positions.append(distances.argmin(1))
        squares.append(np.maximum(distances.min(1), 0))
    return np.concatenate(positions), np.concatenate(squares)
