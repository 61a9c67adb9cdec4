"""What test_dry_run.py runs in a process that sees the stand-in: dry_run.py FOLDER PART...

The parts are forward, training and reference. What the stand-in counted for each is written to FOLDER/PART.tsv.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np

from net import ops
from net.Film import Net
from utils.runtime.jittor_env import jt, use_device
from utils.training.losses import fusion_loss, lp_ssim
from utils.training.optim import Adam

HEIGHT, WIDTH, TOKENS = 288, 384, 149


def batch(size: int) -> list[jt.Var]:
    rng = np.random.default_rng(0)
    images = [rng.random((size, 1, HEIGHT, WIDTH), dtype=np.float32) for _ in "ab"]
    return [jt.array(x) for x in (*images, rng.standard_normal((size, TOKENS, 768), dtype=np.float32))]


def forward() -> None:
    net, inputs = Net(), batch(1)
    with jt.no_grad():
        net(*inputs).numpy()


def training() -> None:
    """A step of either stage, then the step that is counted: everything is compiled, and Adam has its moments."""
    net = Net()
    parameters = dict(net.named_parameters())
    optimizer = Adam(parameters, 1e-4)
    for step in range(2):
        a, b, text = batch(2)
        jt.sync_all(True)
        standin.standin_reset()
        fused = net(a, b, text)
        losses = fusion_loss(a, b, fused)
        total = losses.total if step else losses.total + lp_ssim(a, fused).total
        optimizer.step(total)
        for value in losses:
            value.item()
        jt.sync_all(True)


def reference() -> None:
    with ops.reference_only():
        forward()


print(use_device("cuda"))
standin = ctypes.CDLL("libcudart.so")
for part in [{"forward": forward, "training": training, "reference": reference}[name] for name in sys.argv[2:]]:
    standin.standin_reset()
    part()
    standin.standin_report(str(Path(sys.argv[1]) / f"{part.__name__}.tsv").encode())
    print(part.__name__, flush=True)
