"""Registration: finds the rotation and translation of image B that match it to image A, with a confidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy import fft

from utils.data.pairs import Pair
from utils.runtime.errors import UserError

# These three were chosen on 20 pairs of RoadScene that the slow test does not use. A pair with a lower confidence is
# refused:
MIN_CONFIDENCE = 0.16
# A motion of at most this many pixels (of the last level) is not applied if the confidence without it is at least this
# share of the best: public pairs that count as registered differ by as much.
REGISTERED_PIXELS = 3.0
REGISTERED_SHARE = 0.85
# The search goes from coarse to fine: the longer side of the images in pixels; the largest angle and its step in
# degrees; and the largest translation as a share of the longer side.
LEVELS = ((320, 4.0, 0.5, 0.06), (640, 0.45, 0.15, 0.01))
# Scale of the gradients, in pixels of a level.
SIGMA = 1.0


@dataclass(frozen=True)
class Registration:
    """How image B of a pair moves onto image A.

    Attributes:
        matrix: float64 (2, 3), maps a pixel (x, y, 1) of B to its place in A.
        confidence: the correlation of the gradient directions of the two images over their common area, -1..1.
        shape: (H, W) of both images.
    """

    matrix: np.ndarray
    confidence: float
    shape: tuple[int, int]

    @property
    def moved(self) -> float:
        """The distance in pixels that the corner of B moves which moves most."""
        corners = _corners(self.shape)
        return float(np.hypot(*(self.matrix @ corners - corners[:2])).max())

    @property
    def common(self) -> tuple[slice, slice]:
        """The rows and columns of the largest upright rectangle in A that B covers, between its moved corners."""
        height, width = self.shape
        (left, right, low_left, low_right), (top, top_right, low, low_right_y) = self.matrix @ _corners(self.shape)
        rows = max(top, top_right, 0), min(low, low_right_y, height - 1)
        columns = max(left, low_left, 0), min(right, low_right, width - 1)
        return tuple(slice(int(np.ceil(start - 1e-6)), int(end + 1e-6) + 1) for start, end in (rows, columns))

    def crop(self, a: np.ndarray) -> np.ndarray:
        """Image A, (H, W) or (H, W, C), cropped to the common area."""
        return np.ascontiguousarray(a[self.common])

    def move(self, b: np.ndarray) -> np.ndarray:
        """Image B, (H, W) or (H, W, C), moved (bilinear) and cropped to the common area."""
        height, width = self.shape
        if self.moved > 0:
            b = cv2.warpAffine(b, self.matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        return self.crop(b)


class Registrar:
    """Registers pairs and remembers how each was moved. Safe to use from several threads."""

    def __init__(self) -> None:
        self._found: dict[Path, Registration] = {}

    def align(self, pair: Pair, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move the gray image B (H, W) of a pair onto A, and crop both to their common area.

        Raises:
            UserError: the confidence is below `MIN_CONFIDENCE`.
        """
        found = register(a, b)
        if found.confidence < MIN_CONFIDENCE:
            raise UserError(
                f"{pair.image_a}: cannot be registered with {pair.image_b}: confidence {found.confidence:.2f}, at "
                f"least {MIN_CONFIDENCE} is needed; do both show one scene?"
            )
        self._found[pair.image_a] = found
        return found.crop(a), found.move(b)

    def reading(self, pair: Pair, read: Callable[[Path], np.ndarray]) -> Callable[[Path], np.ndarray]:
        """A function that reads an image of an aligned pair by `read`, and crops or moves it as its gray image was."""
        found = self._found[pair.image_a]

        def read_aligned(path: Path) -> np.ndarray:
            image = read(path)
            if image.shape[:2] != found.shape:
                image = cv2.resize(image, found.shape[::-1])
            return found.crop(image) if path == pair.image_a else found.move(image)

        return read_aligned

    def report(self) -> str:
        """A line: how many pairs were moved, how far, and with which confidence."""
        found = list(self._found.values())
        if not found:
            return "registered: no pair"
        moved = [each.moved for each in found if each.moved > 0]
        far = f" by up to {max(moved):.1f} pixels" if moved else ""
        lowest, highest = (pick(each.confidence for each in found) for pick in (min, max))
        sure = f"{lowest:.2f}" if len(found) == 1 else f"{lowest:.2f} to {highest:.2f}"
        still = f"; {len(found) - len(moved)} left as they are" if len(moved) < len(found) else ""
        return f"registered: {len(moved)} of {len(found)} pairs moved{far}, confidence {sure}{still}"


