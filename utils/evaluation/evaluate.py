"""Metrics of data sets: computed in parallel, over the listed images only; written as a table, CSV or JSON."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.data.images import ImageReader, read_gray, require_one_size
from utils.data.pairs import ImageFolder, key, left_out, plain_names, require_partners, stem, unmatched
from utils.evaluation.metrics import METRICS, TABLE_METRICS, evaluate_pair
from utils.runtime import files
from utils.runtime.errors import UserError
from utils.runtime.threads import map_ahead
from utils.training.correlation import CORRELATIONS, correlate

logger = logging.getLogger(__name__)

PUBLISHED = Path(__file__).resolve().parent / "published.json"

Values = Mapping[str, float]  # metric -> value
COLUMNS = (*METRICS, *CORRELATIONS)
NAMES_SHOWN = 8


def measure(where: Path | str, fused: np.ndarray, image_a: np.ndarray, image_b: np.ndarray) -> dict[str, float]:
    """The values of `COLUMNS` for a user's images.

    Args:
        where: the fused image, for messages.
        fused, image_a, image_b: as for `evaluate_pair`.

    Raises:
        UserError: `evaluate_pair` rejects the images.
    """
    try:
        metrics = evaluate_pair(fused, image_a, image_b)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    return metrics | correlate(fused, image_a, image_b)._asdict()


def find_sources(
    dir_a: Path, dir_b: Path, list_path: Path | None = None, strict: bool = False, follow_links: bool = False
) -> dict[str, tuple[Path, Path]]:
    """The files of A and B by name, in the order of the list; without a list, of all images in `dir_a`.

    Images of `dir_b` that are left out are named in a warning, or with `strict` are an error.

    Raises:
        UserError: a folder, the list or an image is missing, or `dir_a` holds no image.
    """
    folder_a, folder_b = ImageFolder(dir_a, follow_links), ImageFolder(dir_b, follow_links)
    listed = (
        plain_names(list_path, (dir_a, dir_b))
        if list_path
        else [names[0] for _, names in sorted(folder_a.files.items())]
    )
    if not listed:
        raise UserError(f"{dir_a}: holds no image")
    sources = {stem(name): (folder_a.find(name), folder_b.find(name)) for name in listed}
    if not list_path and (alone := unmatched(folder_a, folder_b)):
        require_partners(alone, strict)
        logger.warning(left_out(alone))
    return sources


def find_fused(folder: Path, names: Iterable[str], follow_links: bool = False) -> dict[str, Path]:
    """The fused image in `folder` of each of `names`, with any suffix; the PNG if there are several.

    Other images are left out, and a warning names them.

    Raises:
        UserError: images are missing; an average over the others would be misleading.
    """
    names = list(names)
    images = ImageFolder(folder, follow_links)
    if missing := [name for name in names if key(name) not in images.files]:
        raise UserError(
            f"{folder}: {len(missing)} of {len(names)} fused images are missing: {_some(missing)}; "
            "add them, or evaluate a list without them"
        )
    if extra := sorted(set(images.files) - set(map(key, names))):
        logger.warning("%s: %d images not in the list, left out: %s", folder, len(extra), _some(extra))
    return {name: images.find(f"{name}.png") for name in names}


def evaluate_files(
    fused: Mapping[str, Path], sources: Mapping[str, tuple[Path, Path]], label: str = "evaluate"
) -> dict[str, dict[str, float]]:
    """The values of `COLUMNS` of the fused image of every name in `sources`, with a progress bar called `label`.

    Raises:
        UserError: an image cannot be read, differs in size from its sources, or is too small.
    """
    reader = ImageReader()

    def measure_one(name: str) -> Values:
        return measure(fused[name], reader.gray(fused[name]), *map(reader.gray, sources[name]))

    rows = _measure_all(measure_one, sources, label)
    for line in reader.report():
        logger.warning(line)
    return rows


def evaluate_method(
    method: Callable[[np.ndarray, np.ndarray], np.ndarray], sources: Mapping[str, tuple[Path, Path]], label: str
) -> dict[str, dict[str, float]]:
    """The values of `COLUMNS` of what `method` makes of the gray images A and B of every name in `sources`.

    Args:
        method: float32 (H, W) in 0..255, twice -> the fused image, uint8 (H, W).
        label: of the progress bar.

    Raises:
        UserError: as `evaluate_files`.
    """

    def measure_one(name: str) -> Values:
        a, b = (read_gray(path) for path in sources[name])
        require_one_size(a, b, *sources[name])
        return measure(f"{label} of {name}", method(a, b), a, b)

    return _measure_all(measure_one, sources, label)


def _measure_all(
    measure_one: Callable[[str], Values], sources: Mapping[str, tuple[Path, Path]], label: str
) -> dict[str, dict[str, float]]:
    values = tqdm(map_ahead(measure_one, sources), desc=label, total=len(sources), unit="image")
    return dict(zip(sources, values, strict=True))


class Difference(NamedTuple):
    """The magnitude of the difference of two fused images, in gray levels of 255."""

    mean: float
    largest: int


def differences(first: Mapping[str, Path], second: Mapping[str, Path]) -> dict[str, Difference]:
    """The difference of the two fused images of every name in `first`.

    Raises:
        UserError: an image cannot be read, or two differ in size.
    """

    def compare_one(name: str) -> Difference:
        one, other = read_gray(first[name]), read_gray(second[name])
        require_one_size(one, other, first[name], second[name])
        gap = np.abs(one - other)
        return Difference(float(gap.mean()), int(gap.max()))

    return dict(zip(first, map_ahead(compare_one, first), strict=True))


def mean_row(values: Mapping[str, Values]) -> dict[str, float]:
    """The mean of each metric in the rows. It is NaN if an image has NaN; a warning names the images."""
    columns = list(next(iter(values.values())))
    for metric in columns:
        if undefined := [name for name, row in values.items() if math.isnan(row[metric])]:
            logger.warning(
                "%s is not defined for %s: an image, or the difference of two, is constant", metric, _some(undefined)
            )
    return {metric: fmean(row[metric] for row in values.values()) for metric in columns}


def correlation_line(values: Mapping[str, Values]) -> str:
    """What the metrics do not show, in one line: the correlation of the fused images with max(A, B), A and B."""
    mean = {name: fmean(row[name] for row in values.values()) for name in CORRELATIONS}
    worst = list(values)[np.argmin([row["corr_max"] for row in values.values()])]  # NaN counts as the least
    return (
        f"correlation of the fused image with max(A, B): {mean['corr_max']:.3f} on average, "
        f"{values[worst]['corr_max']:.3f} at least ({worst}); with A {mean['corr_a']:.3f}, with B {mean['corr_b']:.3f}"
    )


def published_rows(dataset: str, path: Path = PUBLISHED) -> dict[str, Values]:
    """The row for `format_table` that FILM's authors published for a data set (film.md, section 5).

    Raises:
        UserError: they published none for this data set.
    """
    table = json.loads(path.read_text(encoding="utf-8"))
    if dataset not in table["datasets"]:
        raise UserError(f"{path}: no published values for {dataset!r}; available: {', '.join(table['datasets'])}")
    return {f"{table['method']} published": dict(zip(TABLE_METRICS, table["datasets"][dataset], strict=True))}


def write_csv(path: Path, methods: Mapping[str, Mapping[str, Values]]) -> None:
    """One row per method and image, full precision; `methods` is method -> image name -> metric -> value.

    Raises:
        UserError: the file cannot be written.
    """
    rows = (
        [method, name, *(row[metric] for metric in COLUMNS)]
        for method, values in methods.items()
        for name, row in values.items()
    )
    files.write_csv(path, [["method", "name", *COLUMNS], *rows])


def write_json(
    path: Path, dataset: str, methods: Mapping[str, Mapping[str, Values]], means: Mapping[str, Values]
) -> None:
    """The means, the least of `CORRELATIONS` and the values of each image, by method; null where there is no number.

    Raises:
        UserError: the file cannot be written.
    """
    content = {
        "dataset": dataset,
        "methods": {
            method: {
                "mean": _finite(means[method]),
                "least": _finite(
                    {name: float(np.min([row[name] for row in values.values()])) for name in CORRELATIONS}
                ),
                "images": {name: _finite(row) for name, row in values.items()},
            }
            for method, values in methods.items()
        },
    }
    files.write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))


def _finite(row: Values) -> dict[str, float | None]:
    return {metric: value if math.isfinite(value) else None for metric, value in row.items()}


def _some(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(list(names)[:NAMES_SHOWN])
    return f"{shown} and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else shown
