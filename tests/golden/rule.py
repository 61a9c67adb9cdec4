"""The rule that makes the inputs of `small.npz`: pseudo-random weights and text that any framework can compute.

A tensor depends on its name and shape alone. Element i (from 0, in C order) comes from SplitMix64 (Steele, Lea, Flood,
OOPSLA 2014), with the first 8 bytes of SHA-256(name), little-endian, as the seed:

    z = seed + (i + 1) * 0x9E3779B97F4A7C15            all arithmetic modulo 2^64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    u = (2 * (z >> 40) + 1) / 2^24 - 1                 in (-1, 1), exact in float32

`weight` and `text_feature` scale and shift u in float64 and round the result to float32.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

TEXT_SHAPE = (1, 149, 768)

# Name endings of weights that are larger than PyTorch's initial values, and the factor. With initial values the text
# changes the output by 2e-7 and the output is nearly flat; with these every word changes it by more than 1e-5.
GAINS = {
    "in_proj_weight": 4,  # sharper attention
    "convA2.weight": 16,  # the text enters the image features here
    "convB2.weight": 16,
    "conv2.weight": 8,  # contrast
}


def uniform(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The values u of the module docstring."""
    seed = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u8")
    z = seed + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return ((2 * (z >> np.uint64(40)).astype(np.float64) + 1) / 2**24 - 1).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The parameter `name` of FILM's network (its official name, without the prefix ``module.``).

    - Matrices and kernels: u times the bound of PyTorch's initial values (sqrt(6 / 1024) for `in_proj_weight`,
      1 / sqrt(fan in) for the others), times the gain above.
    - Temperatures and weights of norms: 1 + u / 4. Slopes of PReLU: 1/4 + u / 10. Biases: u / 10.
      None has its initial value, so that a swapped or forgotten one shows.
    """
    u = uniform(name, shape)
    if name.endswith("temperature") or name.endswith("body.weight"):
        value = 1 + u / 4
    elif "prelu" in name:
        value = 0.25 + u / 10
    elif name.endswith("bias"):
        value = u / 10
    else:
        bound = math.sqrt(6 / 1024) if name.endswith("in_proj_weight") else 1 / math.sqrt(math.prod(shape[1:]))
        value = u * bound * next((gain for ending, gain in GAINS.items() if name.endswith(ending)), 1)
    return value.astype(np.float32)


def text_feature() -> NDArray[np.float32]:
    """The text feature (1, 149, 768): 2u, with the name ``text``."""
    return (2 * uniform("text", TEXT_SHAPE)).astype(np.float32)
