"""The main job on the sample that ships, in a few minutes: preprocess, train briefly, fuse, measure, draw.

    make demo        (or: python -m tools.demo)

It shows that everything works on this machine. A few steps on four pairs do not make a useful network: for good fused
images, train on a real data set as the README says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.runtime.cli import run_command
from utils.runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
DATASET = "Sample"
# With 2 steps per epoch from random weights, the official learning rate of 1e-5 would change almost nothing.
TRAINING = ("--numepochs", "8", "--lr", "1e-3", "--step_size", "4")


def run_script(*command: str) -> None:
    """Run a script of this project as a user would, and show what it prints.

    Raises:
        UserError: it failed; its message is above.
    """
    print(f"\n$ python {' '.join(command)}", flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise UserError(f"{command[0]}: the demo ends here; the lines above say why")


def demo(out: Path, device: str) -> None:
    """Run all scripts on the sample, on this device; all their files are under `out`."""
    h5, runs, fused = out / "h5", out / "exp", out / "test_output"
    for mode in ("train", "test"):
        run_script("data_process.py", "--task", "IVF", "--dataset", DATASET, "--mode", mode, "--out", str(h5))
    run_script(
        *("train.py", "--dataset_path", str(h5 / f"{DATASET}_train.h5"), *TRAINING),
        *("--exp_root", str(runs), "--device", device),
    )
    checkpoint = max(runs.glob("*/*/model/ckpt_*.pkl"), key=lambda path: path.stat().st_mtime)
    run_script(
        *("test.py", "--dataset", DATASET, "--ckpt_path", str(checkpoint), "--h5_dir", str(h5)),
        *("--out_dir", str(fused), "--contact_sheet", "--device", device),
    )
    print(f"\nopen this picture: {fused / DATASET / 'contact_sheet.png'}")
    print(f"loss curve:        {checkpoint.parent.parent / 'loss.png'}")
    print(f"fused images:      {fused / DATASET / 'Gray'}")
    print(f"the training run:  {checkpoint.parent.parent}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "demo_output", help="folder for all files of the demo")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train and test")
    args = parser.parse_args(argv)
    demo(args.out.resolve(), args.device)


if __name__ == "__main__":
    sys.exit(run_command(main))
