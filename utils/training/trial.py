"""A training step on a tiny pair of images: what a device must be able to compute before it is used."""

from __future__ import annotations

import numpy as np

from net.Film import Net
from net.shapes import TEXT_SHAPE
from utils.runtime.jittor_env import compute_on_gpu, jt
from utils.training.losses import fusion_loss, lp_ssim
from utils.training.optim import Adam

SIZE = (1, 1, 32, 32)
TOKENS = 8  # enough for a trial; a text feature has 149


def try_the_gpu() -> None:
    """Compute small known results on the GPU, then one step of the network with every loss, forward and backward.

    Raises:
        Exception: a computation does not compile, does not run, or has a wrong result.
    """
    compute_on_gpu()
    step()


def step() -> None:
    """One training step with every loss on the current device.

    Raises:
        Exception: a computation does not compile or does not run.
        RuntimeError: the loss or an updated parameter is not finite.
    """
    rng = np.random.default_rng(0)
    a, b = (jt.array(rng.random(SIZE, dtype=np.float32)) for _ in "ab")
    net = Net()
    parameters = dict(net.named_parameters())
    fused = net(a, b, jt.array(rng.standard_normal((1, TOKENS, TEXT_SHAPE[1]), dtype=np.float32)))
    loss = fusion_loss(a, b, fused).total + lp_ssim(a, fused).total
    Adam(parameters, 1e-4).step(loss)
    for name, value in {"loss": loss, **parameters}.items():
        if not np.isfinite(value.numpy()).all():
            raise RuntimeError(f"a training step on the GPU: {name} is not finite")
