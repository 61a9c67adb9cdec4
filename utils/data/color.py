"""Colour for fused images: the fused luma with the chroma of the sources."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from utils.data.images import read_bgr, write_png
from utils.runtime.errors import UserError


def chroma(bgr: np.ndarray) -> np.ndarray:
    """Cb and Cr of a uint8 BGR image (H, W, 3): float32 (H, W, 2) in -0.5..0.5, 0 where there is no colour.

    Full-range YCbCr with the luma weights of `utils.data.images.read_gray` (ITU-R BT.601).
    """
    ycrcb = cv2.cvtColor(bgr.astype(np.float32) / 255, cv2.COLOR_BGR2YCrCb)
    return ycrcb[..., :0:-1] - np.float32(0.5)


def mix_chroma(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One chroma from two, each weighted by its own distance from gray: (a|a| + b|b|) / (|a| + |b|); 0 where both are.

    The usual rule where both sources are coloured (Prabhakar et al., DeepFuse, ICCV 2017, who write it for values in
    0..255 around 128). Where one source is gray, the result is the other's chroma.
    """
    weight_a, weight_b = np.abs(a), np.abs(b)
    total = weight_a + weight_b
    return (a * weight_a + b * weight_b) / np.where(total == 0, 1, total)


def colorize(gray: np.ndarray, bgr_a: np.ndarray, bgr_b: np.ndarray) -> np.ndarray:
    """The image whose luma is the fused `gray` and whose chroma is that of its sources, mixed by `mix_chroma`.

    Args:
        gray: uint8 (H, W), as it is saved.
        bgr_a, bgr_b: the sources, uint8 (H, W, 3).

    Returns:
        uint8 (H, W, 3), BGR. Colours that do not exist at that luma are cut to 0..255.
    """
    cb, cr = np.moveaxis(mix_chroma(chroma(bgr_a), chroma(bgr_b)) + np.float32(0.5), -1, 0)
    bgr = cv2.cvtColor(np.dstack([gray.astype(np.float32) / 255, cr, cb]), cv2.COLOR_YCrCb2BGR)
    return np.round(np.clip(bgr, 0, 1) * 255).astype(np.uint8)


def is_colored(bgr: np.ndarray) -> bool:
    """Whether the channels of an image differ anywhere."""
    return bool((bgr != bgr[..., :1]).any())


def write_colored(path: Path, gray: np.ndarray, image_a: Path, image_b: Path, resize: bool = False) -> bool:
    """Write the fused `gray`, uint8 (H, W), with the colours of its source files to a PNG.

    Args:
        resize: bring the sources to the size of `gray`.

    Returns:
        Whether there were colours. Where both sources are gray, the picture is gray too.

    Raises:
        UserError: a source cannot be read or is of another size, or `path` cannot be written.
    """
    sources = []
    for source in (image_a, image_b):
        bgr = read_bgr(source)
        if bgr.shape[:2] != gray.shape:
            if not resize:
                sizes = [f"{height}x{width}" for height, width in (bgr.shape[:2], gray.shape)]
                raise UserError(f"{source}: is {sizes[0]}, the fused image {sizes[1]}; it was fused from other images")
            bgr = cv2.resize(bgr, gray.shape[::-1])
        sources.append(bgr)
    write_png(path, colorize(gray, *sources))
    return any(map(is_colored, sources))
