"""Compare the training losses of runs: one chart, the largest relative gaps, and the numbers as tables.

    python -m tools.compare_loss log/jittor.txt log/torch.txt --labels Jittor PyTorch --out images/loss

reads logs of `train.py`, `tools/torch_twin.py` or the official code. It writes `images/loss.png`, `.svg`, `_steps.csv`
and `_epochs.csv`. Gaps are relative to the first log. A single log gets a chart and tables too.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from utils.runtime.cli import HelpFormatter, path_type, run_command
from utils.runtime.errors import UserError
from utils.runtime.files import require_separate, write_csv
from utils.training.loss_curves import SUFFIXES, draw_losses, epoch_means
from utils.training.loss_log import LOSSES, LogLine, read_log

Value = Callable[[LogLine], float]
Step = tuple[int, int, int]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare_loss", description=__doc__.splitlines()[0], formatter_class=HelpFormatter
    )
    add = parser.add_argument
    add("logs", type=path_type, nargs="+", metavar="LOG", help="log.txt of a run; the first is the reference")
    add("--labels", nargs="+", metavar="LABEL", help="names of the runs, one per log (default: the file names)")
    add(
        "--out",
        type=path_type,
        default=Path("images/loss"),
        metavar="PREFIX",
        help="start of the names of the output files",
    )
    return parser


@dataclass(frozen=True)
class Gaps:
    """Relative gaps |other - reference| / |reference| of one loss over the steps that both runs have.

    `steps` is by (epoch, batch, batches per epoch); `epochs` is by epoch, between the means over the common steps.
    """

    steps: dict[Step, float]
    epochs: dict[int, float]


def compare(reference: Sequence[LogLine], other: Sequence[LogLine], value: Value) -> Gaps:
    """The gaps of `other` to `reference` in one of the values of a log line.

    Steps are common if epoch, batch and the number of batches per epoch agree; otherwise their samples differ.
    """
    theirs, ours = ({_step(line): line for line in lines} for lines in (reference, other))
    common = [step for step in theirs if step in ours]
    their_means, our_means = (epoch_means([lines[step] for step in common], value) for lines in (theirs, ours))
    return Gaps(
        {step: _relative(value(ours[step]), value(theirs[step])) for step in common},
        {epoch: _relative(our_means[epoch], mean) for epoch, mean in their_means.items()},
    )


def _step(line: LogLine) -> Step:
    return line.epoch, line.batch, line.batches


def _relative(value: float, reference: float) -> float:
    """The relative gap; infinite if it is undefined (a loss that is not finite, a reference of 0)."""
    if value == reference:
        return 0.0
    gap = abs(value - reference) / abs(reference) if reference else math.inf
    return math.inf if math.isnan(gap) else gap


def report(logs: Mapping[str, Sequence[LogLine]]) -> str:
    """The printed text: the runs, and the largest gaps of each to the first."""
    wide = max(map(len, logs))
    text = []
    for label, lines in logs.items():
        means = list(epoch_means(lines, attrgetter("loss")).values())
        text.append(
            f"{label:{wide}}  {len(lines)} steps in {len(means)} epochs, "
            f"mean loss of the first {means[0]:.6f}, of the last {means[-1]:.6f}"
        )
    reference, *others = logs
    for label in others:
        gaps = {field: compare(logs[reference], logs[label], attrgetter(field)) for field in LOSSES}
        common = gaps["loss"].steps
        if not common:
            text.append(f"\n{label} and {reference} have no step in common")
            continue
        text.append(f"\nlargest relative gap of {label} to {reference}, over {len(common)} common steps:")
        text.append(f"{'':16}{'of a step':34}of the mean of an epoch")
        for field, gap in gaps.items():
            step = max(gap.steps, key=gap.steps.__getitem__)
            epoch = max(gap.epochs, key=gap.epochs.__getitem__)
            at_step = f"{gap.steps[step]:.3e} (epoch {step[0]}, batch {step[1]})"
            text.append(f"{LOSSES[field].chart:16}{at_step:34}{gap.epochs[epoch]:.3e} (epoch {epoch})")
    return "\n".join(text)


def write_tables(logs: Mapping[str, Sequence[LogLine]], steps_path: Path, epochs_path: Path) -> None:
    """Write every loss of every run, and its gap to the first run, by step and by epoch (CSV).

    A cell is empty if a run lacks the step or epoch, or has no gap there. An epoch's mean is over all its steps in the
    run; its gap is between the means over the common steps.
    """
    reference, *others = logs
    by_step: dict[str, dict[Step, float]] = {}
    by_epoch: dict[str, dict[int, float]] = {}
    for field in LOSSES:
        value = attrgetter(field)
        for label, lines in logs.items():
            by_step[f"{field} {label}"] = {_step(line): value(line) for line in lines}
            by_epoch[f"{field} {label}"] = epoch_means(lines, value)
        for label in others:
            gaps = compare(logs[reference], logs[label], value)
            by_step[f"{field} gap {label}"] = gaps.steps
            by_epoch[f"{field} gap {label}"] = gaps.epochs
    _write_table(steps_path, ("epoch", "batch", "batches"), by_step)
    _write_table(
        epochs_path, ("epoch",), {name: {(at,): x for at, x in means.items()} for name, means in by_epoch.items()}
    )


def _write_table(path: Path, key_names: Sequence[str], columns: Mapping[str, Mapping[tuple[int, ...], float]]) -> None:
    keys = sorted(set().union(*columns.values()))
    rows = ([*key, *(column.get(key, "") for column in columns.values())] for key in keys)
    write_csv(path, [[*key_names, *columns], *rows])


def label_logs(paths: Sequence[Path], labels: Sequence[str] | None) -> list[str]:
    """A name for each log: the given labels, else the file names, or the full paths if two file names are equal.

    Raises:
        UserError: not one label per log, or two equal labels.
    """
    if labels is None:
        stems = [path.stem for path in paths]
        labels = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    if len(labels) != len(paths):
        raise UserError(f"--labels: {len(labels)} for {len(paths)} logs; expected one per log")
    if len(set(labels)) < len(labels):
        raise UserError(f"--labels: {', '.join(labels)}: every log needs a different name")
    return list(labels)


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logs = dict(zip(label_logs(args.logs, args.labels), map(read_log, args.logs), strict=True))
    charts = [Path(f"{args.out}{suffix}") for suffix in SUFFIXES]
    tables = [Path(f"{args.out}_{rows}.csv") for rows in ("steps", "epochs")]
    require_separate([*charts, *tables], args.logs)
    for chart in charts:
        draw_losses(logs, chart)
    write_tables(logs, *tables)
    print(report(logs))
    print("\nwritten:", *charts, *tables)


if __name__ == "__main__":
    sys.exit(run_command(main))
