"""The complete job on the pairs that ship, in a minute: preprocess, fuse real pairs, measure, draw, train a few steps.

    make demo        (or: python -m tools.demo)

The pairs of TNO are fused with the weights that ship. The training continues from these weights on simulated pairs; it
only shows that training works on this machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.runtime import cuda, programs
from utils.runtime.cli import HelpFormatter, path_type, run_command
from utils.runtime.errors import UserError
from utils.runtime.files import require_writable

ROOT = Path(__file__).resolve().parent.parent
TESTED, TRAINED = "TNO", "Sample"
WEIGHTS = "models/IVF.pkl"
# The official learning rate, 4 steps. The network needs most of the time for the text, so the crops can be small.
TRAINING = ("--numepochs", "1", "--batch_size", "1", "--crop", "96", "128", "--flip")


def run_script(*command: str) -> None:
    """Run a script of this project as a user would, and show what it prints.

    Raises:
        UserError: it failed; its message is above.
    """
    print(f"\n$ python {' '.join(command)}", flush=True)
    if programs.run([sys.executable, *command], cwd=ROOT).returncode:
        raise UserError(f"{command[0]}: the demo ends here; the lines above say why")


def demo(out: Path, device: str) -> None:
    """Run all scripts, on this device; all their files are under `out`."""
    h5, runs, fused = out / "h5", out / "exp", out / "test_output"
    for dataset, mode in ((TESTED, "test"), (TRAINED, "train")):
        run_script("data_process.py", "--task", "IVF", "--dataset", dataset, "--mode", mode, "--out", str(h5))
    run_script(
        *("test.py", "--dataset", TESTED, "--ckpt_path", WEIGHTS, "--h5_dir", str(h5)),
        *("--out_dir", str(fused), "--contact_sheet", "--device", device),
    )
    run_script(
        *("train.py", "--dataset_path", str(h5 / f"{TRAINED}_train.h5"), "--pretrain", WEIGHTS, *TRAINING),
        *("--exp_root", str(runs), "--device", device),
    )
    run = max(runs.glob("*/*"), key=lambda path: path.stat().st_mtime)
    print(f"\nopen this picture: {fused / TESTED / 'contact_sheet.png'}")
    print(f"fused images:      {fused / TESTED / 'Gray'}")
    print(f"loss curve:        {run / 'loss.png'}")
    print(f"the training run:  {run}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo", description=__doc__.split("\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument("--out", type=path_type, default=ROOT / "demo_output", help="folder for all files of the demo")
    parser.add_argument("--device", choices=cuda.DEVICES, default="auto", help="where to train and test")
    args = parser.parse_args(argv)
    require_writable(args.out / "h5" / f"{TESTED}_test.h5")
    demo(args.out.resolve(), args.device)


if __name__ == "__main__":
    sys.exit(run_command(main))
