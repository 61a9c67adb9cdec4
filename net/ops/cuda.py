"""The fast forms for a GPU: CUDA kernels of net/kernels/cuda, where Jittor's own operators are slow.

`reference` says what each computes. Operations without a form here are mainly matrix products (cuBLAS) or element-wise.
No form needs cuDNN. Sums are in float32 and always in the same order. The sources also compile for the CPU, where
loops replace the threads, so that they can be tested without a GPU.
"""

from __future__ import annotations

from net.ops import reference
from net.ops.binding import KernelOperation
from net.ops.recompute import recomputed
from utils.runtime.jittor_env import jt

_PLANE = "const Plane plane{h, w};\n"

conv3x3 = KernelOperation(
    "cuda/conv.cuh",
    inputs={"x": "b i h w", "weight": "o i 3 3"},
    makes={"y": "b o h w"},
    setup=_PLANE,
    forward="for_each(Conv3x3{plane, i, o, x, weight, false, y}, b * o * h * w);",
    backward=[
        "for_each(Conv3x3{plane, o, i, dy, weight, true, dx}, b * i * h * w);",
        "sum_each<9>(Conv3x3Weights{plane, i, o, x, dy, dweight}, o * i, b * h * w);",
    ],
)

correlate = KernelOperation(
    "cuda/conv.cuh",
    inputs={"x": "b c h w", "window": "1 1 n n"},
    makes={"y": "b c h w"},
    setup=_PLANE,
    forward="for_each(Correlate{plane, n, x, window, false, y}, b * c * h * w);",
    backward=["for_each(Correlate{plane, n, dy, window, true, dx}, b * c * h * w);"],
)

_depthwise_conv3x3 = KernelOperation(
    "cuda/conv.cuh",
    inputs={"x": "b c h w", "weight": "c 1 3 3"},
    makes={"y": "b c h w"},
    setup=_PLANE,
    forward="for_each(Depthwise{plane, c, x, weight, false, y}, b * c * h * w);",
    backward=[
        "for_each(Depthwise{plane, c, dy, weight, true, dx}, b * c * h * w);",
        "sum_each<9>(DepthwiseWeights{plane, c, x, dy, dweight}, c, b * h * w);",
    ],
)


def depthwise_conv3x3(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None) -> jt.Var:
    return add_bias(_depthwise_conv3x3(x, weight), bias)


# Sums over the pixels of few channels are divided among this many groups of threads for each plane.
PARTS = 16
_PART = "const Part part{b * c, h * w, (h * w + p - 1) / p};\n"

_prelu = KernelOperation(
    "cuda/pixel.cuh",
    inputs={"x": "b c h w", "slope": "1", "p": int, "bias?": "c"},
    makes={"y": "b c h w", "parts": "p b c 2"},
    setup="const Biased input{c, h * w, x, bias};\n",
    forward="for_each(Prelu{input, slope, y}, b * c * h * w);",
    backward=[
        _PART + "sum_each<2>(PreluBackward{input, part, slope, dy, dx, parts}, p * b * c, part.size);\n"
        "sum_each<1>(Total{parts, 0, 2, dslope}, 1, p * b * c);\n"
        "if (dbias) sum_each<1>(Total{parts + 1, 2, 2 * c, dbias}, c, p * b);"
    ],
)

_PART_SUMS = "sum_each<1>(PartSums{part, x, parts}, p * b * c, part.size);\n"

_channel_sums = KernelOperation(
    "cuda/pixel.cuh",
    inputs={"x": "b c h w", "p": int},
    makes={"y": "c", "parts": "p b c"},
    setup=_PART,
    forward=_PART_SUMS + "sum_each<1>(Total{parts, 1, c, y}, c, p * b);",
)

_total = KernelOperation(
    "cuda/pixel.cuh",
    inputs={"x": "b c h w", "p": int},
    makes={"y": "1", "parts": "p b c"},
    setup=_PART,
    forward=_PART_SUMS + "sum_each<1>(Total{parts, 0, 1, y}, 1, p * b * c);",
)


class _Total(jt.Function):
    """Jittor's own sum adds in no fixed order."""

    def execute(self, x: jt.Var) -> jt.Var:
        self.shape = x.shape
        return _total(x, PARTS)

    def grad(self, dy: jt.Var) -> jt.Var:
        return dy.reshape((1, 1, 1, 1)).broadcast(self.shape)


def total(x: jt.Var) -> jt.Var:
    return _Total()(x)


class _AddBias(jt.Function):
    """Likewise the gradient of the bias."""

    def execute(self, x: jt.Var, bias: jt.Var) -> jt.Var:
        return x + bias.reshape((1, -1, 1, 1))

    def grad(self, dy: jt.Var) -> tuple[jt.Var, jt.Var]:
        return dy, _channel_sums(dy, PARTS)


def add_bias(x: jt.Var, bias: jt.Var | None) -> jt.Var:
    """x (b, c, H, W) + bias (c,), if there is one."""
    return x if bias is None else _AddBias()(x, bias)


def pointwise_conv(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None) -> jt.Var:
    return add_bias(reference.pointwise_conv(x, weight), bias)


channel_layer_norm = KernelOperation(
    "cuda/pixel.cuh",
    inputs={"x": "b c h w", "weight": "c", "bias": "c"},
    makes={"y": "b c h w", "statistics": "2 b h w"},
    setup="const long plane = h * w, pixels = b * plane;\n",
    forward="for_each(LayerNorm{c, plane, x, weight, bias, y}, pixels);",
    backward=[
        "for_each(LayerNormBackward{c, plane, pixels, x, weight, dy, dx, statistics}, pixels);",
        "sum_each<2>(LayerNormWeights{c, plane, pixels, x, dy, statistics, dweight, dbias}, c, pixels);",
    ],
)

