"""Reading, resizing and writing images, exactly as the official code does (film.md, sections 4 and 5)."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from net.shapes import STAGE_SIZE
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path

PNG_MARK, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND"


def read_gray(path: Path | str) -> np.ndarray:
    """Read an image file and convert it to gray: float32 (H, W), integers in 0..255.

    The last bit depends on the order of the steps: decode to 8-bit BGR, convert to float32, convert to gray (OpenCV),
    round. Of 16-bit channels the upper 8 bits are used, alpha is ignored, and the EXIF orientation is applied.

    Raises:
        UserError: the file is missing, or OpenCV cannot decode it.
    """
    image = _decode(path, cv2.IMREAD_ANYCOLOR)
    if image.ndim == 2:
        # A gray file needs no conversion: the weights of three equal channels add up to 1.
        return image.astype(np.float32)
    gray = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2GRAY)
    return np.round(gray, out=gray)


def read_bgr(path: Path | str) -> np.ndarray:
    """Read an image file in colour: uint8 (H, W, 3), BGR; a gray file gets three equal channels.

    Raises:
        UserError: the file is missing, or OpenCV cannot decode it.
    """
    return _decode(path, cv2.IMREAD_COLOR)


def _decode(path: Path | str, flags: int) -> np.ndarray:
    path = Path(path)
    # Not `Path.is_file`, which raises for names that are too long and for folders without read permission.
    if not os.path.isfile(path):  # noqa: PTH113
        raise UserError(f"{path}: no such image")
    # For a bad file, OpenCV would print lines in addition to the error below.
    cv2.setLogLevel(0)
    # Not imread, which accepts a truncated JPEG and fills the rest with gray.
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, flags) if _chunks_fit(data.data) else None
    except (cv2.error, OSError):
        image = None
    if image is None:
        raise UserError(f"{path}: cannot be decoded; expected a png, jpg, bmp or tif image of 8 or 16 bits")
    return image


def _chunks_fit(data: memoryview) -> bool:
    """False for a PNG with a chunk longer than the file, for which OpenCV would allocate up to 4 GB."""
    if data[:8] != PNG_MARK:
        return True
    at = len(PNG_MARK)
    while at + 12 <= len(data) and data[at : at + 8] != PNG_END:
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return at + 12 <= len(data)


def require_one_size(a: np.ndarray, b: np.ndarray, image_a: Path, image_b: Path, way_out: str = "") -> None:
    """Raise `UserError`, which ends with `way_out`, if images read from `image_a` and `image_b` differ in size."""
    if a.shape != b.shape:
        sizes = " and ".join("x".join(map(str, image.shape)) for image in (a, b))
        raise UserError(f"{image_a}: a pair of different sizes, {sizes}, with {image_b}{way_out}")


def to_one_size(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Resize (bilinear) the one of two images (H, W) that has fewer pixels to the size of the other."""
    height, width = max(a, b, key=np.size).shape
    return cv2.resize(a, (width, height)), cv2.resize(b, (width, height))


def to_training_size(image: np.ndarray) -> np.ndarray:
    """Resize (bilinear) a float32 image (H, W) to 288x384, the size of training.

    An image with H >= W is resized to 384x288 and then transposed. The official script resizes images in 0..255 and
    divides by 255 afterwards; the other order differs in the last bit.
    """
    height, width = STAGE_SIZE
    if image.shape[0] < image.shape[1]:
        return cv2.resize(image, (width, height))
    return np.ascontiguousarray(cv2.resize(image, (height, width)).T)


def stretch_to_uint8(image: np.ndarray) -> np.ndarray:
    """Stretch a finite image (H, W) to its own min..max, times 255, truncated to uint8. A constant image becomes 0."""
    low, high = image.min(), image.max()
    if high == low:
        return np.zeros(image.shape, np.uint8)
    return ((image - low) / (high - low) * 255).astype(np.uint8)


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a uint8 image, (H, W) or (H, W, 3) BGR; the file is written completely or not at all.

    Raises:
        UserError: it cannot be written.
    """
    encoded, data = cv2.imencode(".png", image)
    if not encoded:
        raise UserError(f"{path}: cannot be encoded as PNG, shape {image.shape} and type {image.dtype}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def side_by_side(*images: np.ndarray) -> np.ndarray:
    """Images of the same height, joined horizontally."""
    return np.concatenate(images, axis=1)
