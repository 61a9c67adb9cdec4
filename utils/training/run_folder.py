"""The folder of a training run, what stands in it (film.md, section 3), and how a run is taken up again."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from utils.data.images import side_by_side, write_png
from utils.runtime.errors import UserError
from utils.runtime.files import flush, naming, remove_leftovers, umask
from utils.training.checkpoint import read_checkpoint, save_checkpoint
from utils.training.loss_curves import draw_losses
from utils.training.loss_log import LOSSES, LogFile, LogLine, format_line, format_total_time, read_log

CURVE_NAME = "loss.png"
LOG_NAME = "log.txt"
OPTIONS_NAME = "param.json"
# The options that decide the losses. A run that is taken up keeps them.
SETTINGS = (
    "dataset_path",
    "batch_size",
    "lr",
    "step_size",
    "gamma",
    "loss_grad_weight",
    "grad_stages",
    "loss_ssim",
    "i2t_dim",
    "hidden_dim",
    "pretrain",
    "seed",
    "no_shuffle",
    "crop",
    "flip",
    "skip_bad",
)
# Kept too, but free to change.
LENGTH = "numepochs"
_CHECKPOINT = re.compile(r"ckpt_(\d+)(?:_step_(\d+))?\.pkl")


def settings_of(options: Mapping[str, Any]) -> dict[str, str | float | list]:
    """The options that decide the losses: those that are set, paths whole; the batch is that of all processes."""
    options = {"grad_stages": [], "crop": [], "flip": False, **options}  # runs of earlier versions know none of these
    settings = {name: _plain(options[name]) for name in SETTINGS if options.get(name) is not None}
    return settings | {"batch_size": options["batch_size"] * options.get("processes", 1)}


def _plain(value: Any) -> Any:
    return str(value.resolve()) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that a training goes on from, and what it holds."""

    path: Path
    state: Mapping[str, Any]

    @property
    def run(self) -> Path | None:
        """The folder of the run that it lies in; None for one that was copied elsewhere."""
        folder = self.path.absolute().parent.parent
        return folder if self.path.absolute().parent.name == "model" and (folder / OPTIONS_NAME).is_file() else None

    @property
    def options(self) -> dict[str, str | float | list]:
        """The options that its training goes on with; in a file of an earlier version of this code only the seed."""
        options = self.state.get("options", self.state)
        if not isinstance(options, Mapping):
            return {}
        return {
            name: options[name]
            for name in (*SETTINGS, LENGTH)
            if isinstance(options.get(name), str | int | float | list)
        }


def newest_checkpoint(root: Path, settings: Mapping[str, Any]) -> Checkpoint | None:
    """The newest whole checkpoint of the newest run under `root` that has these settings (`settings_of`).

    A checkpoint that is damaged is passed over, and a line says so.
    """
    runs = [path.parent for path in root.glob(f"*/*/{OPTIONS_NAME}") if _settings_in(path) == settings]
    for path in reversed(_checkpoints(max(runs, key=_start))) if runs else ():
        try:
            return Checkpoint(path, read_checkpoint(path))
        except UserError as error:
            print(f"passed over: {error}")
    return None


def _settings_in(path: Path) -> dict[str, Any]:
    """The settings in a param.json; none where it is damaged."""
    try:
        return settings_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _start(run: Path) -> list[int]:
    """What orders runs by their start: the numbers of <yy_mm_dd_HH_MM>[_<n>]."""
    return [int(number) for number in re.findall(r"\d+", run.name)]


def _checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run by their names, oldest first."""
    found = [path for path in (run / "model").glob("ckpt_*.pkl") if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=_position)


def _position(path: Path) -> tuple[int, int]:
    """Epochs finished, and steps made within the next one's checkpoint (0 for that of a whole epoch), by the name."""
    epoch, step = _CHECKPOINT.fullmatch(path.name).groups()
    return int(epoch), int(step or 0)


def make_run_folder(root: Path, options: Mapping[str, Any], code: Iterable[Path]) -> Path:
    """Make ``<root>/<start>_epochs_..._gamma_.../<start>/`` with param.json and code/; it is whole or not there.

    Args:
        root: where runs lie, `exp`.
        options: those of the run, by their official names; they go to param.json, paths in full.
        code: files and folders that define the run.

    Raises:
        UserError: the folder cannot be made.
    """
    start = datetime.now().strftime("%y_%m_%d_%H_%M")
    name = (
        f"{start}_epochs_{options['numepochs']}_lr_{options['lr']}_stepsize_{options['step_size']}"
        f"_bs_{options['batch_size']}_gradweight_{options['loss_grad_weight']:g}_gamma_{options['gamma']}"
    )
    with naming(root / name):
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root)
        temporary = Path(tempfile.mkdtemp(prefix=f".{start}.", suffix=".tmp", dir=root))
        try:
            _fill(temporary, options, code)
            (root / name).mkdir(exist_ok=True)
            return _rename_to_free(temporary, root / name / start)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _fill(folder: Path, options: Mapping[str, Any], code: Iterable[Path]) -> None:
    for source in code:
        target = folder / "code" / source.name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    content = {key: _plain(value) for key, value in options.items()}
    (folder / OPTIONS_NAME).write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        flush(path)
    folder.chmod(0o777 & ~umask())


