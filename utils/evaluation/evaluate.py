"""Metrics of data sets: computed in parallel, over the listed images only; written as a table, CSV or JSON."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from statistics import fmean

import numpy as np
from tqdm import tqdm

from utils.data.images import ImageReader
from utils.data.pairs import ImageFolder, key, left_out, read_list, require_partners, stem, unmatched
from utils.evaluation.metrics import METRICS, TABLE_METRICS, evaluate_pair
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path
from utils.runtime.threads import map_ahead

logger = logging.getLogger(__name__)

PUBLISHED = Path(__file__).resolve().parent / "published.json"

Values = Mapping[str, float]  # metric -> value
NAMES_SHOWN = 8


def measure(where: Path | str, fused: np.ndarray, image_a: np.ndarray, image_b: np.ndarray) -> dict[str, float]:
    """`evaluate_pair` for a user's images: its `ValueError` becomes a `UserError` that names `where`.

    Raises:
        UserError: `evaluate_pair` rejects the images.
    """
    try:
        return evaluate_pair(fused, image_a, image_b)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def find_sources(
    dir_a: Path, dir_b: Path, list_path: Path | None = None, strict: bool = False
) -> dict[str, tuple[Path, Path]]:
    """The files of A and B by name, in the order of the list; without a list, of all images in `dir_a`.

    Images of `dir_b` that are left out are named in a warning, or with `strict` are an error.

    Raises:
        UserError: a folder, the list or an image is missing, or `dir_a` holds no image.
    """
    folder_a, folder_b = ImageFolder(dir_a), ImageFolder(dir_b)
    listed = read_list(list_path) if list_path else [names[0] for _, names in sorted(folder_a.files.items())]
    if not listed:
        raise UserError(f"{dir_a}: holds no image")
    sources = {stem(name): (folder_a.find(name), folder_b.find(name)) for name in listed}
    if not list_path and (alone := unmatched(folder_a, folder_b)):
        require_partners(alone, strict)
        logger.warning(left_out(alone))
    return sources


def find_fused(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The fused image in `folder` of each of `names`, with any suffix; the PNG if there are several.

    Other images are left out, and a warning names them.

    Raises:
        UserError: images are missing; an average over the others would be misleading.
    """
    names = list(names)
    images = ImageFolder(folder)
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
    """All metrics of the fused image of every name in `sources`, with a progress bar called `label`.

    Raises:
        UserError: an image cannot be read, differs in size from its sources, or is too small.
    """
    reader = ImageReader()

    def measure_one(name: str) -> Values:
        return measure(fused[name], reader.gray(fused[name]), *map(reader.gray, sources[name]))

    values = tqdm(map_ahead(measure_one, sources), desc=label, total=len(sources), unit="image")
    rows = dict(zip(sources, values, strict=True))
    for line in reader.report():
        logger.warning(line)
    return rows


def mean_row(values: Mapping[str, Values]) -> dict[str, float]:
    """The mean of each metric over the images. It is NaN if an image has NaN; a warning names the images."""
    for metric in METRICS:
        if undefined := [name for name, row in values.items() if math.isnan(row[metric])]:
            logger.warning(
                "%s is not defined for %s: an image, or the difference of two, is constant", metric, _some(undefined)
            )
    return {metric: fmean(row[metric] for row in values.values()) for metric in METRICS}


def published_rows(dataset: str, path: Path = PUBLISHED) -> dict[str, Values]:
    """The paper's values for a data set, labelled as published, as a row for `format_table`.

    Raises:
        UserError: the paper has no row for this data set.
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
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "name", *METRICS])
        for method, values in methods.items():
            for name, row in values.items():
                writer.writerow([method, name, *(row[metric] for metric in METRICS)])


def write_json(
    path: Path, dataset: str, methods: Mapping[str, Mapping[str, Values]], means: Mapping[str, Values]
) -> None:
    """The means and the values of each image by method, full precision; null where a value is not a finite number.

    Raises:
        UserError: the file cannot be written.
    """
    content = {
        "dataset": dataset,
        "methods": {
            method: {"mean": _finite(means[method]), "images": {name: _finite(row) for name, row in values.items()}}
            for method, values in methods.items()
        },
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _finite(row: Values) -> dict[str, float | None]:
    return {metric: value if math.isfinite(value) else None for metric, value in row.items()}


def _some(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(list(names)[:NAMES_SHOWN])
    return f"{shown} and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else shown
