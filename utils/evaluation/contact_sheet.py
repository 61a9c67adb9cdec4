"""One page that shows A, B and the fused image of every pair, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.runtime.figures import new_figure, short

PAGE_WIDTH = 11.0  # inches
IMAGE_HEIGHT = 2.1  # at most
LINE_HEIGHT = 0.2  # of a line above or below the images
DPI = 100
# A page of more pairs would be too tall for many viewers.
MAX_PAIRS = 60


class PageRow(NamedTuple):
    """A pair on the page: its name, images by column title, (H, W) or (H, W, 3) RGB in 0..255, and its metrics."""

    name: str
    images: Mapping[str, np.ndarray]
    metrics: Mapping[str, float]


def difference_panel(gap: np.ndarray, title: str) -> tuple[str, np.ndarray]:
    """A column of a row that shows the magnitude of a difference, (H, W) in gray levels: its title, and the image.

    The largest difference is white; the title says how much that is.
    """
    white = max(int(gap.max()), 1)
    return f"{title}\nwhite: {white} gray level{'s' * (white > 1)}", gap * (255 / white)


def draw_contact_sheet(rows: Sequence[PageRow], title: str, path: Path) -> None:
    """Draw the first `MAX_PAIRS` pairs to `path`, one pair per row and one image per column.

    Each row is read once, so a sequence may load its images lazily.

    Raises:
        UserError: `path` cannot be written.
    """
    shown = [rows[index] for index in range(min(len(rows), MAX_PAIRS))]
    columns = len(shown[0].images)
    of_all = f" ({len(shown)} of {len(rows)})" if len(shown) < len(rows) else ""
    shapes = [next(iter(row.images.values())).shape for row in shown]
    heights = [min(IMAGE_HEIGHT, PAGE_WIDTH / columns * height / width) for height, width, *_ in shapes]
    lines = [2 + max(title.count("\n") + 1 for title in row.images) for row in shown]  # the metrics, and a gap
    with new_figure(path, PAGE_WIDTH, sum(heights) + LINE_HEIGHT * (sum(lines) + 3), DPI) as figure:
        figure.suptitle(short(f"{title}{of_all}", 120))
        panels = figure.subplots(len(shown), columns, squeeze=False, height_ratios=heights)
        for row, line in zip(shown, panels, strict=True):
            for (column, image), panel in zip(row.images.items(), line, strict=True):
                panel.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="none")
                panel.set_title("\n".join(map(short, column.split("\n"))), fontsize=9)
                panel.set_xticks([])
                panel.set_yticks([])
            line[0].set_ylabel(short(row.name, 40), fontsize=9)
            line[-1].set_xlabel("  ".join(f"{name} {value:.2f}" for name, value in row.metrics.items()), fontsize=7)
