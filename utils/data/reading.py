"""How the images of pairs are read: the options of data_process.py and fuse.py, and the reader that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data import palette
from utils.data.images import ImageReader, require_one_size, to_one_size
from utils.data.pairs import Pair
from utils.data.register import Registrar
from utils.data.tasks import TASKS
from utils.runtime.errors import UserError


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pair_reader`."""
    add = parser.add_argument
    add(
        "--stretch",
        action="store_true",
        help="scale values that are not 8-bit, such as temperatures: the lowest and highest of all images A become 0 "
        "and 255, and those of all images B (default: the upper 8 bits of 16, as the official code reads them)",
    )
    add(
        "--percentiles",
        type=percentile,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="stretch each image by itself, between these two percentiles, such as 1 99",
    )
    add("--resize", action="store_true", help="resize the smaller image of a pair to the size of the larger")
    add(
        "--register",
        action="store_true",
        help="rotate and shift image B onto image A, and crop both to their common area; a pair that "
        "does not fit is refused",
    )
    add_pseudocolor_option(parser)


def add_pseudocolor_option(parser: argparse.ArgumentParser) -> None:
    """Add --pseudocolor, for image A of IVF."""
    parser.add_argument(
        "--pseudocolor",
        choices=palette.CHOICES,
        default=palette.AUTO,
        metavar="PALETTE",
        help="read a coloured infrared image as the gray values that its false colours stand for, without its chroma; "
        "auto: if its palette is recognized; off: as the official code does; luma: an unknown palette, read by its "
        f"luma; or its palette: {', '.join(palette.PALETTES)}",
    )


def percentile(text: str) -> float:
    """A number in 0..100."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text}: must be in 0..100")
    return value


def thermal_files(task: str, files: Iterable[Path]) -> list[Path]:
    """The images A that may have false colours: `files` if they are from a thermal camera, else none."""
    return list(files) if TASKS[task].thermal else []


@dataclass(frozen=True)
class PairReader:
    """Reads the two images of a pair: of one size, and registered if that was asked for.

    Attributes:
        images: reads the files.
        resize: the smaller image gets the size of the larger.
        registrar: moves image B onto image A; None if the images are registered.
    """

    images: ImageReader
    resize: bool = False
    registrar: Registrar | None = None

    def gray(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """The gray images A and B of a pair, float32 (H, W) in 0..255.

        Raises:
            UserError: an image cannot be read, or the two differ in size and are not to be resized, or they cannot be
                registered.
        """
        a, b = self.images.gray(pair.image_a), self.images.gray(pair.image_b)
        if self.resize:
            a, b = to_one_size(a, b)
        require_one_size(a, b, pair.image_a, pair.image_b, "; --resize resizes the smaller one")
        return self.registrar.align(pair, a, b) if self.registrar else (a, b)

    def bgr_of(self, pair: Pair) -> Callable[[Path], np.ndarray]:
        """A function that reads an image file of a pair in colour, moved and cropped as its gray image was."""
        return self.registrar.reading(pair, self.images.bgr) if self.registrar else self.images.bgr

    def report(self) -> list[str]:
        """Lines about the pairs read: registration first, then the notes of `images`."""
        return [*([self.registrar.report()] if self.registrar else []), *self.images.report()]


def pair_reader(args: argparse.Namespace, pairs: Sequence[Pair], task: str) -> PairReader:
    """The reader that the options of `add_reading_options` ask for; with --stretch, the ranges of `pairs` are printed.

    Raises:
        UserError: --percentiles are in the wrong order.
    """
    if args.percentiles and args.percentiles[0] >= args.percentiles[1]:
        raise UserError("--percentiles: expected the lower one first")
    thermal = thermal_files(task, (pair.image_a for pair in pairs))
    images = ImageReader(args.stretch, args.percentiles, thermal, args.pseudocolor)
    for side in "ab":
        if line := images.measure([getattr(pair, f"image_{side}") for pair in pairs], f"image {side.upper()}"):
            print(line)
    return PairReader(images, args.resize, Registrar() if args.register else None)