def _rename_to_free(folder: Path, wanted: Path) -> Path:
    """Rename `folder` to the first of <wanted>, <wanted>_2, ... that is not there: runs may start within one minute."""
    for number in range(1, 1000):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        if not path.exists():
            try:
                folder.rename(path)
            except OSError:
                if path.exists():  # another run was faster
                    continue
                raise
            flush(path.parent)
            return path
    raise UserError(f"{wanted.parent}: holds a thousand runs of this minute")


class RunFolder:
    """A run's folder, open for writing: log.txt, TensorBoard events, checkpoints, pictures, the loss curve.

    Use it as a context manager: the log and the events are closed at the end.
    """

    def __init__(self, path: Path, epoch: int = 0, step: int = 0) -> None:
        """Open a new run, or go on behind the checkpoint of so many epochs and steps: later steps leave the log.

        Later checkpoints are set aside as ``<name>.bak``, and what a killed process was writing is removed.

        Raises:
            UserError: the folder cannot be written to, or another process is writing to it.
        """
        self.path = path
        self._log = LogFile(path / LOG_NAME)
        try:
            for folder in (path, *(child for child in path.rglob("*") if child.is_dir())):
                remove_leftovers(folder, idle=0)
            # The newest first: a kill between two of them leaves the log longer than the checkpoints, never shorter.
            later = [file for file in _checkpoints(path) if _position(file) > (epoch, step)]
            for file in reversed(later):
                file.replace(f"{file}.bak")
            if later:
                print(f"later checkpoints, now called .bak: {', '.join(file.name for file in later)}")
            self._log.go_back(step)
            self._events = _Events(path, step)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error

    def log_step(self, line: LogLine, step: int) -> None:
        """Add a step, the `step`-th of the run, to log.txt and to the TensorBoard events."""
        self._log.write(format_line(line))
        self._events.add({name: getattr(line, name) for name in LOSSES}, step)

    def log_learning_rate(self, lr: float, step: int) -> None:
        """Add the learning rate from the `step`-th step on to the TensorBoard events."""
        self._events.add({"lr": lr}, step)

    def log_total_time(self, seconds: float) -> None:
        """Close the log of a run that reached its end."""
        self._log.write(format_total_time(seconds))

    def save(self, state: Mapping[str, Any], whole_epoch: bool, keep: int | None = None) -> Path:
        """Write a checkpoint to model/, and return its path.

        It is called ``ckpt_<epochs finished>.pkl``, within an epoch ``ckpt_<epochs finished>_step_<steps made>.pkl``.

        Args:
            state: what it holds; 'epoch' and 'step' among it.
            whole_epoch: whether it ends an epoch.
            keep: how many checkpoints may stay, this one included; older ones are then removed.

        Raises:
            UserError: it cannot be written; the former ones are still there.
        """
        # A checkpoint on the disk vouches for the steps of the log up to it.
        self._log.flush()
        within = "" if whole_epoch else f"_step_{state['step']:08}"
        path = self.path / "model" / f"ckpt_{state['epoch']}{within}.pkl"
        save_checkpoint(path, state)
        for old in _checkpoints(self.path)[: -keep if keep else 0]:
            with naming(old):
                old.unlink()
        return path

    def refresh(self) -> None:
        """Draw the loss curve of the log anew, if it holds a step."""
        if (self.path / LOG_NAME).stat().st_size:
            draw_losses({"Jittor": read_log(self.path / LOG_NAME)}, self.path / CURVE_NAME)

    def write_picture(self, epoch: int, name: str, a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> None:
        """Write A | B | fused, (H, W) each in 0..1, as pic_fusion/ckpt_<epoch>/<name>.png."""
        images = [np.round(np.clip(image, 0, 1) * 255).astype(np.uint8) for image in (a, b, fused)]
        write_png(self.path / "pic_fusion" / f"ckpt_{epoch}" / f"{name}.png", side_by_side(*images))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.close()
        self._log.close()


class _Events:
    """TensorBoard events of a run behind its first `step` steps; TensorBoard forgets those it had of later steps.

    They are written at once and by the thread that computes: the SummaryWriter's own thread dies on a full disk, and
    the training then waits for it for ever.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._path = folder / "events.out.tfevents"
        with naming(self._path):
            # With the step in the name no two parts of a run share a file.
            self._writer = EventsWriter(str(folder / "events"), f".from_step_{step}")
        if step:
            self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: Mapping[str, float], step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._write(Event(step=step, summary=summary))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with naming(self._path):
            self._writer.write_event(event)
            self._writer.flush()

    def close(self) -> None:
        # All was flushed already, unless that failed; the failure was told then.
        with suppress(OSError):
            self._writer.close()
