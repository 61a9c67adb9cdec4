"""Fused images in colour: the fused luma with the chroma of the source images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from utils.data.images import read_bgr, write_png
from utils.runtime.errors import UserError


def chroma(bgr: np.ndarray) -> np.ndarray:
    """Cb and Cr of a uint8 BGR image (H, W, 3): float32 (H, W, 2) in -0.5..0.5, 0 for gray.

    Full-range YCbCr with the luma weights of `utils.data.images.read_gray` (ITU-R BT.601).
    """
    ycrcb = cv2.cvtColor(bgr.astype(np.float32) / 255, cv2.COLOR_BGR2YCrCb)
    return ycrcb[..., :0:-1] - np.float32(0.5)


def luma(bgr: np.ndarray) -> np.ndarray:
    """The gray image of a uint8 BGR image (H, W, 3): float32 (H, W), integers in 0..255, as `read_gray` returns it."""
    return np.round(cv2.cvtColor(bgr.astype(np.float32), cv2.COLOR_BGR2GRAY))


def mix_chroma(*sources: np.ndarray) -> np.ndarray:
    """Fuse chroma arrays, each weighted by its distance from gray: (a|a| + b|b|) / (|a| + |b|); 0 if all are 0.

    The rule of Prabhakar et al. (DeepFuse, ICCV 2017), who write it for two sources and values in 0..255 with gray at
    128. Where all but one source are gray, the result is its chroma.
    """
    weights = [np.abs(source) for source in sources]
    total = sum(weights)
    return sum(map(np.multiply, sources, weights)) / np.where(total == 0, 1, total)


def colorize(gray: np.ndarray, *sources: np.ndarray) -> np.ndarray:
    """The image with the fused `gray` as luma and the chroma of its sources, fused by `mix_chroma`.

    Args:
        gray: uint8 (H, W), as saved.
        sources: two or more images, uint8 (H, W, 3).

    Returns:
        uint8 (H, W, 3), BGR. Values outside 0..255 are clipped.
    """
    cb, cr = np.moveaxis(mix_chroma(*map(chroma, sources)) + np.float32(0.5), -1, 0)
    bgr = cv2.cvtColor(np.dstack([gray.astype(np.float32) / 255, cr, cb]), cv2.COLOR_YCrCb2BGR)
    return np.round(np.clip(bgr, 0, 1) * 255).astype(np.uint8)


def write_colored(
    path: Path,
    gray: np.ndarray,
    image_a: Path,
    image_b: Path,
    resize: bool = False,
    read: Callable[[Path], np.ndarray] = read_bgr,
) -> bool:
    """Write the fused `gray`, uint8 (H, W), with the colours of its source files as a PNG.

    Args:
        resize: resize the sources to the size of `gray`.
        read: reads a source, uint8 (H, W, 3), BGR.

    Returns:
        Whether a source has colour; if both are gray, the written image is gray too.

    Raises:
        UserError: a source cannot be read or has another size, or `path` cannot be written.
    """
    sources = []
    for source in (image_a, image_b):
        bgr = read(source)
        if bgr.shape[:2] != gray.shape:
            if not resize:
                sizes = [f"{height}x{width}" for height, width in (bgr.shape[:2], gray.shape)]
                raise UserError(f"{source}: is {sizes[0]}, the fused image {sizes[1]}; it was fused from other images")
            bgr = cv2.resize(bgr, gray.shape[::-1])
        sources.append(bgr)
    write_png(path, colorize(gray, *sources))
    return any((bgr != bgr[..., :1]).any() for bgr in sources)
