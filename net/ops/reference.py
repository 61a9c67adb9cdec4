"""The reference forms: what each operation computes, in Jittor's own operators, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from utils.runtime.jittor_env import jt

MIN_NORM = 1e-12
LAYER_NORM_EPS = 1e-5

Layer = tuple[jt.Var, jt.Var | None]  # weight and bias


def pointwise_conv(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None) -> jt.Var:
    """1x1 convolution: x (b, i, H, W), weight (o, i, 1, 1), bias (o,) -> (b, o, H, W).

    A matrix product per image: y[o, p] = sum_i weight[o, i] x[i, p] + bias[o].
    """
    batch, channels, height, width = x.shape
    out_channels = weight.shape[0]
    matrix = weight.reshape((1, out_channels, channels)).broadcast((batch, out_channels, channels))
    y = jt.nn.bmm(matrix, x.reshape((batch, channels, -1))).reshape((batch, out_channels, height, width))
    return y if bias is None else y + bias.reshape((1, -1, 1, 1))


def pad(x: jt.Var, width: int) -> jt.Var:
    """Zeros around every image: x (b, c, H, W) -> (b, c, H + 2 width, W + 2 width).

    For convolutions: on a GPU, the gradient of Jittor's conv2d with its own padding writes outside the image.
    """
    return jt.nn.pad(x, [width] * 4)


def conv3x3(x: jt.Var, weight: jt.Var) -> jt.Var:
    """3x3 cross-correlation, zero padding 1: x (b, i, H, W), weight (o, i, 3, 3) -> (b, o, H, W)."""
    return jt.nn.conv2d(pad(x, 1), weight)


def depthwise_conv3x3(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None) -> jt.Var:
    """3x3 cross-correlation of each channel with its own kernel, zero padding 1.

    x (b, c, H, W), weight (c, 1, 3, 3), bias (c,) -> (b, c, H, W).
    """
    return jt.nn.conv2d(pad(x, 1), weight, bias, groups=x.shape[1])


def correlate(x: jt.Var, window: jt.Var) -> jt.Var:
    """Cross-correlation with a square window, zero padding that keeps the size: x (b, 1, H, W), window (1, 1, n, n).

    The window needs no gradient.
    """
    return jt.nn.conv2d(pad(x, window.shape[2] // 2), window)


def total(x: jt.Var) -> jt.Var:
    """Sum of (b, 1, H, W), row by row first: one float32 accumulator over a whole batch would lose five digits."""
    return x.sum(dim=3).sum()


def prelu(x: jt.Var, slope: jt.Var) -> jt.Var:
    """max(x, 0) + slope * min(x, 0), with one slope (1,)."""
    return jt.maximum(x, 0.0) + slope * jt.minimum(x, 0.0)


def gated_gelu(x: jt.Var) -> jt.Var:
    """gelu(x1) * x2 of the channel halves of x (b, 2h, H, W) -> (b, h, H, W), gelu(z) = z (1 + erf(z / sqrt 2)) / 2."""
    x1, x2 = jt.chunk(x, 2, dim=1)
    return x1 * (1 + jt.erf(x1 * math.sqrt(0.5))) * 0.5 * x2


def depthwise_gated_gelu(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None) -> jt.Var:
    """The gate of a depthwise convolution: x (b, 2h, H, W), weight (2h, 1, 3, 3), bias (2h,) -> (b, h, H, W)."""
    return gated_gelu(depthwise_conv3x3(x, weight, bias))


def channel_layer_norm(x: jt.Var, weight: jt.Var, bias: jt.Var | None) -> jt.Var:
    """Layer norm over the channels of every pixel: x (b, c, H, W), weight and bias (c,).

    (x - mu) / sqrt(var + 1e-5) * weight + bias, with the population variance. Without a bias:
    x / sqrt(var + 1e-5) * weight, with the same variance.
    """
    centred = x - x.mean(dim=1, keepdims=True)
    scale = 1 / jt.sqrt((centred * centred).mean(dim=1, keepdims=True) + LAYER_NORM_EPS)
    if bias is None:
        return x * scale * weight.reshape((1, -1, 1, 1))
    return centred * scale * weight.reshape((1, -1, 1, 1)) + bias.reshape((1, -1, 1, 1))


def channel_attention(qkv: jt.Var, temperature: jt.Var) -> jt.Var:
    """Attention between channels: qkv (b, 3c, H, W), temperature (heads, 1, 1) -> (b, c, H, W).

    A head has c / heads consecutive channels. Per head, with q, k and v (c / heads, H W), and q and k L2-normalised
    over the pixels: softmax(q k^T * temperature) v.
    """
    batch, channels, height, width = qkv.shape
    heads = temperature.shape[0]
    dim = channels // 3 // heads
    q, k, v = (part.reshape((batch * heads, dim, height * width)) for part in jt.chunk(qkv, 3, dim=1))
    scores = jt.nn.bmm_transpose(l2_normalize(q), l2_normalize(k)).reshape((batch, heads, dim, dim))
    attention = softmax(scores * temperature.reshape((1, heads, 1, 1)))
    return jt.nn.bmm(attention.reshape((batch * heads, dim, dim)), v).reshape((batch, heads * dim, height, width))


def merge(
    f: jt.Var, g: jt.Var, weight2: jt.Var, bias2: jt.Var, slope2: jt.Var, weight3: jt.Var, bias3: jt.Var, slope3: jt.Var
) -> jt.Var:
    """Merge features and text-guided features: f and g (b, c, H, W) -> (b, c, H, W).

    prelu3(conv3([f, prelu2(conv2(g)) + f])) with weight2 (c, c, 1, 1), weight3 (c, 2c, 1, 1), biases (c,), slopes (1,).
    """
    guided = prelu(pointwise_conv(g, weight2, bias2), slope2) + f
    return prelu(pointwise_conv(concat_channels(f, guided), weight3, bias3), slope3)


def mean_attention(q: jt.Var, k: jt.Var) -> jt.Var:
    """The softmax of the scores q k, averaged over the queries: q (n, L, dim), k (n, dim, T) -> (n, T)."""
    return softmax(jt.nn.bmm(q, k)).mean(dim=1)


def pooled_text_attention(
    text: jt.Var,
    tokens: jt.Var,
    in_weight: jt.Var,
    in_bias: jt.Var,
    out_weight: jt.Var,
    out_bias: jt.Var,
    heads: int,
    mean_attention: Callable[[jt.Var, jt.Var], jt.Var] = mean_attention,
) -> jt.Var:
    """Multi-head attention as torch.nn.MultiheadAttention computes it, averaged over its queries.

    text (b, L, e) holds the queries, tokens (b, T, e) the keys and values. in_weight (3e, e) and in_bias (3e,) project
    query, key and value, out_weight (e, e) and out_bias (e,) the output -> (b, 1, e).

    Everything after the softmax is linear, so the attention is averaged over the L queries first: the value and output
    projections then see one vector per head, not T tokens or L queries. The bias of the keys is left out: it shifts all
    scores of a query equally, and the softmax cancels that.
    """
    batch, queries, width = text.shape
    count = tokens.shape[1]
    dim = width // heads
    w_q, w_k, w_v = jt.chunk(in_weight, 3, dim=0)
    b_q, _, b_v = jt.chunk(in_bias, 3, dim=0)
    q = (jt.nn.matmul_transpose(text, w_q) + b_q) / math.sqrt(dim)
    # A row for each channel: so the heads need no transposition, and neither do the gradients.
    k = jt.nn.bmm_transpose(w_k.reshape((1, width, width)).broadcast((batch, width, width)), tokens)
    q = q.reshape((batch, queries, heads, dim)).transpose(0, 2, 1, 3).reshape((batch * heads, queries, dim))
    attention = mean_attention(q, k.reshape((batch * heads, dim, count)))
    pooled = jt.nn.bmm(attention.reshape((batch, heads, count)), tokens)  # (b, heads, e)
    # head h projects its own pooled token with its own rows of w_v
    values = (pooled.reshape((batch, heads, 1, width)) * w_v.reshape((1, heads, dim, width))).sum(dim=-1)
    values = values.reshape((batch, width)) + b_v
    return (jt.nn.matmul_transpose(values, out_weight) + out_bias).reshape((batch, 1, width))


def guide(tokens: jt.Var, pooled: jt.Var) -> jt.Var:
    """tokens (b, T, e) times the L1-normalised pooled (b, 1, e)."""
    return tokens * l1_normalize(pooled)


class _Concat(jt.Function):
    """Jittor's own gradient of concat copies `dy` for each array, to clear the part of that array."""

    def execute(self, a: jt.Var, b: jt.Var) -> jt.Var:
        self.channels = a.shape[1]
        return jt.concat([a, b], dim=1)

    def grad(self, dy: jt.Var) -> tuple[jt.Var, jt.Var]:
        return dy[:, : self.channels], dy[:, self.channels :]


