"""Loss curves: drawn by `train.py` every epoch, and by `tools/compare_loss.py` for several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from utils.runtime.errors import UserError
from utils.runtime.figures import new_figure, short
from utils.training.correlation import CORRELATIONS, Correlation
from utils.training.loss_log import LOSSES, LogLine

SUFFIXES = (".png", ".svg")

# Curves may coincide: wide lines below and dashed lines above keep all of them visible.
_STYLES = (("tab:blue", "-", 3.5), ("tab:orange", "--", 2.0), ("tab:green", ":", 2.5), ("tab:red", "-.", 1.5))

# Up to this many epochs, their means have markers; up to this many steps, the thin line is stronger.
_FEW_EPOCHS, _FEW_STEPS = 20, 200


def epoch_means(lines: Iterable[LogLine], value: Callable[[LogLine], float]) -> dict[int, float]:
    """The mean of `value` over the steps of each epoch, by epoch, in the order of the epochs."""
    values: dict[int, list[float]] = {}
    for line in lines:
        values.setdefault(line.epoch, []).append(value(line))
    return {epoch: fmean(values[epoch]) for epoch in sorted(values)}


def whole_epochs(lines: Sequence[LogLine]) -> Sequence[LogLine]:
    """The steps of complete epochs; all steps if no epoch is complete."""
    steps = Counter(line.epoch for line in lines)
    return [line for line in lines if steps[line.epoch] == line.batches] or lines


def draw_losses(
    logs: Mapping[str, Sequence[LogLine]], path: Path | str, correlations: Mapping[int, Correlation] | None = None
) -> None:
    """Draw the losses of one or several runs over the epochs: every step thin, the mean of each complete epoch bold.

    The loss has the large panel. The other `LOSSES` are below it, the fusion loss only if it differs from the loss. A
    step is drawn at the middle of its share of the epoch, a mean at the mean position of its steps.

    Args:
        logs: the label of a run -> its steps in order (`read_log`).
        path: a .png or .svg file.
        correlations: the mean correlations of each epoch of a run, for a panel; without any, it is left out.

    Raises:
        UserError: another suffix, or `path` cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a chart must be a {' or '.join(SUFFIXES)} file")

    weighted = any(line.loss != line.loss_in_grad for lines in logs.values() for line in lines)
    top, *below = [field for field in LOSSES if field != "loss_in_grad" or weighted]

    with new_figure(path, 10, 7.5, dpi=120) as figure:
        grid = figure.add_gridspec(2, len(below) + bool(correlations), height_ratios=(3, 2))
        panels = {top: figure.add_subplot(grid[0, :])}
        panels |= {field: figure.add_subplot(grid[1, column]) for column, field in enumerate(below)}

        for field, panel in panels.items():
            value = attrgetter(field)
            for (label, lines), (colour, dashes, width) in zip(logs.items(), cycle(_STYLES)):
                # Rasterised, because a long run's steps would make an SVG of many megabytes.
                steps = [_position(line) for line in lines], [value(line) for line in lines]
                linewidth, alpha = (0.6, 0.35) if len(lines) > _FEW_STEPS else (1.0, 0.6)
                panel.plot(*steps, color=colour, linewidth=linewidth, alpha=alpha, rasterized=True)
                # The mean of an incomplete epoch would look like a bend of the curve.
                whole = whole_epochs(lines)
                positions, means = (list(epoch_means(whole, of).values()) for of in (_position, value))
                marker = "o" if len(means) <= _FEW_EPOCHS else None
                style = {"color": colour, "linestyle": dashes, "linewidth": width, "marker": marker}
                panel.plot(positions, means, **style, label=label, zorder=3)
            panel.set_xlabel("epoch")
            panel.set_ylabel(LOSSES[field].chart)
            panel.grid(alpha=0.3)
        panels[top].set_title("training loss: every step (thin) and the mean of each epoch (bold)")
        # By name: matplotlib would leave out labels that begin with an underscore.
        panels[top].legend(panels[top].get_lines()[1::2], [short(label) for label in logs])
        if correlations:
            panel = figure.add_subplot(grid[1, -1])
            for name, image in CORRELATIONS.items():
                values = [getattr(row, name) for row in correlations.values()]
                panel.plot(
                    [epoch - 0.5 for epoch in correlations],
                    values,
                    label=image,
                    marker="." if len(values) == 1 else None,
                )
            panel.set_xlabel("epoch")
            panel.set_ylabel("correlation of the fused image")
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8)


def _position(line: LogLine) -> float:
    """The position of a step on the epoch axis, so that runs with different numbers of batches are comparable."""
    return line.epoch - 1 + (line.batch + 0.5) / line.batches
