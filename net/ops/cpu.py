"""The primitives as hand-written CPU kernels (`kernels/*.h`), compiled by Jittor on first use.

Each function here has the arguments and the result of its namesake in `portable`, which says what it computes. Channel
counts, image sizes and slopes are variables of the kernels, so nothing is compiled anew for another image. Forward
passes keep little more than their input; backward passes compute the rest again, row by row, which costs less than
fetching it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from net.portable import nearest_indices
from utils.runtime.jittor_env import jt

KERNELS = Path(__file__).resolve().parent / "kernels"


@cache
def kernel_header(file: Path) -> str:
    """The include line of a kernel file, with a digest of its folder: an edit must reach Jittor's cache of kernels.

    The files include each other by ``# include``, with a space: Jittor's scanner would look for ``#include "x.h"`` in
    its own folders and stop.
    """
    digest = hashlib.sha1(b"".join(path.read_bytes() for path in sorted(file.parent.glob("*.*h")))).hexdigest()
    return f'// {digest}\n#include "{file}"\nusing namespace film;\n'


def _call(
    header: str,
    source: str,
    inputs: Sequence[jt.Var],
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[str] | None = None,
) -> list[jt.Var]:
    """Run C++ `source` on `inputs` (in0_p, in0_shape0, ...), giving float32 arrays of `shapes` (out0_p, ...)."""
    dtypes = list(dtypes or ["float32"] * len(shapes))
    return jt.code(
        [list(s) for s in shapes], dtypes, list(inputs), cpu_header=kernel_header(KERNELS / header), cpu_src=source
    )


_CONV_SHAPE = "ConvShape s{(int)in0_shape1, (int)%s, in0_shape0, in0_shape2, in0_shape3};\n"


class _PointwiseConv(jt.Function):
    def execute(self, x: jt.Var, weight: jt.Var, bias: jt.Var | None) -> jt.Var:
        self.saved = x, weight
        self.has_bias = bias is not None
        batch, _, height, width = x.shape
        (y,) = _call(
            "conv.h",
            (_CONV_SHAPE % "in1_shape0")
            + f"pointwise_conv(s, in0_p, in1_p, {'in2_p' if self.has_bias else 'nullptr'}, out0_p);",
            (x, weight, bias) if self.has_bias else (x, weight),
            [(batch, weight.shape[0], height, width)],
        )
        return y

    def grad(self, dout: jt.Var) -> tuple[jt.Var | None, ...]:
        x, weight = self.saved
        (dx,) = _call(
            "conv.h",
            (_CONV_SHAPE % "in1_shape1") + "pointwise_conv(s, in0_p, in1_p, nullptr, out0_p, true);",
            (dout, weight),
            [x.shape],
        )
        dweight, dbias = _call(
            "conv.h",
            (_CONV_SHAPE % "in1_shape1") + "pointwise_conv_weights(s, in0_p, in1_p, out0_p, out1_p);",
            (x, dout),
            [weight.shape, weight.shape[:1]],
        )
        return dx, dweight, dbias if self.has_bias else None


def pointwise_conv(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None) -> jt.Var:
    return _PointwiseConv.apply(x, weight, bias)


class _Conv3x3(jt.Function):
    def execute(self, x: jt.Var, weight: jt.Var) -> jt.Var:
        self.saved = x, weight
        batch, _, height, width = x.shape
        (y,) = _call(
            "conv.h",
            (_CONV_SHAPE % "in1_shape0") + "conv3x3(s, in0_p, in1_p, out0_p);",
            (x, weight),
            [(batch, weight.shape[0], height, width)],
        )
        return y

    def grad(self, dout: jt.Var) -> tuple[jt.Var, jt.Var]:
        x, weight = self.saved
        # Two kernels: what nobody asks for, such as the gradient of the image itself, is never run.
        (dx,) = _call(
            "conv.h",
            "ConvShape s{(int)out0_shape1, (int)in0_shape1, in0_shape0, in0_shape2, in0_shape3};\n"
            "conv3x3_input(s, in0_p, in1_p, out0_p);",
            (dout, weight),
            [x.shape],
        )
        (dweight,) = _call(
            "conv.h",
            (_CONV_SHAPE % "in1_shape1") + "conv3x3_weights(s, in0_p, in1_p, out0_p);",
            (x, dout),
            [weight.shape],
        )
        return dx, dweight


conv3x3 = _Conv3x3.apply


class _PReLU(jt.Function):
    def execute(self, x: jt.Var, slope: jt.Var) -> jt.Var:
        self.saved = x, slope
        (y,) = _call("conv.h", "prelu(in0_p, in1_p[0], in0->num, out0_p);", (x, slope), [x.shape])
        return y

    def grad(self, dout: jt.Var) -> tuple[jt.Var, jt.Var]:
        x, slope = self.saved
        dx, dslope = _call(
            "conv.h",
            "prelu_backward(in0_p, in1_p[0], in2_p, in0->num, out0_p, out1_p);",
            (x, slope, dout),
            [x.shape, slope.shape],
        )
        return dx, dslope


prelu = _PReLU.apply


class _DepthwiseConv3x3(jt.Function):
    def execute(self, x: jt.Var, weight: jt.Var, bias: jt.Var | None) -> jt.Var:
        self.saved = x, weight
        self.has_bias = bias is not None
        (y,) = _call(
            "parts.h",
            (_CONV_SHAPE % "in1_shape0")
            + f"depthwise_conv3x3(s, in0_p, in1_p, {'in2_p' if self.has_bias else 'nullptr'}, out0_p);",
            (x, weight, bias) if self.has_bias else (x, weight),
            [x.shape],
        )
        return y

    def grad(self, dout: jt.Var) -> tuple[jt.Var | None, ...]:
        x, weight = self.saved
        (dx,) = _call(
            "parts.h",
            (_CONV_SHAPE % "in1_shape0") + "depthwise_conv3x3(s, in0_p, in1_p, nullptr, out0_p, true);",
            (dout, weight),
            [x.shape],
        )
        dweight, dbias = _call(
            "parts.h",
            (_CONV_SHAPE % "in1_shape1") + "depthwise_conv3x3_weights(s, in0_p, in1_p, out0_p, out1_p);",
            (x, dout),
            [weight.shape, weight.shape[:1]],
        )
        return dx, dweight, dbias if self.has_bias else None


def depthwise_conv3x3(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None) -> jt.Var:
    return _DepthwiseConv3x3.apply(x, weight, bias)


_GATE = "const long half = (long)in0_shape1 / 2 * in0_shape2 * in0_shape3;\n"


class _GatedGelu(jt.Function):
    def execute(self, x: jt.Var) -> jt.Var:
        self.saved = x
        batch, channels, height, width = x.shape
        (y,) = _call(
            "parts.h",
            _GATE + "gated_gelu(in0_p, in0_shape0, half, out0_p);",
            (x,),
            [(batch, channels // 2, height, width)],
        )
        return y

    def grad(self, dout: jt.Var) -> jt.Var:
        (dx,) = _call(
            "parts.h",
            _GATE + "gated_gelu_backward(in0_p, in1_p, in0_shape0, half, out0_p);",
            (self.saved, dout),
            [self.saved.shape],
        )
        return dx


gated_gelu = _GatedGelu.apply


class _ChannelLayerNorm(jt.Function):
    def execute(self, x: jt.Var, weight: jt.Var, bias: jt.Var | None) -> jt.Var:
        self.saved = x, weight
        self.has_bias = bias is not None
        (y,) = _call(
            "parts.h",
            (_CONV_SHAPE % "in0_shape1")
            + f"channel_layer_norm(s, in0_p, in1_p, {'in2_p' if self.has_bias else 'nullptr'}, out0_p);",
            (x, weight, bias) if self.has_bias else (x, weight),
            [x.shape],
        )
        return y

    def grad(self, dout: jt.Var) -> tuple[jt.Var | None, ...]:
        x, weight = self.saved
        dx, dweight, dbias = _call(
            "parts.h",
            (_CONV_SHAPE % "in0_shape1")
            + f"channel_layer_norm_backward(s, in0_p, in1_p, {'true' if self.has_bias else 'false'}, in2_p, out0_p, "
            "out1_p, out2_p);",
            (x, weight, dout),
            [x.shape, weight.shape, weight.shape],
        )
        return dx, dweight, dbias if self.has_bias else None


channel_layer_norm = _ChannelLayerNorm.apply


_CHANNEL_MIXING = (
    "ChannelMixing layer((int)in0_shape1 / 3, (int)in1_shape0, in1_p);\n"
    "const long b = in0_shape0, h = in0_shape2, w = in0_shape3;\n"
)


def _scores_shape(batch: int, channels: int, heads: int) -> tuple[int, int]:
    """The shape of what `Scores` in kernels/attention.h keeps of each image for the backward pass."""
    return batch, channels * (channels // heads + 2)


class _ChannelMixing(jt.Function):
    def execute(self, qkv: jt.Var, temperature: jt.Var) -> jt.Var:
        batch, channels, height, width = qkv.shape
        channels //= 3
        y, scores = _call(
            "parts.h",
            _CHANNEL_MIXING + "channel_mixing(layer, in0_p, b, h, w, out0_p, out1_p);",
            (qkv, temperature),
            [(batch, channels, height, width), _scores_shape(batch, channels, temperature.shape[0])],
            ["float32", "float64"],
        )
        self.saved = qkv, temperature, scores
        return y

    def grad(self, dout: jt.Var) -> list[jt.Var]:
        return _call(
            "parts.h",
            _CHANNEL_MIXING + "channel_mixing_backward(layer, in0_p, in2_p, in3_p, b, h, w, out0_p, out1_p);",
            (*self.saved, dout),
            [x.shape for x in self.saved[:2]],
        )


channel_mixing = _ChannelMixing.apply


_TRANSFORMER_BLOCK = (
    "const int c = in0_shape1;\n"
    "Block layer{{{c, (int)in3_shape0, in1_p, in2_p, in3_p, in4_p}, (int)in5_shape0, in5_p, in6_p},\n"
    "            {{c, (int)in9_shape0, in7_p, in8_p, in9_p, in10_p}, in11_p}};\n"
    "const long b = in0_shape0, h = in0_shape2, w = in0_shape3;\n"
)


class _TransformerBlock(jt.Function):
    def execute(self, *inputs: jt.Var) -> jt.Var:
        x, temperature = inputs[0], inputs[5]
        y, v, scores = _call(
            "block.h",
            _TRANSFORMER_BLOCK + "transformer_block(layer, in0_p, b, h, w, out0_p, out1_p, out2_p);",
            inputs,
            [x.shape, x.shape, _scores_shape(*x.shape[:2], temperature.shape[0])],
            ["float32", "float32", "float64"],
        )
        self.saved = *inputs, v, scores
        return y

    def grad(self, dout: jt.Var) -> list[jt.Var]:
        inputs = self.saved[:12]
        return _call(
            "block.h",
            _TRANSFORMER_BLOCK + "transformer_block_backward(layer, in0_p, in12_p, in13_p, in14_p, b, h, w, {out0_p, "
            "out1_p, out2_p, out3_p, out4_p, out5_p, out6_p}, {out12_p, out7_p, out8_p, out9_p, out10_p, out11_p});",
            (*self.saved, dout),
            [*(x.shape for x in inputs), dout.shape],
        )[:-1]  # the gradient between the halves is theirs only


def transformer_block(
    x: jt.Var,
    norm1_weight: jt.Var,
    norm1_bias: jt.Var,
    qkv: jt.Var,
    qkv_depthwise: jt.Var,
    temperature: jt.Var,
    attention_out: jt.Var,
    norm2_weight: jt.Var,
    norm2_bias: jt.Var,
    project_in: jt.Var,
    depthwise: jt.Var,
    project_out: jt.Var,
) -> jt.Var:
    """`restormer.TransformerBlock` in two passes over x (b, c, H, W), for convolutions without and norms with a bias.

    The first pass gathers the scores of the channel attention, the second computes its result a row at a time and
    sends it through the feed-forward network. Weights have the shapes of the layers of these names.
    """
    return _TransformerBlock.apply(
        x,
        norm1_weight,
        norm1_bias,
        qkv,
        qkv_depthwise,
        temperature,
        attention_out,
        norm2_weight,
        norm2_bias,
        project_in,
        depthwise,
        project_out,
    )


_MERGE = (
    "Merge layer{(int)in0_shape1, in2_p, in3_p, in4_p, in5_p, in6_p, in7_p};\n"
    "const long b = in0_shape0, plane = (long)in0_shape2 * in0_shape3;\n"
)


class _Merge(jt.Function):
    def execute(self, *inputs: jt.Var) -> jt.Var:
        self.saved = inputs
        (y,) = _call("merge.h", _MERGE + "merge(layer, in0_p, in1_p, b, plane, out0_p);", inputs, [inputs[0].shape])
        return y

    def grad(self, dout: jt.Var) -> list[jt.Var]:
        return _call(
            "merge.h",
            _MERGE + "merge_backward(layer, in0_p, in1_p, in8_p, b, plane, {out0_p, out1_p, out2_p, out3_p, out4_p, "
            "out5_p, out6_p, out7_p});",
            (*self.saved, dout),
            [x.shape for x in self.saved],
        )


merge = _Merge.apply


_TEXT = (
    "TextShape s{in0_shape0, in0_shape1, in1_shape1, (int)in0_shape2, %d};\n"
    "TextWeights weights{in2_p, in3_p, in4_p, in5_p};\n"
)


class _PooledTextAttention(jt.Function):
    def execute(self, *arguments: jt.Var | int) -> jt.Var:
        *inputs, self.heads = arguments
        self.saved = inputs
        text = inputs[0]
        (y,) = _call(
            "text.h",
            _TEXT % self.heads + "pooled_text_attention(s, weights, in0_p, in1_p, out0_p);",
            inputs,
            [(text.shape[0], 1, text.shape[2])],
        )
        return y

    def grad(self, dout: jt.Var) -> tuple[jt.Var | None, ...]:
        grads = _call(
            "text.h",
            _TEXT % self.heads + "pooled_text_attention_backward(s, weights, in0_p, in1_p, in6_p, {out0_p, out1_p, "
            "out2_p, out3_p, out4_p, out5_p});",
            (*self.saved, dout),
            [x.shape for x in self.saved],
        )
        return *grads, None


pooled_text_attention = _PooledTextAttention.apply


_RESIZE = "ResizeShape s{%s_shape0 * %s_shape1, %s_shape2, %s_shape3, %s_shape2, %s_shape3};\n"


class _NearestResize(jt.Function):
    def execute(self, x: jt.Var, size: tuple[int, int]) -> jt.Var:
        self.shape = x.shape
        pairs = zip(x.shape[2:], size, strict=True)
        self.tables = [jt.array(nearest_indices(length, out_length)) for length, out_length in pairs]
        (y,) = _call(
            "resize.h",
            _RESIZE % (*["in0"] * 4, *["out0"] * 2) + "nearest_resize(s, in0_p, in1_p, in2_p, out0_p);",
            (x, *self.tables),
            [(*x.shape[:2], *size)],
        )
        return y

    def grad(self, dout: jt.Var) -> tuple[jt.Var, None]:
        (dx,) = _call(
            "resize.h",
            _RESIZE % (*["out0"] * 4, *["in0"] * 2) + "nearest_resize_backward(s, in0_p, in1_p, in2_p, out0_p);",
            (dout, *self.tables),
            [self.shape],
        )
        return dx, None


def nearest_resize(x: jt.Var, size: tuple[int, int]) -> jt.Var:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return _NearestResize.apply(x, size)
