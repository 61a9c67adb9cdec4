"""Inputs of FILM's operations, and their results, for tests/net/test_ops.py and tools/gpu_sections.py.

Nothing here needs pytest. To test a new operation, yield some of its inputs as `Case`s from `cases`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from net.ops.reference import nearest_indices
from utils.runtime.jittor_env import jt

# batch, height, width: odd, one pixel wide, one pixel high, wider than a chunk of pixels, fewer rows than threads
SIZES = [(2, 13, 37), (1, 9, 1), (3, 1, 20), (1, 3, 700), (1, 1, 1)]


@dataclass(frozen=True)
class Case:
    """Inputs of an operation. A function makes an array, a list is one that needs no gradient; None and numbers are
    passed as they are.

    An array may differ from the reference form's by `tolerance` times the largest value of the latter, or times `floor`
    if that is larger.
    """

    operation: str
    inputs: tuple
    tolerance: float = 2e-5
    floor: float = 1e-3


def random(*shape: int, scale: float = 1, shift: float = 0, seed: int = 0) -> Callable[[], np.ndarray]:
    """A function that makes an array of normally distributed values, always the same."""
    return lambda: np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32) * scale + shift


def constant(value: float) -> Callable[[], np.ndarray]:
    return partial(np.array, [value], np.float32)


def cases(sizes: Sequence[tuple[int, int, int]] = SIZES) -> Iterator[Case]:
    """The cases, of some of them one for each size (batch, height, width)."""
    for b, h, w in sizes:
        for i, o in [(32, 32), (5, 3), (64, 1)]:
            for bias in (random(o), None):
                yield Case("pointwise_conv", (random(b, i, h, w), random(o, i, 1, 1), bias))
        for i, o in [(1, 32), (32, 32), (3, 5)]:
            yield Case("conv3x3", (random(b, i, h, w), random(o, i, 3, 3)))
        for n in (3, 5):
            yield Case("correlate", (random(b, 1, h, w), random(1, 1, n, n)().tolist()))
        yield Case("total", (random(b, 1, h, w),))
        for bias in (random(5), None):
            yield Case("depthwise_conv3x3", (random(b, 5, h, w), random(5, 1, 3, 3), bias))
        for bias in (random(6), None):
            yield Case("depthwise_gated_gelu", (random(b, 6, h, w), random(6, 1, 3, 3), bias))
        for c, heads in ((32, 8), (6, 2)):
            temperature = random(heads, 1, 1, scale=0.3, shift=1)
            yield Case("channel_attention", (random(b, 3 * c, h, w), temperature), 1e-4)
        for c in (32, 7):
            yield Case("channel_layer_norm", (random(b, c, h, w, shift=1), random(c), random(c, seed=1)), 1e-4)
        for c in (32, 3):
            second = random(c, c, 1, 1), random(c), constant(0.25)
            third = random(c, 2 * c, 1, 1), random(c), constant(-0.1)
            yield Case("merge", (random(b, c, h, w), random(b, c, h, w, seed=1), *second, *third), 1e-4)
        yield Case("concat_channels", (random(b, 3, h, w), random(b, 3, h, w, seed=1)))
        for c in (32, 64):
            yield Case("transformer_block", (random(b, c, h, w), *block_weights(c)), 1e-4, floor=1e-2)
    for h in (2, 4):  # all sizes above have an odd height; the row pipeline computes two rows at a time
        yield Case("conv3x3", (random(1, 3, h, 200), random(5, 3, 3, 3)))
        yield Case("transformer_block", (random(1, 32, h, 200), *block_weights(32)), 1e-4, floor=1e-2)
    for slope in (0.25, 0.0, -0.5):
        yield Case("prelu", (random(2, 3, 41, 17), constant(slope)))
    for b, queries, tokens in [(2, 149, 1300), (1, 5, 512), (1, 17, 3)]:
        e = 64
        projections = random(3 * e, e, scale=0.3), random(3 * e), random(e, e), random(e)
        yield Case("pooled_text_attention", (random(b, queries, e), random(b, tokens, e), *projections, 8), 1e-4)
    for b, tokens, e in [(2, 1300, 64), (3, 5, 7), (1, 1, 1)]:
        yield Case("guide", (random(b, tokens, e), random(b, 1, e)))
    yield Case("guide", (random(2, 9, 32), random(2, 1, 32, scale=0)))  # the norm has a lower bound
    for size in [(5, 9), (1, 1), (26, 74), (13, 37), (7, 80)]:
        tables = (partial(nearest_indices, *pair) for pair in zip((13, 37), size, strict=True))
        yield Case("take_pixels", (random(2, 3, 13, 37), *tables))


def block_weights(c: int, bias: bool = False, norm_bias: bool = True, heads: int = 8) -> list:
    """The inputs of a transformer block after x: random values, temperatures about 1."""
    shapes = {
        "norm1": (c,),
        "qkv": (3 * c, c, 1, 1),
        "qkv_depthwise": (3 * c, 1, 3, 3),
        "temperature": (heads, 1, 1),
        "attention_out": (c, c, 1, 1),
        "norm2": (c,),
        "project_in": (8 * c, c, 1, 1),
        "depthwise": (8 * c, 1, 3, 3),
        "project_out": (c, 4 * c, 1, 1),
    }

    def layer(seed: int, name: str) -> tuple | Callable[[], np.ndarray]:
        shape = shapes[name]
        if name == "temperature":
            return random(*shape, scale=0.3, shift=1, seed=seed)
        has_bias = norm_bias if name.startswith("norm") else bias
        return random(*shape, scale=0.3, seed=seed), random(shape[0], scale=0.3, seed=seed + 50) if has_bias else None

    return [layer(seed, name) for seed, name in enumerate(shapes)]


def evaluate(form: Callable[..., jt.Var], inputs: tuple) -> list[jt.Var]:
    """The output y of `form`, and the gradients of sum(y * random weights) with respect to every float input; not yet
    computed."""
    variables = []

    def make(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(make(part) for part in value)
        if isinstance(value, list):
            return jt.array(np.array(value, np.float32))
        if not callable(value):
            return value
        array = jt.array(value())
        if array.dtype == "float32":
            variables.append(array)
        return array

    y = form(*(make(value) for value in inputs))
    assert y is not NotImplemented
    weights = jt.array(np.random.default_rng(1).standard_normal(y.shape).astype(np.float32))
    return [y, *jt.grad((y * weights).sum(), variables)]


def deviations(arrays: Iterable[jt.Var], expected: Iterable[jt.Var], floor: float) -> list[float]:
    """The largest difference of each array from the expected one, over the largest value of the latter or `floor`."""
    pairs = ((a.numpy(), b.numpy()) for a, b in zip(arrays, expected, strict=True))
    return [float(np.abs(a - b).max() / max(np.abs(b).max(), floor)) for a, b in pairs]