def register(a: np.ndarray, b: np.ndarray) -> Registration:
    """Find the rotation and translation that move image B onto image A.

    Infrared and visible images differ in brightness and in the sign of their edges, so what is matched is the direction
    of the gradient, with its angle doubled: opposite directions are then the same. For each angle, the correlations
    with all translations are computed by the Fourier transform. The measure is that of the normalized gradient fields
    of Haber and Modersitzki (MICCAI 2006).

    A small motion that raises the confidence little is not applied (`REGISTERED_PIXELS`, `REGISTERED_SHARE`): the pair
    is registered as well as these images can tell.

    Args:
        a, b: gray images (H, W) of one size, in any range.
    """
    height, width = a.shape
    matrix = np.eye(3)
    for side, *grid in LEVELS:
        scale = min(1.0, side / max(height, width))
        field_a, field_b = (_directions(_shrink(image, scale)) for image in (a, b))
        # Pixel centres: x of the image is (x + 0.5) * scale - 0.5 of the level.
        level = np.array([[scale, 0, scale / 2 - 0.5], [0, scale, scale / 2 - 0.5], [0, 0, 1]])
        start = level @ matrix @ np.linalg.inv(level)
        best = _search(field_a, _move(field_b, start), *grid) @ start
        matrix = np.linalg.inv(level) @ best @ level
    confidence, still = (_agreement(field_a, field_b, motion) for motion in (best, np.eye(3)))
    found = Registration(matrix[:2], confidence, a.shape)
    if found.moved * scale <= REGISTERED_PIXELS and still >= REGISTERED_SHARE * confidence:
        return Registration(np.eye(3)[:2], still, a.shape)
    return found


def _search(a: np.ndarray, b: np.ndarray, most: float, step: float, reach: float) -> np.ndarray:
    """The motion (3, 3) of the field `b` with the highest correlation with `a`, to a fraction of the steps."""
    reach = max(2, round(reach * max(a.shape)))
    size = [fft.next_fast_len(length + reach) for length in a.shape]
    spectrum, energy = fft.fft2(a, size), np.vdot(a, a).real
    angles = np.arange(-most, most + step / 2, step)
    scores = np.empty((len(angles), 2 * reach + 1, 2 * reach + 1))
    for score, angle in zip(scores, angles, strict=True):
        turned = _move(b, _motion(angle, 0, 0, b.shape))
        correlation = fft.ifft2(spectrum * fft.fft2(turned, size).conj()).real
        around = np.roll(correlation, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
        score[:] = around / np.sqrt(max(energy * np.vdot(turned, turned).real, 1e-12))
    best = np.unravel_index(scores.argmax(), scores.shape)
    angle, y, x = (at + _peak(scores, best, axis) for axis, at in enumerate(best))
    return _motion(angles[0] + angle * step, x - reach, y - reach, a.shape)


def _peak(scores: np.ndarray, best: tuple[int, ...], axis: int) -> float:
    """The offset of the top of the parabola through the best score and its two neighbours along an axis."""
    line = scores[(*best[:axis], slice(None), *best[axis + 1 :])]
    at = best[axis]
    if not 0 < at < len(line) - 1:
        return 0.0
    before, top, after = line[at - 1 : at + 2]
    curvature = before - 2 * top + after
    return float((before - after) / (2 * curvature)) if curvature < 0 else 0.0


def _agreement(a: np.ndarray, b: np.ndarray, motion: np.ndarray) -> float:
    """The correlation of the field `a` with `b` moved, over their common area, -1..1; 0 for constant images."""
    common = Registration(motion[:2], 0, a.shape).common
    a, b = a[common], _move(b, motion)[common]
    energy = np.vdot(a, a).real * np.vdot(b, b).real
    return float(np.vdot(a, b).real / np.sqrt(energy)) if energy > 0 else 0.0


def _directions(image: np.ndarray) -> np.ndarray:
    """The gradient directions of an image (H, W) with the angle doubled, complex64; weak gradients are near 0."""
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), SIGMA)
    x, y = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    gradient = x + 1j * y
    noise = np.abs(gradient).mean()
    return (gradient**2 / (np.abs(gradient) ** 2 + max(noise**2, 1e-12))).astype(np.complex64)


def _move(field: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Move a field of doubled directions: its places, and with a rotation also its directions."""
    turn = np.complex64(np.exp(2j * np.arctan2(motion[1, 0], motion[0, 0])))
    parts = np.ascontiguousarray(field).view(np.float32).reshape(*field.shape, 2)
    moved = cv2.warpAffine(parts, motion[:2], field.shape[::-1])
    return moved.view(np.complex64)[..., 0] * turn


def _motion(degrees: float, x: float, y: float, shape: tuple[int, int]) -> np.ndarray:
    """A rotation about the centre of an image of this shape, then a translation by (x, y) pixels: (3, 3)."""
    height, width = shape
    rotation = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    rotation[:, 2] += x, y
    return np.vstack([rotation, [0, 0, 1]])


def _corners(shape: tuple[int, int]) -> np.ndarray:
    """The corner pixels (x, y, 1) of an image: top left, top right, bottom left, bottom right; (3, 4)."""
    height, width = shape
    return np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]], float)


def _shrink(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = image.shape
    size = max(8, round(width * scale)), max(8, round(height * scale))
    return image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
