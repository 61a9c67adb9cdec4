"""The fast forms for a GPU: CUDA kernels of net/kernels/cuda, where Jittor's own operators are slow.

`reference` says what each computes. Operations without a form here are mainly matrix products (cuBLAS) or element-wise.
No form needs cuDNN. Sums are in float32 and always in the same order. The sources also compile for the CPU, where
loops replace the threads, so that they can be tested without a GPU.
"""

from __future__ import annotations

from net.ops import reference
from net.ops.binding import KernelOperation
from net.ops.reference import pointwise_conv
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
    y = _depthwise_conv3x3(x, weight)
    return y if bias is None else y + bias.reshape((1, -1, 1, 1))


_prelu = KernelOperation(
    "cuda/pixel.cuh",
    inputs={"x": "b c h w", "slope": "1"},
    makes={"y": "b c h w", "planes": "b c"},
    forward="for_each(Prelu{x, slope, y}, b * c * h * w);",
    backward=[
        "for_each(PreluBackward{x, slope, dy, dx}, b * c * h * w);",
        "sum_each<1>(PreluSlope{h * w, x, dy, planes}, b * c, h * w);\nsum_each<1>(Total{planes, dslope}, 1, b * c);",
    ],
)

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
    inputs={"x": "b c h w", "rows": "r", "columns": "k"},
    makes={"y": "b c r k"},
    forward="for_each(NearestResize{h, w, r, k, x, rows, columns, y}, b * c * r * k);",
    backward=["for_each(NearestResizeBackward{h, w, r, k, dy, rows, columns, dx}, b * c * h * w);"],
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


def prelu(x: jt.Var, slope: jt.Var) -> jt.Var:
    """Where no gradient is needed, Jittor's operators, which it fuses with those before."""
    return reference.prelu(x, slope) if jt.flags.no_grad else _prelu(x, slope)


def merge(
    f: jt.Var, g: jt.Var, weight2: jt.Var, bias2: jt.Var, slope2: jt.Var, weight3: jt.Var, bias3: jt.Var, slope3: jt.Var
) -> jt.Var:
    """`reference.merge` as a sum of two products: [f, guided] is not put together, which would copy it twice."""
    guided = prelu(pointwise_conv(g, weight2, bias2), slope2) + f
    first, second = jt.chunk(weight3, 2, dim=1)
    return prelu(pointwise_conv(f, first) + pointwise_conv(guided, second, bias3), slope3)
