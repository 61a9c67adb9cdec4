"""The fast forms for the CPU: kernels of net/kernels, which Jittor compiles on first use.

`reference` says what each computes. Forward passes keep little more than their inputs. Backward passes recompute
the rest row by row, which is faster than reading it from memory.
"""

from __future__ import annotations

from net.ops.binding import KernelOperation
from net.ops.reference import Layer
from utils.runtime.jittor_env import jt

_CONV_SHAPE = "const ConvShape s{(int)i, (int)o, b, h, w};\n"

pointwise_conv = KernelOperation(
    "conv.h",
    inputs={"x": "b i h w", "weight": "o i 1 1", "bias?": "o"},
    makes={"y": "b o h w"},
    setup=_CONV_SHAPE,
    forward="pointwise_conv(s, x, weight, bias, y);",
    backward=[
        "pointwise_conv({(int)o, (int)i, b, h, w}, dy, weight, nullptr, dx, true);",
        "pointwise_conv_weights(s, x, dy, dweight, dbias);",
    ],
)

conv3x3 = KernelOperation(
    "conv.h",
    inputs={"x": "b i h w", "weight": "o i 3 3"},
    makes={"y": "b o h w"},
    setup=_CONV_SHAPE,
    forward="conv3x3(s, x, weight, y);",
    backward=["conv3x3_input(s, dy, weight, dx);", "conv3x3_weights(s, x, dy, dweight);"],
)

prelu = KernelOperation(
    "conv.h",
    inputs={"x": "b c h w", "slope": "1"},
    makes={"y": "b c h w"},
    forward="prelu(x, *slope, b * c * h * w, y);",
    backward=["prelu_backward(x, *slope, dy, b * c * h * w, dx, dslope);"],
)

merge = KernelOperation(
    "merge.h",
    inputs={
        "f": "b c h w",
        "g": "b c h w",
        "weight2": "c c 1 1",
        "bias2": "c",
        "slope2": "1",
        "weight3": "c 2c 1 1",
        "bias3": "c",
        "slope3": "1",
    },
    makes={"y": "b c h w"},
    setup="const Merge layer{(int)c, weight2, bias2, slope2, weight3, bias3, slope3};\n",
    forward="merge(layer, f, g, b, h * w, y);",
    backward=[
        "merge_backward(layer, f, g, dy, b, h * w, {.f = df, .g = dg, .weight2 = dweight2, .bias2 = dbias2,\n"
        "    .slope2 = dslope2, .weight3 = dweight3, .bias3 = dbias3, .slope3 = dslope3});"
    ],
)

_pooled_text_attention = KernelOperation(
    "text.h",
    inputs={
        "text": "b l e",
        "tokens": "b t e",
        "in_weight": "3e e",
        "in_bias": "3e",
        "out_weight": "e e",
        "out_bias": "e",
        "heads": int,
        "length": int,
    },
    makes={"y": "b 1 e", "keys": "b e length"},
    setup="const TextShape s{b, l, t, (int)e, (int)heads, length};\n"
    "const TextWeights weights{in_weight, in_bias, out_weight, out_bias};\n",
    forward="pooled_text_attention(s, weights, text, tokens, y, keys);",
    backward=[
        "pooled_text_attention_backward(s, weights, text, tokens, keys, dy, {.text = dtext, .tokens = dtokens,\n"
        "    .in_weight = din_weight, .in_bias = din_bias, .out_weight = dout_weight, .out_bias = dout_bias});"
    ],
)


def pooled_text_attention(text: jt.Var, tokens: jt.Var, *weights_and_heads: jt.Var | int) -> jt.Var:
    """The attention, with keys kept in rows of an odd number of cache lines: channels lie in different cache sets."""
    lines = (tokens.shape[1] + 15) // 16 | 1
    return _pooled_text_attention(text, tokens, *weights_and_heads, 16 * lines)


take_pixels = KernelOperation(
    "resize.h",
    inputs={"x": "b c h w", "rows": "r", "columns": "u"},
    makes={"y": "b c r u"},
    setup="const ResizeShape s{b * c, h, w, r, u};\n",
    forward="nearest_resize(s, x, rows, columns, y);",
    backward=["nearest_resize_backward(s, dy, rows, columns, dx);"],
)

guide = KernelOperation(
    "elementwise.h",
    inputs={"tokens": "b t e", "pooled": "b 1 e"},
    makes={"y": "b t e"},
    forward="guide(tokens, pooled, b, t, e, y);",
    backward=["guide_backward(tokens, pooled, dy, b, t, e, dtokens, dpooled);"],
)

concat_channels = KernelOperation(
    "elementwise.h",
    inputs={"first": "b c h w", "second": "b c h w"},
    makes={"y": "b 2c h w"},
    forward="concat_channels(first, second, b, c, h * w, y);",
    backward=["split_channels(dy, b, c, h * w, dfirst, dsecond);"],
)

# The backward pass reads `v` and `scores` (`Scores::write` in kernels/attention.h). `dmiddle` is the gradient of
# what the attention half passes to the feed-forward half.
_transformer_block = KernelOperation(
    "block.h",
    inputs={
        "x": "b c h w",
        "norm1_weight": "c",
        "norm1_bias": "c",
        "qkv": "3c c 1 1",
        "qkv_depthwise": "3c 1 3 3",
        "temperature": "n 1 1",
        "attention_out": "c c 1 1",
        "norm2_weight": "c",
        "norm2_bias": "c",
        "project_in": "2k c 1 1",
        "depthwise": "2k 1 3 3",
        "project_out": "c k 1 1",
        "length": int,
    },
    makes={"y": "b c h w", "v": "b c h w", "scores": "b length", "dmiddle": "b c h w"},
    float64=["scores"],
    setup="const int width = c;\n"
    "const TransformerBlock layer{\n"
    "    {{width, 3 * width, norm1_weight, norm1_bias, qkv, qkv_depthwise}, (int)n, temperature, attention_out},\n"
    "    {{width, 2 * (int)k, norm2_weight, norm2_bias, project_in, depthwise}, project_out}};\n",
    forward="transformer_block(layer, x, b, h, w, y, v, scores);",
    backward=[
        "transformer_block_backward(layer, x, v, scores, dy, b, h, w,\n"
        "    {.x = dx, .norm_weight = dnorm1_weight, .norm_bias = dnorm1_bias, .expand = dqkv,\n"
        "     .depthwise = dqkv_depthwise, .temperature = dtemperature, .project = dattention_out},\n"
        "    {.x = dmiddle, .norm_weight = dnorm2_weight, .norm_bias = dnorm2_bias, .expand = dproject_in,\n"
        "     .depthwise = ddepthwise, .contract = dproject_out});"
    ],
)


def transformer_block(
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
    """The block in two passes over x (b, c, H, W), for norms with a bias and convolutions without; else NotImplemented.

    The first pass sums the scores of the channel attention. The second computes the output of the attention row by row
    and applies the feed-forward network to it.
    """
    convolutions = (qkv, qkv_depthwise, attention_out, project_in, depthwise, project_out)
    if any(bias is not None for _, bias in convolutions):
        return NotImplemented
    weights = [weight for weight, _ in convolutions]
    length = x.shape[1] * (x.shape[1] // temperature.shape[0] + 2)
    return _transformer_block(x, *norm1, *weights[:2], temperature, weights[2], *norm2, *weights[3:], length)
