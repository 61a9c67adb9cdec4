"""The folder of a training run and the files in it (film.md, section 3)."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.images import side_by_side, write_png
from utils.runtime.errors import UserError
from utils.runtime.files import flush, naming, remove_leftovers, umask
from utils.training.checkpoint import save_checkpoint
from utils.training.correlation import Correlation, read_correlations, write_correlations
from utils.training.loss_log import LOSSES, LogFile, LogLine, format_line, format_total_time, read_log

CURVE_NAME = "loss.png"
CORRELATION_NAME = "correlation.csv"
LOG_NAME = "log.txt"
OPTIONS_NAME = "param.json"
ROOT = Path(__file__).resolve().parents[2]
CODE = (ROOT / "train.py", ROOT / "net", ROOT / "utils")
_CHECKPOINT = re.compile(r"ckpt_(\d+)(?:_step_(\d+))?\.pkl")


def absolute(value: Any) -> Any:
    """The absolute path, as text, of a path; any other value unchanged."""
    return str(value.resolve()) if isinstance(value, Path) else value


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first according to their names."""
    found = [path for path in (run / "model").glob("ckpt_*.pkl") if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=_position)


def _position(path: Path) -> tuple[int, int]:
    """Epochs finished and, for a checkpoint within an epoch, steps made (else 0), by the name."""
    epoch, step = _CHECKPOINT.fullmatch(path.name).groups()
    return int(epoch), int(step or 0)


def make_run_folder(root: Path, options: Mapping[str, Any], code: Iterable[Path] = CODE) -> Path:
    """Make ``<root>/<start>_epochs_..._gamma_.../<start>/`` with param.json and code/; it is complete or absent.

    Args:
        root: the folder of the runs, `exp`.
        options: those of the run, by their official names; they are written to param.json, with absolute paths.
        code: files and folders to copy to code/.

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
    content = {key: absolute(value) for key, value in options.items()}
    (folder / OPTIONS_NAME).write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        flush(path)
    folder.chmod(0o777 & ~umask())


def _rename_to_free(folder: Path, wanted: Path) -> Path:
    """Rename `folder` to the first of <wanted>, <wanted>_2, ... that is free: runs may start within one minute."""
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
    raise UserError(f"{wanted.parent}: holds a thousand runs that started in this minute")


class RunFolder:
    """A run's folder, open for writing: log.txt, correlation.csv, TensorBoard events, checkpoints, pictures, curves.

    Use it as a context manager: the log and the events are closed at the end.
    """

    def __init__(self, path: Path, epoch: int = 0, step: int = 0) -> None:
        """Open a new run, or continue after the checkpoint of `epoch` epochs and `step` steps.

        Later steps are removed from the log, later checkpoints are renamed to ``<name>.bak``, and incomplete files of a
        killed process are removed.

        Raises:
            UserError: the folder cannot be written to, or another process is writing to it.
        """
        self.path = path
        self._log = LogFile(path / LOG_NAME)
        try:
            for folder in (path, *(child for child in path.rglob("*") if child.is_dir())):
                remove_leftovers(folder, idle=0)
            # Newest first: after a kill in between, the log may be longer than the checkpoints, never shorter.
            later = [file for file in checkpoints(path) if _position(file) > (epoch, step)]
            for file in reversed(later):
                file.replace(f"{file}.bak")
            if later:
                print(f"later checkpoints renamed to .bak: {', '.join(file.name for file in later)}")
            self._log.go_back(step)
            rows = read_correlations(path / CORRELATION_NAME)
            self._correlations = {number: row for number, row in rows.items() if number <= epoch}
            self._events = _Events(path, step)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error

    def log_step(self, line: LogLine, step: int) -> None:
        """Add a step, the `step`-th of the run, to log.txt and to the TensorBoard events."""
        self._log.write(format_line(line))
        self._events.add({name: getattr(line, name) for name in LOSSES}, step)

    def log_correlation(self, epoch: int, mean: Correlation, step: int) -> None:
        """Add the mean correlations of an epoch, whose last step is `step`, to correlation.csv and the events."""
        self._correlations[epoch] = mean
        write_correlations(self.path / CORRELATION_NAME, self._correlations)
        self._events.add(mean._asdict(), step)

    def log_learning_rate(self, lr: float, step: int) -> None:
        """Add the learning rate from the `step`-th step on to the TensorBoard events."""
        self._events.add({"lr": lr}, step)

    def log_total_time(self, seconds: float) -> None:
        """Write the total time, the last line in the log of a finished run."""
        self._log.write(format_total_time(seconds))

    def save(self, state: Mapping[str, Any], whole_epoch: bool, keep: int | None = None) -> Path:
        """Write a checkpoint to model/, and return its path.

        Its name is ``ckpt_<epochs finished>.pkl``, within an epoch ``ckpt_<epochs finished>_step_<steps made>.pkl``.

        Args:
            state: its content, with 'epoch' and 'step'.
            whole_epoch: whether it ends an epoch.
            keep: how many checkpoints to keep, this one included; older ones are removed.

        Raises:
            UserError: it cannot be written; the earlier ones are kept.
        """
        # Once the checkpoint is on the disk, the log must have all steps up to it.
        self._log.flush()
        within = "" if whole_epoch else f"_step_{state['step']:08}"
        path = self.path / "model" / f"ckpt_{state['epoch']}{within}.pkl"
        save_checkpoint(path, state)
        for old in checkpoints(self.path)[: -keep if keep else 0]:
            with naming(old):
                old.unlink()
        return path

    def refresh(self) -> None:
        """Draw the curves again, if the log holds a step."""
        from utils.training.loss_curves import draw_losses  # matplotlib is slow to import

        if (self.path / LOG_NAME).stat().st_size:
            draw_losses({"Jittor": read_log(self.path / LOG_NAME)}, self.path / CURVE_NAME, self._correlations)

    def write_picture(self, epoch: int, name: str, a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> None:
        """Write A | B | fused, (H, W) each in 0..1, as pic_fusion/ckpt_<epoch>/<name>.png."""
        images = [np.round(np.clip(image, 0, 1) * 255).astype(np.uint8) for image in (a, b, fused)]
        write_png(self.path / "pic_fusion" / f"ckpt_{epoch}" / f"{name}.png", side_by_side(*images))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self._events.close()
        self._log.close()


class _Events:
    """TensorBoard events of the steps after `step`; TensorBoard drops those that an earlier process wrote for them.

    They are written directly, not by a SummaryWriter: its thread dies on a full disk, and the training would then wait
    for it forever.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._path = folder / "events.out.tfevents"
        with naming(self._path):
            # The step is in the name so that no two parts of a run share a file.
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
        # Everything was flushed before, or the error was reported.
        with suppress(OSError):
            self._writer.close()
