"""The folder of a run: what a kill between two steps of a checkpoint leaves, and where a run resumes."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from utils.runtime.errors import UserError
from utils.runtime.files import is_leftover
from utils.training.checkpoint import read_checkpoint
from utils.training.loss_log import LogLine, read_log
from utils.training.resume import newest_checkpoint, settings_of
from utils.training.run_folder import RunFolder, make_run_folder

OPTIONS = {
    "dataset_path": Path("x.h5"),
    "numepochs": 3,
    "batch_size": 2,
    "lr": 1e-4,
    "step_size": 1,
    "gamma": 0.6,
    "loss_grad_weight": 20,
    "loss_ssim": 0,
    "i2t_dim": 32,
    "hidden_dim": 256,
    "pretrain": None,
    "seed": 0,
    "no_shuffle": False,
    "exp_root": Path("exp"),
}
SETTINGS = settings_of(OPTIONS)
BATCHES = 2


def state(step: int) -> dict[str, object]:
    return {"model": {"w": np.full(1000, step, np.float32)}, "epoch": step // BATCHES, "step": step}


def log_step(run: RunFolder, step: int) -> None:
    epoch, batch = divmod(step - 1, BATCHES)
    run.log_step(LogLine(epoch + 1, 3, batch, BATCHES, 1.0, 1.0, 2.0, 2.0, "0:00:01"), step)


def train(run: RunFolder, first: int, last: int, keep: int | None = None) -> None:
    """Make the steps `first` to `last`, a checkpoint after each."""
    for step in range(first, last + 1):
        log_step(run, step)
        run.save(state(step), step % BATCHES == 0, keep)


@pytest.fixture
def path(tmp_path) -> Path:
    return make_run_folder(tmp_path / "exp", OPTIONS, [Path(__file__)])


class Killed(BaseException):
    """Simulates the end of the process: nothing after it is executed."""


class Death:
    """Kills the process, as it were, at its `last`-th operation on files; from then on none is carried out."""

    OPERATIONS = (
        (os, "fsync"),
        (os, "close"),
        (tempfile, "mkstemp"),
        (Path, "chmod"),
        (Path, "replace"),
        (Path, "unlink"),
        (Path, "mkdir"),
    )

    def __init__(self, monkeypatch, last: int) -> None:
        self.left = last
        for owner, name in self.OPERATIONS:
            monkeypatch.setattr(owner, name, self._deadly(getattr(owner, name)))

    def _deadly(self, operation):
        def call(*args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return operation(*args, **kwargs)

        return call


@pytest.mark.parametrize("step", [3, 4])
def test_a_kill_between_any_two_operations_of_a_checkpoint(path, tmp_path, monkeypatch, step):
    """The former checkpoint or the new one is the newest, both intact; the run resumes after it with a complete log."""
    with RunFolder(path) as run:
        train(run, 1, step - 1, keep=2)
    survived, kills = False, 0
    while not survived:
        with RunFolder(path, (step - 1) // BATCHES, step - 1) as run:
            assert not [file for file in path.rglob("*") if is_leftover(file.name)]
            log_step(run, step)
            with monkeypatch.context() as context:
                Death(context, kills)
                try:
                    run.save(state(step), step % BATCHES == 0, keep=2)
                    survived = True
                except Killed:
                    kills += 1
        checkpoints = list((path / "model").glob("ckpt_*.pkl"))
        assert 2 <= len(checkpoints) <= 3
        for checkpoint in checkpoints:
            assert len(read_checkpoint(checkpoint)["model"]["w"]) == 1000
        newest = newest_checkpoint(tmp_path / "exp", SETTINGS)
        assert newest.state["step"] in ((step,) if survived else (step - 1, step))
        assert newest.run == path
        with RunFolder(path, newest.state["epoch"], newest.state["step"]):
            pass
        assert len(read_log(path / "log.txt")) == newest.state["step"]
        for other in (path / "model").glob("*.bak"):
            other.unlink()
    # flush the log; make, close, flush, chmod, rename the temporary file; flush the folder; remove the oldest
    assert kills >= 8
    assert len(list((path / "model").iterdir())) == 2


def test_a_damaged_checkpoint_is_passed_over(path, tmp_path, capsys):
    with RunFolder(path) as run:
        train(run, 1, 3)
    assert sorted(file.name for file in (path / "model").iterdir()) == [
        "ckpt_0_step_00000001.pkl",
        "ckpt_1.pkl",
        "ckpt_1_step_00000003.pkl",
    ]
    newest = path / "model" / "ckpt_1_step_00000003.pkl"
    newest.write_bytes(newest.read_bytes()[:-1])
    found = newest_checkpoint(tmp_path / "exp", SETTINGS)
    assert found.path.name == "ckpt_1.pkl"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"skipped a damaged checkpoint: {newest}")
    with RunFolder(path, 1, 2) as run:
        # it does not count as the newest of the two that stay
        train(run, 3, 3, keep=2)
    assert sorted(file.name for file in (path / "model").glob("*.pkl")) == ["ckpt_1.pkl", "ckpt_1_step_00000003.pkl"]


def test_the_newest_run_with_the_same_settings_is_taken(path, tmp_path):
    root = tmp_path / "exp"
    other = make_run_folder(root, OPTIONS | {"seed": 1}, [])
    assert newest_checkpoint(root, SETTINGS) is None
    with RunFolder(path) as run, RunFolder(other) as another:
        train(run, 1, 1)
        train(another, 1, 2)
    assert newest_checkpoint(root, SETTINGS).run == path
    # The number of epochs may change, and two runs may start within one minute.
    again = make_run_folder(root, OPTIONS, [])
    with RunFolder(again) as run:
        train(run, 1, 1)
    assert newest_checkpoint(root, SETTINGS).run == again
    assert newest_checkpoint(root, SETTINGS | {"lr": 1e-3}) is None


def test_epochs_are_ordered_as_numbers(path, tmp_path):
    with RunFolder(path) as run:
        for step in (4, 20, 21):
            run.save(state(step), step % BATCHES == 0)
    assert newest_checkpoint(tmp_path / "exp", SETTINGS).path.name == "ckpt_10_step_00000021.pkl"
    (path / "model" / "ckpt_10_step_00000021.pkl").unlink()
    assert newest_checkpoint(tmp_path / "exp", SETTINGS).path.name == "ckpt_10.pkl"


def test_an_earlier_checkpoint_sets_later_ones_aside(path):
    with RunFolder(path) as run:
        train(run, 1, 4)
    with RunFolder(path, 1, 2) as run:
        assert len(read_log(path / "log.txt")) == 2
    assert sorted(file.name for file in (path / "model").iterdir()) == [
        "ckpt_0_step_00000001.pkl",
        "ckpt_1.pkl",
        "ckpt_1_step_00000003.pkl.bak",
        "ckpt_2.pkl.bak",
    ]


def test_a_run_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        make_run_folder(tmp_path / "exp", OPTIONS, [Path(__file__)])
    assert not list((tmp_path / "exp").iterdir())


def test_events_of_dropped_steps_are_purged(path):
    """TensorBoard drops the steps from a START on; after it every step is listed once."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    with RunFolder(path) as run:
        train(run, 1, 3)
    with RunFolder(path, 1, 2) as run:
        train(run, 3, 4)
    steps: dict[int, float] = {}
    for file in sorted(path.glob("events.out.*"), key=lambda file: int(file.name.rsplit("_", 1)[1])):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                steps = {step: loss for step, loss in steps.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "loss":
                    assert event.step not in steps
                    steps[event.step] = value.simple_value
    assert list(steps) == [1, 2, 3, 4]
