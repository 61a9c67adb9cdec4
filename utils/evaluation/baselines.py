"""Simple fusion methods to compare with: they need no training.

Their images are stretched from their own minimum and maximum to 0..255, as those of test.py are.
"""

from __future__ import annotations

import cv2
import numpy as np

from utils.data.images import stretch_to_uint8

LEVELS = 4  # of the Laplacian pyramid


def mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The mean of two gray images, (H, W) in 0..255 -> uint8 (H, W)."""
    return stretch_to_uint8((a.astype(np.float64) + b) / 2)


def maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The larger of two gray images at each pixel, (H, W) in 0..255 -> uint8 (H, W)."""
    return stretch_to_uint8(np.maximum(a, b))


def laplacian_pyramid(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Merge the Laplacian pyramids of two gray images, (H, W) in 0..255 -> uint8 (H, W).

    A pyramid has `LEVELS` levels of details and the small image that remains (Burt and Adelson, The Laplacian Pyramid
    as a Compact Image Code, 1983). Of two details the larger in magnitude is taken, of the small images the maximum.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    details = []
    for _ in range(LEVELS):
        smaller_a, smaller_b = cv2.pyrDown(a), cv2.pyrDown(b)
        size = a.shape[::-1]
        detail_a, detail_b = a - cv2.pyrUp(smaller_a, dstsize=size), b - cv2.pyrUp(smaller_b, dstsize=size)
        details.append(np.where(np.abs(detail_a) >= np.abs(detail_b), detail_a, detail_b))
        a, b = smaller_a, smaller_b
    fused = np.maximum(a, b)
    for detail in reversed(details):
        fused = cv2.pyrUp(fused, dstsize=detail.shape[::-1]) + detail
    return stretch_to_uint8(np.clip(fused, 0, 255))


BASELINES = {"mean": mean, "maximum": maximum, "Laplacian pyramid": laplacian_pyramid}
