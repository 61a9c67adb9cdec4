"""The folder of a training run, and what stands in it (film.md, section 3)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from utils.curves import draw_losses
from utils.errors import UserError
from utils.files import atomic_path
from utils.images import side_by_side, write_png
from utils.log import LogLine, format_line, format_total_time, read_log

CURVE_NAME = "loss.png"


class RunFolder:
    """``<root>/<start>_epochs_..._gamma_.../<start>/`` with code/, model/, pic_fusion/, log.txt and param.json.

    Use it as a context manager: the log and the TensorBoard events are closed at the end.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any], code: Iterable[Path]) -> None:
        """Make the folder, write param.json and copy the files of `code`.

        Args:
            root: where runs lie, `exp`.
            settings: the options of the run, by their official names; they go to param.json.
            code: files and folders that define the run.

        Raises:
            UserError: the folder cannot be made.
        """
        start = datetime.now().strftime("%y_%m_%d_%H_%M")
        name = (
            f"{start}_epochs_{settings['numepochs']}_lr_{settings['lr']}_stepsize_{settings['step_size']}"
            f"_bs_{settings['batch_size']}_gradweight_{settings['loss_grad_weight']:g}_gamma_{settings['gamma']}"
        )
        self.path = self._make(root / name, start)
        with atomic_path(self.path / "param.json") as temporary:
            temporary.write_text(json.dumps(dict(settings), indent=2, default=str) + "\n", encoding="utf-8")
        for source in code:
            target = self.path / "code" / source.name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.parent.mkdir(exist_ok=True)
                shutil.copy2(source, target)
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(logdir=str(self.path))
        self._log = (self.path / "log.txt").open("w", encoding="utf-8", buffering=1)

    @staticmethod
    def _make(folder: Path, start: str) -> Path:
        """The first of <start>, <start>_2, ... that is not there yet: two runs may start within one minute."""
        try:
            for number in range(1, 1000):
                path = folder / (start if number == 1 else f"{start}_{number}")
                if not path.exists():
                    path.mkdir(parents=True)
                    return path
        except OSError as error:
            raise UserError(f"{folder}: the run's folder cannot be made ({error.strerror})") from error
        raise UserError(f"{folder}: holds a thousand runs of this minute")

    def log_step(self, line: LogLine, step: int) -> None:
        """Add a step to log.txt and to the TensorBoard events."""
        self._log.write(format_line(line) + "\n")
        for name in ("loss", "loss_in_grad", "lplssim_a", "lplssim_b"):
            self._events.add_scalar(name, getattr(line, name), step)

    def log_learning_rate(self, lr: float, step: int) -> None:
        """Add the learning rate of an epoch to the TensorBoard events."""
        self._events.add_scalar("lr", lr, step)

    def log_total_time(self, seconds: float) -> None:
        """Close the log of a run that reached its end."""
        self._log.write(format_total_time(seconds) + "\n")

    def refresh(self) -> None:
        """Bring the loss curve and the TensorBoard events up to date with the log, which holds a step at least."""
        self._events.flush()
        draw_losses({"Jittor": read_log(self.path / "log.txt")}, self.path / CURVE_NAME)

    def checkpoint(self, epoch: int) -> Path:
        """Where the checkpoint of an epoch (from 1) belongs."""
        return self.path / "model" / f"ckpt_{epoch}.pkl"

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
