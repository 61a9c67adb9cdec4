"""The format of a training log: written by `train.py` and the PyTorch twin, read to draw and compare curves.

Logs of the official code have the same format (film.md, section 3), so one parser reads all three.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from utils.runtime.errors import UserError
from utils.runtime.files import naming

logger = logging.getLogger(__name__)


class LossName(NamedTuple):
    """The names of a loss in the log and in charts."""

    log: str
    chart: str


# The losses of a step by their fields in `LogLine`, in the order of the log.
LOSSES = {
    "loss": LossName("loss", "loss"),
    "loss_in_grad": LossName("loss_in_grad", "fusion loss"),
    "lplssim_a": LossName("lplssimA", "Lp + SSIM to A"),
    "lplssim_b": LossName("lplssimB", "Lp + SSIM to B"),
}

_NUMBER = r"(-?(?:\d+\.\d+|inf)|nan)"
# The remaining time also ends at a bracket: if a run was killed within a line, a resumed run may continue that line.
_LINE = re.compile(
    r"\[Epoch (\d+)/(\d+)\] \[Batch (\d+)/(\d+)\] "
    + "".join(rf"\[{name.log}: {_NUMBER}\] " for name in LOSSES.values())
    + r"ETA: ([^\[\r\n]*)"
)


@dataclass(frozen=True)
class LogLine:
    """One training step in the log.

    Epochs count from 1, batches from 0. The losses are those of film.md section 2: `loss` is what training minimises,
    `loss_in_grad` the fusion loss, `lplssim_a` and `lplssim_b` the Lp+SSIM terms without their weight. `eta` is the
    result of `eta_text`.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    loss_in_grad: float
    lplssim_a: float
    lplssim_b: float
    eta: str


def eta_text(epoch: int, epochs: int, batch: int, batches: int, batch_seconds: float) -> str:
    """The remaining time as in the official code: the batches left, this one included, times `batch_seconds`.

    The format is h:mm:ss.ffffff, cut to 10 characters.
    """
    left = epochs * batches - ((epoch - 1) * batches + batch)
    return str(timedelta(seconds=left * batch_seconds))[:10]


def format_line(line: LogLine) -> str:
    """The log line of one step, without the line break."""
    losses = " ".join(f"[{name.log}: {getattr(line, field):f}]" for field, name in LOSSES.items())
    return f"[Epoch {line.epoch}/{line.epochs}] [Batch {line.batch}/{line.batches}] {losses} ETA: {line.eta}"


def format_total_time(seconds: float) -> str:
    """The last line in the log of a finished run, without the line break."""
    return f"total_time: {seconds}"


def parse_lines(text: str) -> list[LogLine]:
    """All complete log lines in `text`, in order; other text is ignored."""
    return [LogLine(*map(int, m.groups()[:4]), *map(float, m.groups()[4:8]), m[9]) for m in _LINE.finditer(text)]


def read_log(path: Path | str) -> list[LogLine]:
    """The steps of a log, one line for each epoch and batch, in order.

    An incomplete line (the run was killed or is still writing) is ignored. If a resumed run repeats steps, their last
    lines are used, and a warning says how many were replaced.

    Raises:
        UserError: the file cannot be read, or holds no log line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); a training log was expected") from error
    lines = parse_lines(text)
    if not lines:
        raise UserError(
            f"{path}: holds no line of a training log; '[Epoch 1/150] [Batch 0/541] [loss: ...' was expected"
        )
    steps = {(line.epoch, line.batch): line for line in lines}
    if replaced := len(lines) - len(steps):
        logger.warning("%s: steps replaced by a resumed run: %d", path, replaced)
    return [steps[step] for step in sorted(steps)]


class LogFile:
    """A log that one process at a time writes to, one write per line: a killed run leaves complete lines.

    Raises:
        UserError: it cannot be written, or another process is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with naming(path):
            self._file = path.open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(f"{path}: another process is writing to this run; wait until it ends, or end it") from error
        except OSError:
            pass  # a file system without locks

    def go_back(self, step: int) -> None:
        """Remove everything after the `step`-th step of the run: later steps, an incomplete line, the total time.

        Raises:
            UserError: the log cannot be cut.
        """
        # Latin-1: one character per byte, whatever a crash has left in the file.
        text = self.path.read_bytes().decode("latin-1")
        last = end = 0
        for match in _LINE.finditer(text):
            epoch, _, batch, batches = map(int, match.groups()[:4])
            number = (epoch - 1) * batches + batch + 1
            if number <= step and text[match.end() : match.end() + 1] == "\n":
                last, end = number, match.end() + 1
        if last < step:
            logger.warning("%s: ends at step %d, the checkpoint at step %d", self.path, last, step)
        with naming(self.path):
            self._file.truncate(end)

    def write(self, line: str) -> None:
        """Add a line, given without the line break.

        Raises:
            UserError: the disk is full.
        """
        data = f"{line}\n".encode()
        with naming(self.path):
            while data:
                data = data[self._file.write(data) :]

    def flush(self) -> None:
        """Wait until all lines are on the disk.

        Raises:
            UserError: the disk is full.
        """
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and release its lock."""
        # Unlock explicitly: child processes (Jittor forks some) may keep the file open, and with it the lock.
        with suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
