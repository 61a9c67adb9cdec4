"""Reading, resizing and writing images, exactly as the official code does (film.md, sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from net.shapes import STAGE_SIZE
from utils.data import palette
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path, is_file, naming
from utils.runtime.threads import map_ahead

PNG_MARK, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND"
# Starts of files that may hold several images: TIFF in both byte orders, and its 64-bit form.
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Chunks near the start of an animated WebP or PNG.
ANIMATION_MARKS = (b"ANIM", b"acTL")
# The suffixes of images. OpenCV is built without some of them; their files are found, and then refused by name.
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".jp2", ".gif", ".avif", ".exr"),
    *(".pgm", ".pbm", ".ppm", ".pnm", ".pam", ".pfm", ".hdr", ".pic", ".sr", ".ras"),
)
# What other files start with, at which byte. People rename them, or save a page instead of the image.
OTHER_FILES = (
    (0, b"GIF8", "a GIF image"),
    (4, b"ftyp", "an AVIF or HEIC image, or a video"),
    (128, b"DICM", "a DICOM file"),
    (0, b"version https://git-lfs", "a Git LFS pointer: run git lfs pull"),
    (0, b"<", "an HTML or XML page"),
)
# All types that OpenCV can return (its depths CV_8U to CV_64F). True: the official code reads them, by their upper 8
# bits. It wraps, clips or refuses the others, so they are only read when they are stretched.
DTYPES = {
    "uint8": True,
    "uint16": True,
    "int8": False,
    "int16": False,
    "int32": False,
    "float16": False,
    "float32": False,
    "float64": False,
}
FEW_LEVELS = 64
NAMES_SHOWN = 3


class NeedsStretch(UserError):
    """The official code cannot read values of this type."""


class ImageReader:
    """Reads images, as the official code does or stretched, and collects notes about them for the user.

    The official reading takes the upper 8 bits of 16-bit values. With `stretch`, all values but those of 8-bit files
    are scaled: those from the lowest to the highest become 0..255. Files that were passed to `measure` together have a
    common lowest and highest value. With `percentiles`, and for other files, each file has its own.

    Images of `thermal` with false colours are read as the gray values that they stand for (`utils.data.palette`).

    Args:
        stretch: scale as described.
        percentiles: two percentiles (0..100); values outside them are clipped. Implies `stretch`.
        thermal: 8-bit files that may have false colours.
        pseudocolor: the palette of those that are coloured, one of `palette.CHOICES`.
    """

    def __init__(
        self,
        stretch: bool = False,
        percentiles: Sequence[float] | None = None,
        thermal: Iterable[Path] = (),
        pseudocolor: str = palette.AUTO,
    ) -> None:
        self.percentiles = percentiles
        self.stretch = stretch or percentiles is not None
        self._ranges: dict[Path, tuple[float, float]] = {}
        self._few: dict[Path, str] = {}
        self._pages: dict[Path, int] = {}
        self._thermal = frozenset(thermal) if pseudocolor != palette.OFF else frozenset()
        self._pseudocolor = pseudocolor
        self._palettes: dict[Path, str] = {}

    def measure(self, paths: Iterable[Path], what: str) -> str | None:
        """Find one range for the images at `paths`; files that cannot be read are ignored here.

        Returns:
            A line about the range that begins with `what`; None if no image is to be stretched to a common range.
        """
        if not self.stretch or self.percentiles is not None:
            return None

        def extremes(path: Path) -> tuple[Path, float, float] | None:
            try:
                values = self._decode(path)
                return None if values.dtype == np.uint8 else (path, *_extremes(path, _luma(values), (0, 100)))
            except UserError:
                return None

        found = [each for each in map_ahead(extremes, paths) if each]
        if not found:
            return None
        low, high = min(low for _, low, _ in found), max(high for _, _, high in found)
        self._ranges |= dict.fromkeys((path for path, _, _ in found), (low, high))
        return f"{what}: the values {low:g}..{high:g} of {len(found)} images become 0..255"

    def gray(self, path: Path | str) -> np.ndarray:
        """Read an image file and convert it to gray: float32 (H, W), integers in 0..255.

        The last bit of the official reading depends on the order of the steps: decode to 8-bit BGR, convert to
        float32, convert to gray (OpenCV), round. Alpha is ignored, and the EXIF orientation is applied.

        Raises:
            UserError: the file is missing, OpenCV cannot decode it, its type must be stretched, or a value that is to
                be stretched is not finite.
        """
        path = Path(path)
        values = self._decode(path)
        if values.dtype != np.uint8 and self.stretch:
            return np.round(self._scaled(path, _luma(values))).astype(np.float32)
        if (thermal := self._of_false_colors(path, values)) is not None:
            return thermal
        image = self._official(path, values, cv2.IMREAD_ANYCOLOR)
        if image.ndim == 2:
            # A gray file needs no conversion: the weights of three equal channels add up to 1.
            gray = image.astype(np.float32)
        else:
            gray = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2GRAY)
            gray = np.round(gray, out=gray)
        if values.dtype != np.uint8:
            left, held = len(np.unique(gray)), len(np.unique(values))
            if left < min(FEW_LEVELS, held):
                self._few[path] = f"{left} gray levels of {held} values"
        return gray

    def bgr(self, path: Path | str) -> np.ndarray:
        """Read an image file in colour: uint8 (H, W, 3), BGR; a gray file gets three equal channels.

        Raises:
            UserError: as `gray`.
        """
        path = Path(path)
        values = self._decode(path)
        if (thermal := self._of_false_colors(path, values)) is not None:
            return cv2.cvtColor(thermal.astype(np.uint8), cv2.COLOR_GRAY2BGR)
        if values.dtype == np.uint8 or not self.stretch:
            return self._official(path, values, cv2.IMREAD_COLOR)
        image = np.round(self._scaled(path, values)).astype(np.uint8)
        return image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)

    def report(self) -> list[str]:
        """Lines about the files read: 16-bit ones of which few gray levels are left, pages, and false colours."""
        lines = []
        if self._few:
            shown = _some(self._few)
            problem = f"of {len(self._few)} 16-bit images, the upper 8 bits keep few gray levels"
            lines.append(f"{problem}: {shown}; --stretch keeps the detail")
        if self._pages:
            shown = _some({path: f"{pages} pages" for path, pages in self._pages.items()})
            lines.append(f"only the first page of {len(self._pages)} files was read: {shown}")
        if self._palettes:
            lines.append(
                f"false colours in {len(self._palettes)} images A, read as the gray values that they stand for, "
                f"without their chroma: {_some(self._palettes)}; --pseudocolor off reads them as the official code does"
            )
        return lines

    def _of_false_colors(self, path: Path, values: np.ndarray) -> np.ndarray | None:
        """The gray values that the false colours of a thermal image stand for, (H, W) as `gray`; None: it has none."""
        if path not in self._thermal or values.ndim == 2 or values.dtype != np.uint8:
            return None
        if self._pseudocolor == palette.AUTO:
            found = palette.recognize(values)
        else:
            found = self._pseudocolor if (values != values[..., :1]).any() else None
        if found is None:
            return None
        self._palettes[path] = "an unknown palette: its luma" if found == palette.LUMA else found
        return palette.to_gray(values, found)

    def _decode(self, path: Path) -> np.ndarray:
        """The values as stored: (H, W), or (H, W, 3) in BGR."""
        data = _read_bytes(path)
        values = _decoded(path, data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
        if values.dtype.name not in DTYPES:
            raise UserError(f"{path}: holds {values.dtype} values, which are not supported; save it with 8 or 16 bits")
        head = data[:64].tobytes()
        if head.startswith(TIFF_MARKS) or any(mark in head for mark in ANIMATION_MARKS):
            # OpenCV takes no name here that is not UTF-8.
            with suppress(cv2.error, UnicodeError):
                if (pages := cv2.imcount(str(path))) > 1:
                    self._pages[path] = pages
        return values

    def _official(self, path: Path, values: np.ndarray, flags: int) -> np.ndarray:
        """The official reading in 8 bits of a file whose values as stored are `values`."""
        if not DTYPES[values.dtype.name]:
            sign = "values with a sign" if values.dtype.kind == "i" else "fractions"
            raise NeedsStretch(
                f"{path}: holds {values.dtype} ({sign}), which do not fit 8 bits; --stretch of fuse.py and "
                "data_process.py scales them"
            )
        if values.dtype == np.uint8 and (values.ndim == 3 or flags == cv2.IMREAD_ANYCOLOR):
            return values
        return _decoded(path, _read_bytes(path), flags)

    def _scaled(self, path: Path, values: np.ndarray) -> np.ndarray:
        """The values of an image file in its range, scaled to 0..255, float64. A constant range becomes 0."""
        low, high = self._ranges.get(path) or _extremes(path, _luma(values), self.percentiles or (0, 100))
        if high == low:
            return np.zeros(values.shape)
        return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255


def read_gray(path: Path | str) -> np.ndarray:
    """`ImageReader.gray` of a single file, in the official reading, without notes."""
    return ImageReader().gray(path)


def read_bgr(path: Path | str, reader: ImageReader | None = None) -> np.ndarray:
    """The colours of a single file: `ImageReader.bgr`.

    Types that the official code cannot read are stretched to their own range: the chroma of a gray image is 0 in any.
    """
    try:
        return (reader or ImageReader()).bgr(path)
    except NeedsStretch:
        return ImageReader(stretch=True).bgr(path)


def can_read(path: Path | str) -> bool:
    """Whether this build of OpenCV reads images with the suffix of `path`."""
    return _has_codec(Path(path).suffix.lower())


@cache
def _has_codec(suffix: str) -> bool:
    try:
        # Its formats are read and written by the same libraries, and asking for a reader needs a file.
        return suffix in IMAGE_SUFFIXES and cv2.haveImageWriter(f"x{suffix}")
    except cv2.error:  # OpenEXR, unless OPENCV_IO_ENABLE_OPENEXR is set
        return False


def _luma(values: np.ndarray) -> np.ndarray:
    """Gray values, float64 (H, W), with the weights of `ImageReader.gray` (ITU-R BT.601)."""
    return values.astype(np.float64) @ (0.114, 0.587, 0.299) if values.ndim == 3 else values.astype(np.float64)


def _extremes(path: Path, values: np.ndarray, percentiles: Sequence[float]) -> tuple[float, float]:
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds values that are not finite, which cannot be stretched; fill them first")
    low, high = np.percentile(values, percentiles)
    return float(low), float(high)


def _some(notes: Mapping[Path, str]) -> str:
    """The first few of the files, each with its note."""
    shown = ", ".join(f"{path} ({notes[path]})" for path in sorted(notes)[:NAMES_SHOWN])
    return shown + (", ..." if len(notes) > NAMES_SHOWN else "")


def _read_bytes(path: Path) -> np.ndarray:
    with naming(path, "cannot be read"):
        if not is_file(path):
            raise UserError(f"{path}: no such image")
        return np.fromfile(path, np.uint8)


def _decoded(path: Path, data: np.ndarray, flags: int) -> np.ndarray:
    # For a bad file, OpenCV would print lines in addition to the error below.
    cv2.setLogLevel(0)
    # Not imread, which accepts a truncated JPEG and fills the rest with gray.
    try:
        image = cv2.imdecode(data, flags) if _chunks_fit(data.data) else None
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path}: cannot be decoded; {_why_not(path, data[:256].tobytes())}")
    return image


def _why_not(path: Path, head: bytes) -> str:
    """Why a file that begins with `head` cannot be decoded, and the way out."""
    for at, mark, what in OTHER_FILES:
        if head[at:].startswith(mark):
            return f"it is {what}" if ":" in what else f"it is {what}: save the image as PNG"
    if not can_read(path):
        return f"this build of OpenCV does not read {path.suffix or 'files without a suffix'}: save the image as PNG"
    return "the file is damaged, or of a kind that OpenCV does not read: save the image as PNG"


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
