"""How two forms of a primitive are compared, forward and backward."""

from __future__ import annotations

import numpy as np

from utils.runtime.jittor_env import jt

# batch, height, width: odd, one pixel wide, one pixel high, wider than a chunk of pixels, fewer rows than threads
SIZES = [(2, 13, 37), (1, 9, 1), (3, 1, 20), (1, 3, 700), (1, 1, 1)]


def output_and_gradients(function, *inputs: np.ndarray) -> list[jt.Var]:
    """function(*inputs), and the gradients of a fixed random projection of it with respect to every input; not yet
    computed."""
    variables = [jt.array(x) for x in inputs]
    y = function(*variables)
    weights = jt.array(np.random.default_rng(1).standard_normal(y.shape).astype(np.float32))
    return [y, *jt.grad((y * weights).sum(), variables)]


def assert_same(fast, plain, *inputs: np.ndarray, tolerance: float = 2e-5) -> None:
    """Every array equal within `tolerance` of its own largest value."""
    forms = [output_and_gradients(form, *inputs) for form in (fast, plain)]
    jt.sync(forms[0] + forms[1])  # at once, so that Jittor compiles all their kernels beside each other
    for index, (a, b) in enumerate(zip(*forms, strict=True)):
        a, b = a.numpy(), b.numpy()
        scale = max(np.abs(b).max(), 1e-3)
        assert np.abs(a - b).max() <= tolerance * scale, f"array {index}: {np.abs(a - b).max()} of {scale}"


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
