"""How two forms of a primitive are compared, forward and backward."""

from __future__ import annotations

import numpy as np

from utils.jittor_env import jt

# batch, height, width: odd, one pixel wide, one pixel high, wider than a chunk of pixels, fewer rows than threads
SIZES = [(2, 13, 37), (1, 9, 1), (3, 1, 20), (1, 3, 700), (1, 1, 1)]


def outputs_and_gradients(function, *inputs: np.ndarray) -> list[np.ndarray]:
    """function(*inputs), and the gradients of a fixed random projection of it with respect to every input."""
    variables = [jt.array(x) for x in inputs]
    y = function(*variables)
    weights = jt.array(np.random.default_rng(1).standard_normal(y.shape).astype(np.float32))
    gradients = jt.grad((y * weights).sum(), variables)
    return [y.numpy(), *(g.numpy() for g in gradients)]


def assert_same(fast, plain, *inputs: np.ndarray, tolerance: float = 2e-5) -> None:
    """Every array equal within `tolerance` of its own largest value."""
    pairs = zip(outputs_and_gradients(fast, *inputs), outputs_and_gradients(plain, *inputs), strict=True)
    for index, (a, b) in enumerate(pairs):
        scale = max(np.abs(b).max(), 1e-3)
        assert np.abs(a - b).max() <= tolerance * scale, f"array {index}: {np.abs(a - b).max()} of {scale}"


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
