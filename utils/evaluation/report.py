"""One HTML page that compares A, B and the fused image of every pair: a single file that needs no network.

The page's parts are in report_page/: the document, its style, its script and its Chinese texts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from string import Template
from typing import NamedTuple

import cv2
import numpy as np
from scipy.stats import rankdata
from tqdm import tqdm

from utils.evaluation.contact_sheet import PageRow
from utils.evaluation.metrics import METRIC_TITLES
from utils.runtime.files import atomic_path
from utils.runtime.threads import map_ahead

PARTS = Path(__file__).resolve().parent / "report_page"
# Limit for all images of a page; base64 adds a third. Browsers open such a file in about a second.
IMAGE_BYTES = 30_000_000
JPEG_QUALITY = 90
# Images that do not fit as JPEG are reduced by this factor repeatedly, but not below the size of a thumbnail.
REDUCTION = 0.75
MIN_SIDE = 160
# How many of the best and of the worst pairs are listed first.
ENDS = 3

LOSSLESS = "All images are embedded without loss, in their original size."
REDUCED = (
    "pairs are embedded as JPEG, reduced in size if necessary, to keep this page small; the metrics are those of the "
    "original images."
)


class Pictures(NamedTuple):
    """The images of a pair as they are embedded in the page."""

    format: str  # PNG or JPEG
    width: int
    height: int
    files: list[bytes]


class _Pair(NamedTuple):
    """A row with compressed images; `width` and `height` are those of the originals."""

    name: str
    columns: list[str]
    metrics: Mapping[str, float]
    width: int
    height: int
    pictures: Pictures

    @property
    def reduced(self) -> bool:
        return self.pictures.format != "PNG"


def write_report(rows: Sequence[PageRow], title: str, path: Path) -> None:
    """Write the page of one or more pairs to `path`.

    Best and worst pairs come first, by `mean_ranks`. Images are embedded without loss and in their original size if
    the pair's share of the page allows that; else as JPEG, and smaller if that is still too large. The page says so.

    Args:
        rows: all with the same columns and the same metrics; greater values are better. Each is read once,
            so a sequence may load its images lazily. Names and titles may hold any characters.

    Raises:
        UserError: `path` cannot be written.
    """
    share = IMAGE_BYTES // len(rows)

    def compressed(index: int) -> _Pair:
        row = rows[index]
        images = list(row.images.values())
        height, width = images[0].shape[:2]
        return _Pair(row.name, list(row.images), row.metrics, width, height, compress(images, share))

    work = map_ahead(compressed, range(len(rows)))
    page = _page(list(tqdm(work, desc="report", total=len(rows), unit="image")), title)
    with atomic_path(path) as temporary:
        # A name may hold a lone surrogate, from a file name that cannot be decoded; UTF-8 cannot encode it.
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")


def compress(images: Sequence[np.ndarray], size: int) -> Pictures:
    """Images as PNG, or else as JPEG at the largest scale at which they take no more than `size` bytes together.

    Scales are powers of `REDUCTION`; but the longer side stays at least `MIN_SIDE`, even if that takes more bytes.

    Args:
        images: (H, W) or (H, W, 3) RGB, of one size, in 0..255.
    """
    pixels = [np.rint(np.clip(image, 0, 255)).astype(np.uint8) for image in images]
    pixels = [cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image for image in pixels]
    height, width = pixels[0].shape[:2]
    files = [_encode(".png", image) for image in pixels]
    if sum(map(len, files)) <= size:
        return Pictures("PNG", width, height, files)
    scale = 1.0
    while True:
        reduced = (max(1, round(width * scale)), max(1, round(height * scale)))
        smaller = [cv2.resize(image, reduced, interpolation=cv2.INTER_AREA) for image in pixels]
        files = [_encode(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY) for image in smaller]
        scale *= REDUCTION
        if sum(map(len, files)) <= size or max(width, height) * scale < MIN_SIDE:
            return Pictures("JPEG", *reduced, files)


def mean_ranks(metrics: Sequence[Mapping[str, float]]) -> list[float]:
    """The mean of each pair's ranks among all pairs, one rank for each metric.

    Rank 1 has the greatest value; equal values share the mean of their ranks; undefined values come last.
    """
    values = np.array([list(row.values()) for row in metrics], np.float64)
    return rankdata(-np.where(np.isnan(values), -np.inf, values), axis=0).mean(axis=1).tolist()


def both_ends_first(ranks: Sequence[float]) -> list[tuple[int, str]]:
    """The order of the page: (index, "best", "worst" or "") of every pair, up to `ENDS` of the best and of the worst.

    The worst pair of all is the first of the worst. No pair is both; of 1, 3 or 5 pairs the middle one is neither.
    """
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    ends = min(ENDS, len(order) // 2)
    best, others, worst = order[:ends], order[ends : len(order) - ends], order[len(order) - ends :][::-1]
    return [
        *((index, "best") for index in best),
        *((index, "worst") for index in worst),
        *((index, "") for index in others),
    ]


def _encode(suffix: str, image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(suffix, image, options)[1].tobytes()


def _page(pairs: Sequence[_Pair], title: str) -> str:
    """The document. All text from outside is escaped by `html.escape`."""
    template, style, script, chinese = (
        (PARTS / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js", "zh.json")
    )
    translated: dict[str, str] = json.loads(chinese)

    def text(tag: str, english: str, key: str) -> str:
        """An element with a text, which the page's script translates if there is a translation."""
        attribute = f' data-text="{key}"' if key in translated else ""
        return f"<{tag}{attribute}>{escape(english)}</{tag}>"

    columns = [(name, f"column.{name}") for name in pairs[0].columns]
    metrics = list(pairs[0].metrics)
    reduced = sum(pair.reduced for pair in pairs)
    ranks = mean_ranks([pair.metrics for pair in pairs])
    ends = {"best": 0, "worst": 0, "": 0}
    rows = []
    for index, end in both_ends_first(ranks):
        ends[end] += 1
        badge = f'<span class="badge {end}">{text("span", end, end)} {ends[end]}</span>' if end else ""
        rows.append(_row(pairs[index], f"pair{index}", badge, ranks[index]))
    crop = '<figure><div class="window"><img alt="" draggable="false"></div>{}</figure>'
    return Template(template).substitute(
        # Even if a name were to become markup, the browser would run nothing but the page's own script.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_digest(script)}'",
        title=escape(title),
        style=style,
        count=len(pairs),
        notice=f"<b>{reduced}</b> {text('span', REDUCED, 'reduced')}"
        if reduced
        else text("span", LOSSLESS, "lossless"),
        options="".join(text("option", *column) for column in columns),
        crops="".join(crop.format(text("figcaption", *column)) for column in columns),
        headings="".join(f'<th scope="col"><button type="button">{escape(metric)}</button></th>' for metric in metrics),
        rows="\n".join(rows),
        means="".join(_cell(fmean(pair.metrics[metric] for pair in pairs)) for metric in metrics),
        legend="".join(
            f"<div><dt>{metric}</dt>{text('dd', METRIC_TITLES[metric], f'metric.{metric}')}</div>" for metric in metrics
        ),
        chinese=chinese.replace("<", "\\u003c"),
        script=script,
    )


