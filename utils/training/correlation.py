"""What the loss does not see: how the fused images correlate with max(A, B), with A and with B.

The gradient loss compares magnitudes. It sees neither the sign of a gradient nor the image that it comes from, so an
inverted image, or a copy of one source, can have a low loss. The target of the intensity loss is max(A, B), whatever
the task is: a network that learns what it should correlates with it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.runtime.errors import UserError
from utils.runtime.files import write_csv

# The reference image by the name of its column.
CORRELATIONS = {"corr_max": "max(A, B)", "corr_a": "A", "corr_b": "B"}

# Below this correlation with max(A, B), a training went wrong in all trials (docs/training.md).
LEAST = 0.7
# A fused image is nearly a copy of a source if its correlation with it is at least COPY, and that with the other source
# is below OTHER: the sources of a focus pair are nearly equal, and a good image correlates with both.
COPY, OTHER = 0.95, 0.9


class Correlation(NamedTuple):
    """Pearson correlations of fused images with the images of `CORRELATIONS`, -1..1."""

    corr_max: float
    corr_a: float
    corr_b: float

    def __str__(self) -> str:
        values = (f"{value:.3f} with {CORRELATIONS[name]}" for name, value in self._asdict().items())
        return "correlation of the fused images: " + ", ".join(values)

    def warning(self) -> str | None:
        """One line if the fused images are not what the loss asks for, else None."""
        for source, value, other in (("A", self.corr_a, self.corr_b), ("B", self.corr_b, self.corr_a)):
            if value >= COPY and value > self.corr_max and other < OTHER:
                return f"the fused images are nearly copies of {source} (correlation {value:.2f})"
        if self.corr_max < 0:
            return f"the fused images are inverted (correlation {self.corr_max:.2f} with max(A, B))"
        if not self.corr_max >= LEAST:
            return f"the fused images hardly follow max(A, B) (correlation {self.corr_max:.2f})"
        return None


def correlate(fused: np.ndarray, image_a: np.ndarray, image_b: np.ndarray) -> Correlation:
    """The correlations of one fused image, NaN where an image is constant.

    Args:
        fused, image_a, image_b: arrays of one shape; the sources in one unit.
    """
    return Correlation(*pearson(fused, np.maximum(image_a, image_b), image_a, image_b))


def pearson(x: np.ndarray, *others: np.ndarray) -> list[float]:
    """Pearson's correlations of `x` with each of the `others`, arrays of one shape, in float64; NaN if one is constant.

    sum(x y) / sqrt(sum(x x) sum(y y)), after the means are subtracted.
    """

    def centred(image: np.ndarray) -> np.ndarray:
        values = image.astype(np.float64, copy=False).ravel()
        # First, because the mean of a constant image may be inexact: rounding errors would be correlated.
        values = values - values[0]
        values -= values.mean()
        return values

    def dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # Not np.dot: its library starts threads, which keep the cores busy long after the product.
        return np.einsum("i,i", x, y)

    x = centred(x)
    square = dot(x, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        return [float(dot(x, y) / np.sqrt(square * dot(y, y))) for y in map(centred, others)]


class EpochCorrelation:
    """The mean correlation over the training images of an epoch; an undefined one (NaN) counts as 0."""

    def __init__(self) -> None:
        self._sum, self._count = np.zeros(len(CORRELATIONS)), 0

    def add(self, fused: np.ndarray, image_a: np.ndarray, image_b: np.ndarray) -> None:
        """Add the images of a batch, (b, 1, H, W) each."""
        for f, a, b in zip(fused, image_a, image_b, strict=True):
            self._sum += np.nan_to_num(correlate(f, a, b))
            self._count += 1

    def mean(self) -> np.ndarray:
        """The means in the order of `CORRELATIONS`, float32 (3,); zeros if no image was added."""
        return (self._sum / max(self._count, 1)).astype(np.float32)


def read_correlations(path: Path) -> dict[int, Correlation]:
    """The rows of a run's correlation.csv by epoch; empty if it does not exist.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {
                int(row["epoch"]): Correlation(*(float(row[name]) for name in CORRELATIONS))
                for row in csv.DictReader(file)
            }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is damaged; delete it to resume without the earlier correlations") from error


def write_correlations(path: Path, rows: Mapping[int, Correlation]) -> None:
    """Write correlation.csv: one row per epoch.

    Raises:
        UserError: it cannot be written.
    """
    lines = ([epoch, *(f"{value:.6f}" for value in row)] for epoch, row in rows.items())
    write_csv(path, [["epoch", *CORRELATIONS], *lines])
