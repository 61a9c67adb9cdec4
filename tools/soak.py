"""Train and test for a long time, and check that memory, open files and speed stay the same.

    python -m tools.soak            # 200 epochs on two tiny pairs, 5,000 images through test.py
    python -m tools.soak --short    # the same in a minute

The scripts run as a user runs them. Their processes are sampled from outside, from /proc.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from net.shapes import TEXT_SHAPE
from utils.data.h5 import GROUPS, Sample, write_h5
from utils.runtime import programs
from utils.runtime.cli import HelpFormatter, run_command
from utils.runtime.errors import UserError
from utils.training.loss_log import parse_lines

ROOT = Path(__file__).resolve().parents[1]
SIZE = (48, 64)
# Epochs, images, and the share by which memory may grow. In a short run, that includes the loss curves of nine epochs
# (4 %): matplotlib's figures hold reference cycles, which Python's collector frees together.
LONG = (200, 5000, 0.02)
SHORT = (20, 240, 0.05)
# By default glibc raises the size up to which blocks come from its heap. Fragmentation then makes the heap grow in the
# first tens of steps (in eight trainings by 30 to 63 %), without a leak. With a fixed threshold, freed large blocks
# return to the system, and the numbers show what the process holds: ten short runs agreed to 3 %.
FIXED_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
WARM_UP = 0.25  # this first share of a phase's samples does not count: kernels are loaded, buffers grow
COMPARED = 0.3  # of the other samples, the first such share is compared with the last
SLOWING = 0.25  # allowed growth of processor time per unit; wall time would depend on other processes
INTERVAL = 0.2  # seconds between two samples
ENDING = 5  # in this many samples before its end, a process may have begun to close its files


@dataclass(frozen=True)
class Sampled:
    """A process at one moment: resident memory in MiB, open files, processor seconds, units of work done."""

    memory: float
    files: int
    seconds: float
    done: int


def sample(process: int, done: int) -> Sampled | None:
    """A process that has done this many units, as /proc shows it; None once it has ended."""
    folder = Path("/proc") / str(process)
    try:
        pages = int((folder / "statm").read_text().split()[1])
        # The name in brackets may hold spaces; the times are the 12th and 13th field after it.
        fields = (folder / "stat").read_text().rsplit(") ", 1)[1].split()
        files = len(list((folder / "fd").iterdir()))
    except (OSError, IndexError):
        return None
    ticks = int(fields[11]) + int(fields[12])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Sampled(memory, files, ticks / os.sysconf("SC_CLK_TCK"), done) if pages else None


def watch(command: Sequence[str | Path], done: Callable[[], int], total: int, label: str) -> list[Sampled]:
    """Run a script, and sample its process until it ends; `done` returns how many of `total` units it has done.

    Raises:
        UserError: the script failed.
    """
    samples: list[Sampled] = []
    options = {"cwd": ROOT, "env": os.environ | FIXED_THRESHOLD}
    with (
        tempfile.TemporaryFile("w+") as output,
        programs.running([sys.executable, *command], stdout=output, stderr=output, **options) as process,
        tqdm(total=total, desc=label) as bar,
    ):
        while process.poll() is None:
            if (now := sample(process.pid, done())) and now.done:
                samples.append(now)
                bar.update(now.done - bar.n)
            time.sleep(INTERVAL)
        if process.returncode:
            output.seek(0)
            raise UserError(f"{command[0]}: failed: {output.read().strip().splitlines()[-1]}")
    return samples


def changes(samples: Sequence[Sampled], label: str, allowed: float) -> list[str]:
    """What grew in the process after its warm-up, one line each; prints the figures. Memory may grow by `allowed`."""
    steady = samples[int(len(samples) * WARM_UP) :]
    count = max(1, int(len(steady) * COMPARED))
    first, last = steady[:count], steady[-count:]
    # Peaks, since memory rises and falls by a third within a step.
    memory = [max(s.memory for s in part) for part in (first, last)]
    # The least, since a file is open for a moment while it is read or written, but not at the end of the process.
    files = [min(s.files for s in part[:-ENDING] or part) for part in (first, last)]
    print(f"{label}: memory {memory[0]:.1f} -> {memory[1]:.1f} MiB, open files {files[0]} -> {files[1]}", end="")
    found = []
    if memory[1] >= memory[0] * (1 + allowed):
        found.append(f"{label}: memory grew by {memory[1] / memory[0] - 1:.1%}, less than {allowed:.0%} is allowed")
    if files[1] > files[0]:
        found.append(f"{label}: open files grew from {files[0]} to {files[1]}")
    cost = [_cost(part) for part in (first, last)]
    if all(cost):
        print(f", {cost[0]:.3f} -> {cost[1]:.3f} processor seconds a unit", end="")
        if cost[1] > cost[0] * (1 + SLOWING):
            found.append(f"{label}: a unit costs {cost[1] / cost[0] - 1:.0%} more than at the start")
    print()
    return found


def _cost(part: Sequence[Sampled]) -> float:
    """Processor seconds per unit, from the end of the first to the end of the last; 0 if too few ended."""
    ends = [after for before, after in pairwise(part) if after.done > before.done]
    units = ends[-1].done - ends[0].done if ends else 0
    return (ends[-1].seconds - ends[0].seconds) / units if units else 0.0


def write_pairs(path: Path, count: int) -> None:
    """A small H5 file of `count` names for one random pair."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((1, *SIZE), np.float32) for _ in "ab")
    write_h5(path, [Sample("0", a, b, rng.standard_normal(TEXT_SHAPE).astype(np.float32))])
    with h5py.File(path, "a") as file:
        for group in GROUPS:
            for number in range(1, count):
                file[group][str(number)] = file[group]["0"]


def soak(epochs: int, images: int, allowed: float, folder: Path) -> list[str]:
    """Train `epochs` epochs on two pairs and test on `images` pairs in `folder`; return what grew meanwhile."""
    h5, out, runs = folder / "Two_train.h5", folder / "out", folder / "exp"
    write_pairs(h5, 2)
    write_pairs(folder / "Many_test.h5", images)

    def steps() -> int:
        return sum(len(parse_lines(log.read_text())) for log in runs.glob("*/*/log.txt"))

    def fused() -> int:
        return sum(1 for _ in out.glob("Many/Gray/[0-9]*.png"))

    options = ["--dataset_path", h5, "--exp_root", runs, "--numepochs", str(epochs), "--keep", "1", "--device", "cpu"]
    training = watch(["train.py", *options], steps, epochs, "train")
    (checkpoint,) = runs.glob("*/*/model/ckpt_*.pkl")
    options = ["--dataset", "Many", "--h5_dir", folder, "--out_dir", out, "--ckpt_path", checkpoint, "--device", "cpu"]
    testing = watch(["test.py", *options], fused, images, "test")
    phases = {
        "train": training,
        "fuse": [s for s in testing if s.done < images],
        "evaluate": [s for s in testing if s.done == images],
    }
    return [change for label, samples in phases.items() if samples for change in changes(samples, label, allowed)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.soak", description=__doc__.split("\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument("--short", action="store_true", help=f"{SHORT[0]} epochs and {SHORT[1]} images only")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        found = soak(*(SHORT if args.short else LONG), Path(folder))
    if found:
        sys.exit("\n".join(found))
    print("memory, open files and speed stayed the same")


if __name__ == "__main__":
    sys.exit(run_command(main))
