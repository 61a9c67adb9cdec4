"""What test_dry_run.py runs in a process that sees the stand-in: dry_run.py FOLDER PART...

The parts are forward, training and reference. What the stand-in counted for each is written to FOLDER/PART.tsv.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from net import ops
from net.Film import Net
from utils.data.loader import Batch
from utils.runtime.cli import run_command
from utils.runtime.jittor_env import jt, use_device
from utils.training.optim import Adam
from utils.training.trainer import Trainer

HEIGHT, WIDTH, TOKENS = 288, 384, 149


def batch(size: int) -> Batch:
    rng = np.random.default_rng(0)
    images = [rng.random((size, 1, HEIGHT, WIDTH), dtype=np.float32) for _ in "ab"]
    return Batch((), *images, rng.standard_normal((size, TOKENS, 768), dtype=np.float32))


def forward() -> None:
    """A pass that compiles everything, then the one that is counted."""
    net, inputs = Net(), batch(1)
    for _ in range(2):
        jt.sync_all(True)
        standin.standin_reset()
        with jt.no_grad():
            net(*map(jt.array, (inputs.image_a, inputs.image_b, inputs.text))).numpy()


def training() -> None:
    """A step of either stage, then the step that is counted: everything is compiled, and Adam has its moments."""
    net = Net()
    trainer = Trainer(net, Adam(dict(net.named_parameters()), 1e-4), None, 20, 0, {})
    for ssim_weight in (0, 1, 1):
        trainer.ssim_weight = ssim_weight
        jt.sync_all(True)
        standin.standin_reset()
        trainer.train_step(batch(2))
    jt.sync_all(True)


def reference() -> None:
    with ops.reference_only():
        forward()


def main(argv: Sequence[str] | None = None) -> None:
    folder, *names = argv or sys.argv[1:]
    # Without Jittor's allocator each array has its own allocation, and so its own guard bytes. Jittor then gives arrays
    # that share memory, such as a reshaped one, memory of their own; $STANDIN_POOLED=1 shows what users need.
    jt.flags.use_sfrl_allocator = int(os.environ.get("STANDIN_POOLED", "0"))
    print(use_device("cuda"))
    for part in (PARTS[name] for name in names):
        standin.standin_reset()
        part()
        standin.standin_report(str(Path(folder) / f"{part.__name__}.tsv").encode())
        print(part.__name__, flush=True)


PARTS = {"forward": forward, "training": training, "reference": reference}
if __name__ == "__main__":
    standin = ctypes.CDLL("libcudart.so")
    sys.exit(run_command(main))
