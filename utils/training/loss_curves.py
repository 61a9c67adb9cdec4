"""Loss curves: what `train.py` draws every epoch, and `tools/compare_loss.py` for several runs at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path
from utils.training.loss_log import LOSSES, LogLine

SUFFIXES = (".png", ".svg")

# Curves that agree lie on each other: the wider ones below and the dashed ones above keep all of them in sight.
_STYLES = (("tab:blue", "-", 3.5), ("tab:orange", "--", 2.0), ("tab:green", ":", 2.5), ("tab:red", "-.", 1.5))

# Up to so many epochs (steps) the single means (steps) can be told apart, and are drawn to be seen.
_FEW_EPOCHS, _FEW_STEPS = 20, 200


def epoch_means(lines: Iterable[LogLine], value: Callable[[LogLine], float]) -> dict[int, float]:
    """The mean of `value` over the steps of each epoch, by epoch, in the order of the epochs."""
    values: dict[int, list[float]] = {}
    for line in lines:
        values.setdefault(line.epoch, []).append(value(line))
    return {epoch: fmean(values[epoch]) for epoch in sorted(values)}


def whole_epochs(lines: Sequence[LogLine]) -> Sequence[LogLine]:
    """The steps of the epochs that have all of theirs; all steps where no epoch has."""
    steps = Counter(line.epoch for line in lines)
    return [line for line in lines if steps[line.epoch] == line.batches] or lines


def draw_losses(logs: Mapping[str, Sequence[LogLine]], path: Path | str) -> None:
    """Draw the losses of one or several runs over the epochs: every step thin, the mean of each whole epoch bold.

    `logs` maps the label of a run to its steps in order (`read_log` of loss_log.py). The loss has the large panel; the
    others of `LOSSES` stand below it, the fusion loss only where it is not the loss itself. A step is drawn at the
    middle of its share of the epoch, a mean at the middle of the steps that it is the mean of.

    Args:
        path: ends in .png or .svg, and is written whole or not at all.

    Raises:
        UserError: another suffix, or `path` cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a chart ends in {' or '.join(SUFFIXES)}")

    weighted = any(line.loss != line.loss_in_grad for lines in logs.values() for line in lines)
    top, *below = [field for field in LOSSES if field != "loss_in_grad" or weighted]

    # Not pyplot: its figures and its choice of a backend are global to the process.
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(below), height_ratios=(3, 2))
    panels = {top: figure.add_subplot(grid[0, :])}
    panels |= {field: figure.add_subplot(grid[1, column]) for column, field in enumerate(below)}

    for field, panel in panels.items():
        value = attrgetter(field)
        for (label, lines), (colour, dashes, width) in zip(logs.items(), cycle(_STYLES)):
            # Rasterised, because a long run's steps would make an SVG of many megabytes.
            panel.plot(
                [_position(line) for line in lines],
                [value(line) for line in lines],
                color=colour,
                linewidth=0.6 if len(lines) > _FEW_STEPS else 1.0,
                alpha=0.35 if len(lines) > _FEW_STEPS else 0.6,
                rasterized=True,
            )
            # The mean of a few batches, beside means of all, would look like a turn of the curve.
            whole = whole_epochs(lines)
            means = epoch_means(whole, value)
            panel.plot(
                list(epoch_means(whole, _position).values()),
                list(means.values()),
                color=colour,
                linestyle=dashes,
                linewidth=width,
                marker="o" if len(means) <= _FEW_EPOCHS else None,
                label=label,
                zorder=3,
            )
        panel.set_xlabel("epoch")
        panel.set_ylabel(LOSSES[field].chart)
        panel.grid(alpha=0.3)
    panels[top].set_title("training loss: every step (thin) and the mean of each epoch (bold)")
    panels[top].legend()

    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _position(line: LogLine) -> float:
    """Where a step stands on the axis of epochs: runs with other numbers of batches an epoch share that axis."""
    return line.epoch - 1 + (line.batch + 0.5) / line.batches
