"""Trainings that are killed, or run out of disk: the whole commands, with `--resume auto`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.test_train_and_test import ROOT, command, failure, run, samples
from utils.data.h5 import write_h5
from utils.runtime.files import is_leftover
from utils.training.checkpoint import read_checkpoint
from utils.training.loss_log import parse_lines

STEPS_PER_EPOCH = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("resume") / "x_train.h5"
    write_h5(path, samples(2 * STEPS_PER_EPOCH, (32, 48)))
    return path


def training(data: Path, root: Path, epochs: int, *more: object) -> list[object]:
    options = ("--numepochs", epochs, "--lr", 1e-3, "--step_size", 1, "--device", "cpu", "--exp_root", root)
    return ["train.py", "--dataset_path", data, *options, *more]


def logged(run_folder: Path) -> list[str]:
    """The lines of the steps in a log, without the remaining time."""
    lines = (run_folder / "log.txt").read_text().splitlines()
    return [line.split(" ETA")[0] for line in lines if line.startswith("[Epoch")]


def assert_whole(run_folder: Path) -> None:
    """Every file with its final name is complete; of the log, all lines except the last."""
    for path in run_folder.rglob("*"):
        if path.is_dir() or is_leftover(path.name):
            continue
        if path.is_relative_to(run_folder / "code"):
            assert path.read_bytes() == (ROOT / path.relative_to(run_folder / "code")).read_bytes()
        elif path.suffix == ".pkl":
            assert len(read_checkpoint(path)["model"]) == 189
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
            assert cv2.imread(str(path)) is not None
        elif path.name == "param.json":
            assert json.loads(path.read_text())["lr"] == 1e-3
        elif path.suffix == ".txt":
            *whole, _ = path.read_text().split("\n")
            assert all(len(parse_lines(line)) == 1 or line.startswith("total_time: ") for line in whole)


def moments(root: Path, rng: random.Random, last_step: int) -> Iterator[None]:
    """Sleep briefly between yields; end when the process should be killed.

    That is at a random time in the first 5 s, after a new line of the log, or while a checkpoint is written. Near the
    end of the run it is only in the first 5 s, before any step, so that the run does not end too early.
    """

    def steps() -> int:
        return max((len(logged(log.parent)) for log in root.glob("*/*/log.txt")), default=0)

    before = steps()
    kinds = ("start",) if before >= last_step - 2 else ("start", "line", "checkpoint", "checkpoint")
    kind = rng.choice(kinds)
    deadline = time.time() + (rng.uniform(0, 5) if kind == "start" else 120)
    while time.time() < deadline:
        if kind == "line" and steps() > before:
            break
        if kind == "checkpoint" and list(root.glob("*/*/model/.ckpt*.tmp.pkl")):
            break
        yield time.sleep(0.01)
    time.sleep(rng.choice((0, rng.uniform(0, 0.05), rng.uniform(0, 0.6))) if kind != "start" else 0)


@pytest.mark.parametrize(
    ("kills", "epochs"), [(3, 2), pytest.param(50, 12, marks=pytest.mark.slow)], ids=["3 kills", "50 kills"]
)
def test_a_run_that_is_killed_again_and_again(data, tmp_path, kills, epochs):
    """Its log and weights are those of an uninterrupted run, bit for bit."""
    steps = epochs * STEPS_PER_EPOCH
    done = run(*training(data, tmp_path / "whole", epochs))
    assert done.returncode == 0, done.stderr
    (whole,) = (tmp_path / "whole").glob("*/*")
    root = tmp_path / "killed"
    resumed = training(data, root, epochs, "--resume", "auto", "--save_every", 1, "--keep", 2)
    rng = random.Random(0)
    killed = 0
    while killed < kills:
        process = subprocess.Popen(
            command(*resumed), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        for _ in moments(root, rng, steps):
            if process.poll() is not None:
                break
        assert process.poll() is None, f"ended after {killed} kills: {process.communicate()[1].decode()}"
        process.kill()
        process.communicate()
        killed += 1
        for folder in root.glob("*/*"):
            assert_whole(folder)
    done = run(*resumed)
    assert done.returncode == 0, done.stderr
    # A run killed before its first checkpoint is not resumed: a new one starts.
    last = max(root.glob("*/*"), key=lambda folder: len(logged(folder)))
    assert logged(last) == logged(whole)
    assert len(logged(last)) == steps
    assert (last / "log.txt").read_text().splitlines()[-1].startswith("total_time: ")
    assert not [path for path in last.rglob("*") if is_leftover(path.name)]
    assert len(list((last / "model").iterdir())) == 2
    states = [read_checkpoint(folder / "model" / f"ckpt_{epochs}.pkl") for folder in (whole, last)]
    for part in (lambda s: s["model"], lambda s: s["optimizer"]["m"], lambda s: s["optimizer"]["v"]):
        first, second = map(part, states)
        assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 40 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", path], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_one_line_and_the_former_checkpoint_loads(data, disk):
    """The disk has room for one checkpoint of 25 MB, not for two."""
    line = failure(run(*training(data, disk / "exp", 3, "--save_every", 1)))
    (folder,) = (disk / "exp").glob("*/*")
    second = folder / "model" / "ckpt_1.pkl"
    assert line == (
        f"error: {second}: cannot be written (No space left on device); free some space there, then run it again"
    )
    assert_whole(folder)
    (first,) = (folder / "model").iterdir()
    assert read_checkpoint(first)["step"] == 1


@pytest.mark.parametrize("free_kilobytes", [0, 15, 1100])
def test_a_full_disk_is_one_line_for_h5(disk, free_kilobytes):
    """Without our check, HDF5 would end the process, wherever in the file the disk is full."""
    (disk / "rest").write_bytes(bytes((40 * 1024 - free_kilobytes) * 1024))
    code = (
        "import sys; from pathlib import Path; from utils.runtime.cli import run_command; "
        "from utils.data.h5 import write_h5; "
        "from tests.test_train_and_test import samples; "
        f"sys.exit(run_command(lambda _: write_h5(Path({str(disk / 'x.h5')!r}), samples(4))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    line = f"error: {disk / 'x.h5'}: cannot be written (No space left on device); free some space there"
    assert done.stderr.splitlines() == [f"{line}, then run it again"]
    assert [path.name for path in disk.iterdir()] == ["rest"]
