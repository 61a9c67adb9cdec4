"""Fusing stacks of more than two images: pair by pair, because the network takes two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from utils.data.color import colorize, luma
from utils.data.images import ImageReader, NeedsStretch, require_one_size, stretch_to_uint8, write_png
from utils.data.pairs import ImageFolder, Pair, is_data_folder, pair_of, stem
from utils.data.tasks import TASKS
from utils.runtime.errors import UserError
from utils.runtime.files import require_inside

TIFF = (".tif", ".tiff")

# Fuses two gray images, float32 (H, W) in 0..1, to one of the same kind, which is not stretched.
Fuse = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Stack:
    """A stack and its output files.

    Attributes:
        pair: the name, text and feature of the stack, with its first and its last image.
        paths: its images, or one TIFF file whose pages they are.
        gray, rgb: the output files.
        sort: fuse from the brightest image to the darkest, as the network for MEF was trained; else as they are listed.
        reader: reads its images in 8 bits, as the official code does.
    """

    pair: Pair
    paths: tuple[Path, ...]
    gray: Path
    rgb: Path
    sort: bool
    reader: ImageReader

    def write(self, fuse: Fuse, color: bool) -> list[Path]:
        """Fuse the stack and write the gray image, and with `color` the colour image; returns the paths.

        Raises:
            UserError: an image cannot be read, the sizes differ, there is only one image, or a file cannot be written.
        """
        images = self.read()
        grays = [luma(image) / np.float32(255) for image in images]
        gray = stretch_to_uint8(fold(tqdm(grays, desc=self.pair.name, unit="image"), fuse))
        write_png(self.gray, gray)
        if not color:
            return [self.gray]
        write_png(self.rgb, colorize(gray, *images))
        return [self.gray, self.rgb]

    def read(self) -> list[np.ndarray]:
        """The images in the order in which they are fused, uint8 (H, W, 3), BGR."""
        images = (
            read_pages(self.paths[0])
            if len(self.paths) == 1
            else [read_8_bit(path, self.reader) for path in self.paths]
        )
        for image, path in zip(images, self.paths, strict=False):
            require_one_size(images[0], image, self.paths[0], path)
        return sorted(images, key=np.mean, reverse=True) if self.sort else images


def fold(images: Sequence[np.ndarray], fuse: Fuse) -> np.ndarray:
    """Fuse the first two images, then the result with the third, and so on. Nothing is stretched in between."""
    fused, *others = images
    for image in others:
        fused = fuse(fused, image)
    return fused


def read_8_bit(path: Path, reader: ImageReader) -> np.ndarray:
    """An image, uint8 (H, W, 3), BGR.

    Raises:
        UserError: it cannot be read, or the official code cannot read its type.
    """
    try:
        return reader.bgr(path)
    except NeedsStretch as error:
        raise UserError(f"{path}: stacks need 8 bits, or 16 without a sign; save it so") from error


def read_pages(path: Path) -> list[np.ndarray]:
    """The pages of a TIFF file, uint8 (H, W, 3), BGR.

    Raises:
        UserError: it cannot be decoded, has one page only, or its pages differ in size.
    """
    read_8_bit(path, ImageReader())  # Refuses a bad file.
    pages = cv2.imdecodemulti(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)[1]
    if len(pages) < 2:
        raise UserError(f"{path}: has one page; expected a stack of several, or two images")
    if len({page.shape for page in pages}) > 1:
        raise UserError(f"{path}: its pages differ in size; expected images of one scene from one place")
    return list(pages)


def find_stacks(
    given: Sequence[Path],
    out: Path | None,
    task: str,
    reader: ImageReader | None = None,
    follow_links: bool = False,
) -> list[Stack]:
    """The stacks that the arguments of fuse.py name; none if they name two images or two folders.

    Three or more images are a stack, as is one multi-page TIFF file or one folder of images (in the order of their
    names). One folder of such folders is several stacks.

    Args:
        given: the arguments.
        out: the .png file of one stack (default: <its name>_fused.png), or the folder of several (default: fused).
        task: a key of `TASKS`.
        reader: reads the images, in the official reading.
        follow_links: links may lead out of their folder.

    Raises:
        UserError: no stack, a task without stacks, or `out` does not fit.
    """
    if len(given) == 2:
        return []
    if not TASKS[task].stacks:
        tasks = " or ".join(name for name, each in TASKS.items() if each.stacks)
        raise UserError(
            f"{given[0]}: expected two images or two folders; one, or more than two, are a stack: --task {tasks}"
        )
    if len(given) > 1 and (folders := [path for path in given if path.is_dir()]):
        raise UserError(f"{folders[0]}: is a folder; expected images, or one folder alone")
    options = task, reader or ImageReader(), follow_links
    members = _members(given[0]) if len(given) == 1 and given[0].is_dir() else []
    if members:
        out = out or Path("fused")
        return [
            _stack((path,), *(out / kind / f"{stem(path.name)}.png" for kind in ("Gray", "RGB")), *options)
            for path in members
        ]
    out = out or Path(f"{given[0].stem}_fused.png")
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"{out}: expected the name of a .png file")
    return [_stack(tuple(given), out, out.with_name(f"{out.stem}_RGB.png"), *options)]


def _members(folder: Path) -> list[Path]:
    """The folders of images in a folder, in the order of their names."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and is_data_folder(path.name) and ImageFolder(path).files
    ]


def _stack(paths: tuple[Path, ...], gray: Path, rgb: Path, task: str, reader: ImageReader, follow_links: bool) -> Stack:
    path = paths[0]
    if path.is_dir():
        files = ImageFolder(path)
        names = [name for names in sorted(files.files.values()) for name in sorted(names)]
        paths = tuple(require_inside(path / name, path, follow_links) for name in names)
    if not paths:
        raise UserError(f"{path}: holds no images; expected a stack, or folders of stacks")
    if len(paths) == 1 and paths[0].suffix.lower() not in TIFF:
        raise UserError(f"{paths[0]}: is one image; expected two or more, or a TIFF file of several pages")
    home = path.resolve().parent
    folders = (home, home.parent)
    place = Path("VLFDataset"), task, home.name
    pair = pair_of(stem(path.name), paths[0], paths[-1], *place, folders, follow_links)
    return Stack(pair, paths, gray, rgb, TASKS[task].brightest_first, reader)