_depthwise_gated_gelu = KernelOperation(
    "cuda/gate.cuh",
    inputs={"x": "b 2k h w", "weight": "2k 1 3 3"},
    makes={"y": "b k h w", "dz": "b 2k h w"},
    setup=_PLANE + "const Halves halves{plane, k, x, weight};\n",
    forward="for_each(DepthwiseGate{halves, y}, b * k * h * w);",
    backward=[
        "for_each(DepthwiseGateBackward{halves, dy, dz}, b * k * h * w);",
        "for_each(Depthwise{plane, 2 * k, dz, weight, true, dx}, b * 2 * k * h * w);",
        "sum_each<9>(DepthwiseWeights{plane, 2 * k, x, dz, dweight}, 2 * k, b * h * w);",
    ],
)


def depthwise_gated_gelu(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None) -> jt.Var:
    return (
        _depthwise_gated_gelu(x, weight) if bias is None else reference.gated_gelu(depthwise_conv3x3(x, weight, bias))
    )


take_pixels = KernelOperation(
    "cuda/pixel.cuh",
    inputs={"x": "b c h w", "rows": "r", "columns": "u"},
    makes={"y": "b c r u"},
    forward="for_each(NearestResize{h, w, r, u, x, rows, columns, y}, b * c * r * u);",
    backward=["for_each(NearestResizeBackward{h, w, r, u, dy, rows, columns, dx}, b * c * h * w);"],
)

_channel_attention = KernelOperation(
    "cuda/attention.cuh",
    inputs={"x": "b 3c h w", "temperature": "n 1 1", "d": int},
    makes={
        "y": "b c h w",
        "scores": "b c d",
        "norms": "b 2c",
        "attention": "b c d",
        "dattention": "b c d",
        "dz": "b c d",
    },
    setup="const Heads heads{c, d, h * w};\nconst Pairs pairs{heads, temperature, scores, norms};\n",
    forward="sum_each<1>(Scores{heads, x, scores}, b * c * d, h * w);\n"
    "sum_each<1>(Norms{heads, x, norms}, b * 2 * c, h * w);\n"
    "for_each(Softmax{pairs, attention}, b * c);\n"
    "for_each(Mix{heads, x, attention, y}, b * c * h * w);",
    backward=[
        "sum_each<1>(AttentionGrad{heads, x, dy, dattention}, b * c * d, h * w);\n"
        "for_each(SoftmaxGrad{d, attention, dattention, dz}, b * c);\n"
        "sum_each<1>(TemperatureGrad{pairs, dz, dtemperature}, n, b * d * d);\n"
        "for_each(QkvGrad{pairs, x, attention, dz, dy, dx}, b * 3 * c * h * w);",
    ],
)


def channel_attention(qkv: jt.Var, temperature: jt.Var) -> jt.Var:
    return _channel_attention(qkv, temperature, qkv.shape[1] // 3 // temperature.shape[0])


def prelu(x: jt.Var, slope: jt.Var, bias: jt.Var | None = None) -> jt.Var:
    """PReLU of x + bias. Where no gradient is needed, Jittor's operators, which it fuses with those before."""
    return reference.prelu(add_bias(x, bias), slope) if jt.flags.no_grad else _prelu(x, slope, PARTS, bias)


def merge(
    f: jt.Var, g: jt.Var, weight2: jt.Var, bias2: jt.Var, slope2: jt.Var, weight3: jt.Var, bias3: jt.Var, slope3: jt.Var
) -> jt.Var:
    """`reference.merge` as a sum of two products: [f, guided] is not put together, which would copy it twice."""
    guided = prelu(pointwise_conv(g, weight2), slope2, bias2) + f
    first, second = jt.chunk(weight3, 2, dim=1)
    return prelu(pointwise_conv(f, first) + pointwise_conv(guided, second), slope3, bias3)


_mean_attention = KernelOperation(
    "cuda/text.cuh",
    inputs={"scores": "n l t"},
    makes={"y": "n t", "rows": "n l 2"},
    forward="for_each_block(MeanAttentionRows{l, t, scores, rows}, n * l);\n"
    "for_each(MeanAttention{l, t, scores, rows, y}, n * t);",
    backward=["for_each_block(MeanAttentionBackward{l, t, scores, dy, dscores}, n * l);"],
)


@recomputed
def mean_attention(q: jt.Var, k: jt.Var) -> jt.Var:
    return _mean_attention(jt.nn.bmm(q, k))


def pooled_text_attention(*arguments: jt.Var | int) -> jt.Var:
    return reference.pooled_text_attention(*arguments, mean_attention=mean_attention)


_scale_tokens = KernelOperation(
    "cuda/text.cuh",
    inputs={"tokens": "b t e", "scale": "b e", "p": int},
    makes={"y": "b t e", "parts": "p b e"},
    forward="for_each(ScaleTokens{t, e, tokens, scale, y}, b * t * e);",
    backward=[
        "for_each(ScaleTokensBackward{p, b, t, e, tokens, scale, dy, dtokens, parts}, p * b * e);\n"
        "sum_each<1>(Total{parts, 1, b * e, dscale}, b * e, p);"
    ],
)


def guide(tokens: jt.Var, pooled: jt.Var) -> jt.Var:
    return _scale_tokens(tokens, reference.l1_normalize(pooled)[:, 0], 16 * PARTS)
