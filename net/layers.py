"""The layers of FILM, with PyTorch's default initial values (film.md, section 1)."""

from __future__ import annotations

import math

from net import ops
from utils.runtime.jittor_env import jt


def uniform_parameter(shape: tuple[int, ...], bound: float) -> jt.Var:
    """A float32 parameter drawn from U(-bound, bound)."""
    return jt.init.uniform(shape, "float32", -bound, bound)


class PointwiseConv(jt.nn.Module):
    """1x1 convolution: (b, in, H, W) -> (b, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool) -> None:
        bound = 1 / math.sqrt(in_channels)
        self.weight = uniform_parameter((out_channels, in_channels, 1, 1), bound)
        self.bias = uniform_parameter((out_channels,), bound) if bias else None

    def execute(self, x: jt.Var) -> jt.Var:
        return ops.pointwise_conv(x, self.weight, self.bias)


class DepthwiseConv3x3(jt.nn.Module):
    """The parameters of a 3x3 convolution of each channel separately, within a transformer block."""

    def __init__(self, dim: int, bias: bool) -> None:
        self.weight = uniform_parameter((dim, 1, 3, 3), 1 / 3)
        self.bias = uniform_parameter((dim,), 1 / 3) if bias else None


class Conv3x3(jt.nn.Module):
    """3x3 convolution, padding 1, no bias: (b, in, H, W) -> (b, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        self.weight = uniform_parameter((out_channels, in_channels, 3, 3), 1 / (3 * math.sqrt(in_channels)))

    def execute(self, x: jt.Var) -> jt.Var:
        return ops.conv3x3(x, self.weight)


class PReLU(jt.nn.Module):
    """max(x, 0) + slope * min(x, 0), with one slope for all channels, initially 0.25."""

    def __init__(self) -> None:
        self.weight = jt.full((1,), 0.25, "float32")

    def execute(self, x: jt.Var) -> jt.Var:
        return ops.prelu(x, self.weight)
