"""Fusing a data set: while one pair is computed, the next is read, and the last ones are written and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from utils.data.color import write_colored
from utils.data.h5 import H5Dataset
from utils.data.images import read_bgr, stretch_to_uint8, write_png
from utils.data.loader import Batch, Loader
from utils.evaluation.evaluate import Values, measure
from utils.evaluation.inference import fuse_unstretched
from utils.runtime import cores, processes
from utils.runtime.errors import UserError
from utils.runtime.threads import map_ahead

if TYPE_CHECKING:
    from net.Film import Net


def fuse_pairs(net: Net, dataset: H5Dataset) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yield each pair, as a batch of one, and its fused image, float32 (H, W) in 0..1; print the speed after the last.

    The first image is timed separately because it compiles the kernels. Later images of any size compile nothing.
    """
    seconds: list[float] = []
    for batch in tqdm(Loader(dataset, 1, shuffle=False, drop_last=False), desc="fuse", unit="image"):
        started = time.perf_counter()
        try:
            fused = fuse_unstretched(net, batch.image_a, batch.image_b, batch.text)
        except UserError as error:
            raise UserError(f"{dataset.path}: {batch.names[0]}: {error}") from error
        seconds.append(time.perf_counter() - started)
        yield batch, fused
    if not seconds:
        return
    where = f" (process 0 of {processes.count()})" if processes.count() > 1 else ""
    print(f"first image, kernels compiled or loaded: {seconds[0]:.2f} s{where}")
    if len(seconds) > 1:
        print(f"the other {len(seconds) - 1}: {1 / fmean(seconds[1:]):.2f} images/s ({fmean(seconds[1:]):.3f} s each)")


def gray_values(image: np.ndarray) -> np.ndarray:
    """The gray source image, (H, W) in 0..255, of an image (1, H, W) in a test H5 file.

    The file stores the result of `read_gray` divided by 255; this restores it exactly.
    """
    return np.round(image[0].astype(np.float64) * 255)


def fuse_dataset(
    net: Net,
    dataset: H5Dataset,
    gray: Path,
    rgb: Path,
    files: Mapping[str, tuple[Path, Path]],
    read: Callable[[Path], np.ndarray] = read_bgr,
) -> tuple[list[Values], int]:
    """Fuse, write and measure the pairs of `dataset`; memory does not grow with their number.

    This thread computes; others read, write and measure. Jittor holds the interpreter lock while it computes, so they
    do most of that between two pairs, on all cores: what it costs is processor time. The metrics are those of the
    8-bit images.

    Args:
        gray: the folder of the fused images, <name>.png.
        rgb: the folder of the colour images.
        files: the image files of every pair, for colour images; empty to write none.
        read: reads the colours of a file, uint8 (H, W, 3), BGR.

    Returns:
        The metrics of every pair, and the number of pairs in `files` without colours.
    """

    def write_and_measure(pair: tuple[Batch, np.ndarray]) -> tuple[Values, bool]:
        batch, fused = pair
        fused = stretch_to_uint8(fused)
        (name,) = batch.names
        path = gray / f"{name}.png"
        write_png(path, fused)
        colorless = bool(files) and not write_colored(rgb / path.name, fused, *files[name], read=read)
        return measure(path, fused, gray_values(batch.image_a[0]), gray_values(batch.image_b[0])), colorless

    # One thread per core: with more of them, each waits longer for the interpreter lock.
    results = list(map_ahead(write_and_measure, fuse_pairs(net, dataset), cores.count()))
    return [values for values, _ in results], sum(colorless for _, colorless in results)
