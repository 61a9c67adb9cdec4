"""FILM's operations: the table of their forms (implementations), and the rule that chooses one.

An operation is called like a function: ``ops.conv3x3(x, weight)``. Its reference form, mostly in `reference`, defines
what it computes. `cpu` and `cuda` hold faster forms where these are worthwhile. To add an operation, write its
reference form and a row here; tests/net/test_ops.py says how to test it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from net.ops import cpu, cuda, reference
from net.ops.recompute import recomputed
from net.ops.reference import Layer
from utils.runtime.jittor_env import jt

Form = Callable[..., jt.Var]

# FILM_PORTABLE is the earlier name of FILM_REFERENCE.
_settings = {"reference": os.environ.get("FILM_REFERENCE", os.environ.get("FILM_PORTABLE")) == "1"}


def reference_in_use() -> bool:
    """Whether every operation computes in its reference form."""
    return _settings["reference"]


@contextmanager
def reference_only() -> Iterator[None]:
    """Compute every operation in its reference form, as $FILM_REFERENCE=1 does for the process."""
    before = _settings["reference"]
    _settings["reference"] = True
    try:
        yield
    finally:
        _settings["reference"] = before


@dataclass(frozen=True)
class Operation:
    """One row of the table: the forms of an operation, which take the same arguments and return the same result.

    A call uses the form for the current device. It uses the reference form if there is none, if that form returns
    `NotImplemented` because it does not support the arguments, or within `reference_only`.
    """

    reference: Form
    cpu: Form | None = None
    cuda: Form | None = None

    def __call__(self, *arguments: object) -> jt.Var:
        fast = None if reference_in_use() else self.cuda if jt.flags.use_cuda else self.cpu
        result = fast(*arguments) if fast else NotImplemented
        return self.reference(*arguments) if result is NotImplemented else result


# Operations that only a transformer block uses have no CPU form: on the CPU, transformer_block computes them.
pointwise_conv = Operation(reference.pointwise_conv, cpu=cpu.pointwise_conv, cuda=cuda.pointwise_conv)
conv3x3 = Operation(reference.conv3x3, cpu=cpu.conv3x3, cuda=cuda.conv3x3)
depthwise_conv3x3 = Operation(reference.depthwise_conv3x3, cuda=cuda.depthwise_conv3x3)
prelu = Operation(reference.prelu, cpu=cpu.prelu, cuda=cuda.prelu)
depthwise_gated_gelu = Operation(reference.depthwise_gated_gelu, cuda=cuda.depthwise_gated_gelu)
channel_layer_norm = Operation(reference.channel_layer_norm, cuda=cuda.channel_layer_norm)
channel_attention = Operation(reference.channel_attention, cuda=cuda.channel_attention)
merge = Operation(reference.merge, cpu=cpu.merge, cuda=recomputed(cuda.merge))
pooled_text_attention = Operation(
    reference.pooled_text_attention, cpu=cpu.pooled_text_attention, cuda=cuda.pooled_text_attention
)
take_pixels = Operation(reference.take_pixels, cpu=cpu.take_pixels, cuda=cuda.take_pixels)
guide = Operation(reference.guide, cpu=cpu.guide, cuda=cuda.guide)
concat_channels = Operation(reference.concat_channels, cpu=cpu.concat_channels)
# Of the losses.
correlate = Operation(reference.correlate, cuda=cuda.correlate)
total = Operation(reference.total, cuda=cuda.total)


def nearest_resize(x: jt.Var, size: tuple[int, int]) -> jt.Var:
    """torch's interpolate(mode='nearest'): x (b, c, h, w) -> (b, c, *size), source index floor(dst * (in / out))."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return take_pixels(x, *map(_index_table, x.shape[2:], size))


@lru_cache(maxsize=64)
def _index_table(length: int, out_length: int) -> jt.Var:
    """`reference.nearest_indices` on the device. Kept, because each new array is a copy to the device."""
    return jt.array(reference.nearest_indices(length, out_length))


def _transformer_block(
    x: jt.Var,
    norm1: Layer,
    qkv: Layer,
    qkv_depthwise: Layer,
    temperature: jt.Var,
    attention_out: Layer,
    norm2: Layer,
    project_in: Layer,
    depthwise: Layer,
    project_out: Layer,
) -> jt.Var:
    """x + MDTA(norm1(x)), then x + GDFN(norm2(x)): x (b, c, H, W) -> the same, composed of the operations above.

    `restormer.TransformerBlock` describes the layers; each is a pair of weight and bias, and a bias may be None.
    """
    y = depthwise_conv3x3(pointwise_conv(channel_layer_norm(x, *norm1), *qkv), *qkv_depthwise)
    x = x + pointwise_conv(channel_attention(y, temperature), *attention_out)
    y = depthwise_gated_gelu(pointwise_conv(channel_layer_norm(x, *norm2), *project_in), *depthwise)
    return x + pointwise_conv(y, *project_out)


transformer_block = Operation(_transformer_block, cpu=cpu.transformer_block, cuda=recomputed(_transformer_block))
