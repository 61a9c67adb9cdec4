"""Resuming a run: the options that it keeps, the checkpoint it continues from, and the folder it writes to."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.runtime import processes
from utils.runtime.errors import UserError
from utils.training.checkpoint import read_checkpoint
from utils.training.run_folder import OPTIONS_NAME, RunFolder, absolute, checkpoints, make_run_folder

# The options that determine the losses. A resumed run keeps them.
SETTINGS = (
    "dataset_path", "batch_size", "lr", "step_size", "gamma", "loss_grad_weight", "grad_stages", "loss_ssim", "i2t_dim",
    "hidden_dim", "pretrain", "seed", "no_shuffle", "crop", "flip", "skip_bad",
)  # fmt: skip
# Recorded too, but may be changed.
LENGTH = "numepochs"


def settings_of(options: Mapping[str, Any]) -> dict[str, str | float | list]:
    """The options of `SETTINGS` that are set, with absolute paths; the batch size is that of all processes."""
    options = {"grad_stages": [], "crop": [], "flip": False, **options}  # runs of earlier versions lack these
    settings = {name: absolute(options[name]) for name in SETTINGS if options.get(name) is not None}
    return settings | {"batch_size": options["batch_size"] * options.get("processes", 1)}


def recorded_options(options: Mapping[str, Any]) -> dict[str, str | float | list]:
    """The options that a checkpoint records, for `Checkpoint.options`."""
    return settings_of(options) | {LENGTH: options[LENGTH]}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to resume from, and its content."""

    path: Path
    state: Mapping[str, Any]

    @property
    def run(self) -> Path | None:
        """The folder of its run; None for a file that was copied elsewhere."""
        folder = self.path.absolute().parent.parent
        return folder if self.path.absolute().parent.name == "model" and (folder / OPTIONS_NAME).is_file() else None

    @property
    def position(self) -> tuple[int, int]:
        """Epochs finished and steps made."""
        return int(self.state["epoch"]), int(self.state["step"])

    @property
    def options(self) -> dict[str, str | float | list]:
        """The recorded options (`recorded_options`); in files of earlier versions of this code only the seed."""
        options = self.state.get("options", self.state)
        if not isinstance(options, Mapping):
            return {}
        return {
            name: options[name]
            for name in (*SETTINGS, LENGTH)
            if isinstance(options.get(name), str | int | float | list)
        }


def parse_options(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, Checkpoint | None]:
    """The options of a training, and the checkpoint that ``--resume`` asks for, if any.

    Raises:
        UserError: the checkpoint cannot be read, or an option is given that would change the losses.
    """
    args = parser.parse_args(argv)
    if not args.resume:
        return args, None
    if args.resume == "auto":
        checkpoint = newest_checkpoint(args.exp_root, settings_of(vars(args)))
        if checkpoint:
            args.resume = checkpoint.path
        else:
            print(f"--resume auto: no intact checkpoint with these options under {args.exp_root}; a new run starts")
        return args, checkpoint
    if args.pretrain:
        parser.error("--pretrain cannot be used with --resume FILE, which holds the weights")
    checkpoint = Checkpoint(Path(args.resume), read_checkpoint(Path(args.resume)))
    return _options_of_run(parser, argv, checkpoint), checkpoint


def newest_checkpoint(root: Path, settings: Mapping[str, Any]) -> Checkpoint | None:
    """The newest intact checkpoint of the newest run under `root` with these settings (`settings_of`), or None.

    A damaged checkpoint is skipped, and a line says so.
    """
    runs = [path.parent for path in root.glob(f"*/*/{OPTIONS_NAME}") if _settings_in(path) == settings]
    for path in reversed(checkpoints(max(runs, key=_start))) if runs else ():
        try:
            return Checkpoint(path, read_checkpoint(path))
        except UserError as error:
            print(f"skipped a damaged checkpoint: {error}")
    return None


def _settings_in(path: Path) -> dict[str, Any]:
    """The settings in a param.json; empty if it is damaged."""
    try:
        return settings_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _start(run: Path) -> list[int]:
    """The sort key of runs by start: the numbers of <yy_mm_dd_HH_MM>[_<n>]."""
    return [int(number) for number in re.findall(r"\d+", run.name)]


def _options_of_run(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, checkpoint: Checkpoint
) -> argparse.Namespace:
    """The options in `argv`, completed by those of the run of `checkpoint`.

    The data path, the number of epochs and options outside `SETTINGS` may change.

    Raises:
        UserError: an option is given that would change the losses.
    """
    recorded = checkpoint.options
    words = []
    for name, value in recorded.items():
        if name == "batch_size":
            value //= processes.count()
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)] if value else []
        elif value is not False:
            words.append(f"--{name}" if value is True else f"--{name}={value}")
    args = parser.parse_args([*words, *(sys.argv[1:] if argv is None else argv)])
    for name, value in settings_of(vars(args)).items():
        if name != "dataset_path" and value != recorded.get(name, value):
            raise UserError(
                f"--{name} {value}: {checkpoint.path} was trained with {recorded[name]}; leave the option out, or "
                "start a new run from its weights with --pretrain"
            )
    return args


def open_run(args: argparse.Namespace, checkpoint: Checkpoint | None, batches: int) -> RunFolder | processes.Nobody:
    """The folder that process 0 writes to: that of `checkpoint`, or a new one for the options `args`.

    Raises:
        UserError: `checkpoint` was made with another number of steps per epoch than `batches`. No file is changed.
    """
    epoch, step = checkpoint.position if checkpoint else (0, 0)
    if not 0 <= step - epoch * batches < batches:
        raise UserError(
            f"{args.resume}: made {step} steps in {epoch} epochs, but {args.dataset_path} has {batches} steps per epoch"
            f" at {args.batch_size * processes.count()} pairs per step; resume with the data, the batch size and the "
            "number of processes of that run"
        )
    if checkpoint:
        where = "" if checkpoint.run else "; it is not in the folder of a run: a new one is made"
        print(f"resumes from {checkpoint.path}, {step} steps{where}")
    if not processes.is_main():
        return processes.Nobody()
    in_place = checkpoint is not None and checkpoint.run
    run = RunFolder(checkpoint.run, epoch, step) if in_place else RunFolder(make_run_folder(args.exp_root, vars(args)))
    print(f"run: {run.path}")
    return run