def concat_channels(a: jt.Var, b: jt.Var) -> jt.Var:
    """The channels of a, then those of b: a (b, c, H, W), b (b, d, H, W) -> (b, c + d, H, W)."""
    return _Concat()(a, b)


def softmax(x: jt.Var) -> jt.Var:
    """exp(x) / sum exp(x) over the last axis. The maximum, which keeps exp finite, cancels: it needs no gradient.

    Jittor's own softmax differentiates it, which takes three passes over x.
    """
    e = jt.exp(x - x.max(dim=-1, keepdims=True).stop_grad())
    return e / e.sum(dim=-1, keepdims=True)


def l1_normalize(x: jt.Var) -> jt.Var:
    """x / max(sum |x|, 1e-12) over the last axis."""
    return x / jt.maximum(x.abs().sum(dim=-1, keepdims=True), MIN_NORM)


def l2_normalize(x: jt.Var) -> jt.Var:
    """x / max(||x||, 1e-12) over the last axis."""
    return x / jt.maximum(jt.sqrt((x * x).sum(dim=-1, keepdims=True)), MIN_NORM)


def take_pixels(x: jt.Var, rows: jt.Var, columns: jt.Var) -> jt.Var:
    """x (b, c, H, W), rows (r,), columns (k,) -> (b, c, r, k): y[..., i, j] = x[..., rows[i], columns[j]].

    The indices are int32 and ascend.
    """
    shape = [*x.shape[:2], rows.shape[0], columns.shape[0]]
    return x.reindex(shape, ["i0", "i1", "@e0(i2)", "@e1(i3)"], extras=[rows, columns])


def nearest_indices(length: int, out_length: int) -> np.ndarray:
    """The source index of each output position, int32 (out_length,); the ratio is float32, as in torch."""
    ratio = np.float32(length) / np.float32(out_length)
    indices = np.floor(np.arange(out_length, dtype=np.float32) * ratio).astype(np.int32)
    return np.minimum(indices, length - 1)