def _row(pair: _Pair, key: str, badge: str, rank: float) -> str:
    pictures = pair.pictures
    size = f'width="{pictures.width}" height="{pictures.height}"'
    media = f"data:image/{pictures.format.lower()};base64,"
    images = "".join(
        f'<img loading="lazy" alt="{escape(column)}" {size} src="{media}{base64.b64encode(file).decode("ascii")}">'
        for column, file in zip(pair.columns, pictures.files, strict=True)
    )
    return (
        f'<tr data-size="{pair.width}x{pair.height}" data-embedded="{pictures.format} '
        f'{pictures.width}x{pictures.height}"><th scope="row" class="name" id="{key}"><bdi>{escape(pair.name)}</bdi> '
        f'{badge}</th><td class="pictures"><button type="button" aria-labelledby="{key}">{images}</button></td>'
        f"{_cell(rank)}{''.join(map(_cell, pair.metrics.values()))}</tr>"
    )


def _cell(value: float) -> str:
    """A table cell: the value rounded for readers, and in full, as JavaScript writes it, for the script."""
    # One decimal less from 10 on: the numbers of a pair must fit side by side on a phone.
    shown = "&ndash;" if math.isnan(value) else f"{value:.{2 if abs(value) >= 10 else 3}f}"
    return f'<td data-value="{json.dumps(value)}">{shown}</td>'


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}"
