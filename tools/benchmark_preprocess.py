"""The speed of data_process.py compared with a plain single-process form of the official script.

    python -m tools.benchmark_preprocess

Both commands write the same H5 file from the same pairs of 480x640 with ready features. They are timed alternately,
their start included. The result is the median ratio of neighbouring runs. It counts only where other processes took a
small share of the processor meanwhile, which is measured too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import cv2
import h5py
import numpy as np
from tqdm import tqdm

from net.shapes import STAGE_SIZE
from utils.data.stored import STORED_SHAPE
from utils.data.tasks import TASKS
from utils.runtime.cli import run_command
from utils.runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 480, 640
FOLDERS = TASKS["IVF"].folders
# Pairs that differ; all others are links to them.
DISTINCT = 8


@dataclass(frozen=True)
class Run:
    """Seconds, peak memory (bytes) and the share of the machine's cores that others took meanwhile, of one command."""

    seconds: float
    peak: int
    others: float


def make_pairs(root: Path, count: int) -> None:
    """A data set of `count` pairs in the layout of VLFDataset: PNGs about as large as those of MSRS, and features."""
    base, features = root / "Image" / "IVF" / "Pairs", root / "TextFeature" / "IVF" / "Pairs"
    features.mkdir(parents=True)
    rng = np.random.default_rng(0)
    feature = rng.standard_normal(STORED_SHAPE).astype(np.float32)
    for folder, channels, noise in zip(FOLDERS, (1, 3), (1.5, 1.0), strict=True):
        (base / folder).mkdir(parents=True)
        for number in range(DISTINCT):
            smooth = cv2.GaussianBlur(rng.random((HEIGHT, WIDTH, channels)), (0, 0), 12)
            smooth = cv2.normalize(smooth, None, 20, 230, cv2.NORM_MINMAX).reshape(HEIGHT, WIDTH, channels)
            image = (smooth + rng.normal(0, noise, smooth.shape)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(base / folder / f"{number:04}.png"), image)
        for number in range(DISTINCT, count):
            (base / folder / f"{number:04}.png").symlink_to(f"{number % DISTINCT:04}.png")
    for number in range(count):
        np.save(features / f"{number:04}.npy", feature)
    (base / "train.txt").write_text("".join(f"{number:04}.png\n" for number in range(count)))


def plain(root: Path, path: Path) -> None:
    """The official script's steps, one pair after another (film.md, section 4)."""
    base = root / "Image" / "IVF" / "Pairs"
    with h5py.File(path, "w") as file:
        groups = [file.create_group(name) for name in ("imageA", "imageB", "text")]
        for line in tqdm((base / "train.txt").read_text().splitlines()):
            name = Path(line).stem
            arrays = []
            for folder in FOLDERS:
                image = cv2.imread(str(base / folder / line)).astype("float32")
                image = np.round(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
                arrays.append(cv2.resize(image, STAGE_SIZE[::-1])[None] / 255.0)
            arrays.append(np.load(root / "TextFeature" / "IVF" / "Pairs" / f"{name}.npy"))
            for group, array in zip(groups, arrays, strict=True):
                group.create_dataset(name, data=array)


def busy_and_total() -> tuple[float, float]:
    """Seconds that all cores of the machine have worked, and that have gone by on them, since it started (proc(5))."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    per_second = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) / per_second, sum(ticks) / per_second


def timed(command: Sequence[str], cores: int) -> Run:
    """Run a Python command of this project on so many cores."""
    arguments = [sys.executable, *command]
    busy, total = busy_and_total()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.chdir(ROOT)
        os.execv(sys.executable, arguments)
    _, status, usage = os.wait4(child, 0)
    if status != 0:
        raise UserError(f"{' '.join(arguments)}: failed")
    seconds = time.perf_counter() - started
    busy, total = (after - before for after, before in zip(busy_and_total(), (busy, total), strict=True))
    return Run(seconds, usage.ru_maxrss * 1024, max(0.0, busy - usage.ru_utime - usage.ru_stime) / total)


def measure(pairs: int = 300, rounds: int = 7, cores: int | None = None) -> str:
    """Time both commands alternately on the same cores, and return the results as a line for a person.

    Args:
        pairs: how many, of 480x640.
        rounds: how often each command runs.
        cores: how many cores they may use; all by default.

    Raises:
        UserError: one of the commands failed, or their files differ.
    """
    cores = cores or len(os.sched_getaffinity(0))
    # In memory where that can be had: the disk is not what is measured.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        root, ours, theirs = Path(folder), Path(folder) / "Pairs_train.h5", Path(folder) / "plain.h5"
        make_pairs(root, pairs)
        commands = (
            ["-m", "tools.benchmark_preprocess", "--plain", str(root), str(theirs)],
            ["data_process.py", "--dataset", "Pairs", "--root", str(root), "--out", str(root)],
        )
        runs: list[list[Run]] = []
        for turn in tqdm(range(rounds), desc=f"{cores} cores", unit="round"):
            # Whoever goes first in one round goes last in the next.
            order = (0, 1) if turn % 2 == 0 else (1, 0)
            taken = {which: timed(commands[which], cores) for which in order}
            runs.append([taken[0], taken[1]])
        _check_equal(ours, theirs)
    ratio = median(plain.seconds / ours.seconds for plain, ours in runs)
    plain_rate, our_rate = (pairs / median(run[which].seconds for run in runs) for which in (0, 1))
    peak, others = max(ours.peak for _, ours in runs), median(run.others for pair in runs for run in pair)
    return (
        f"{cores} cores: {ratio:.2f} times the plain rate ({our_rate:.0f} and {plain_rate:.0f} pairs/s), peak "
        f"{peak / 1e6:.0f} MB for {pairs} pairs; others took {others:.0%} of the processor"
    )


def _check_equal(ours: Path, theirs: Path) -> None:
    with h5py.File(ours) as a, h5py.File(theirs) as b:
        for group in b:
            for name in b[group]:
                if not np.array_equal(a[group][name][()], b[group][name][()]):
                    raise UserError(f"{ours}: {group}/{name} is not what the plain formulation writes")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time data_process.py beside a plain formulation of it.")
    parser.add_argument("--pairs", type=int, default=300, help="pairs of 480x640 (default: 300)")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each command (default: 7)")
    parser.add_argument("--plain", nargs=2, type=Path, metavar=("ROOT", "H5"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.plain:
        plain(*args.plain)
        return
    all_cores = len(os.sched_getaffinity(0))
    for cores in sorted({1, 2, all_cores} & set(range(1, all_cores + 1))):
        print(measure(args.pairs, args.rounds, cores))


if __name__ == "__main__":
    sys.exit(run_command(main))
