"""The Restormer transformer block (Zamir et al., CVPR 2022), which computes FILM's image features."""

from __future__ import annotations

from net import ops
from net.layers import DepthwiseConv3x3, PointwiseConv
from utils.runtime.jittor_env import jt

LAYER_NORMS = ("WithBias", "BiasFree")


class LayerNormBody(jt.nn.Module):
    """The parameters of a layer norm over `dim` channels, which official checkpoints name ``body``."""

    def __init__(self, dim: int, with_bias: bool) -> None:
        self.weight = jt.ones((dim,))
        self.bias = jt.zeros((dim,)) if with_bias else None


class LayerNorm(jt.nn.Module):
    """Normalise every pixel over its channels: (b, dim, H, W) -> the same.

    'WithBias': (x - mean) / sqrt(var + 1e-5) * weight + bias. 'BiasFree': x / sqrt(var + 1e-5) * weight, with the same
    variance (about the mean), as in the official code.
    """

    def __init__(self, dim: int, kind: str = "WithBias") -> None:
        if kind not in LAYER_NORMS:
            raise ValueError(f"LayerNorm_type {kind!r}: expected one of {', '.join(LAYER_NORMS)}")
        self.body = LayerNormBody(dim, kind == "WithBias")

    def execute(self, x: jt.Var) -> jt.Var:
        return ops.channel_layer_norm(x, self.body.weight, self.body.bias)


class Attention(jt.nn.Module):
    """The parameters of MDTA: multi-head attention between channels instead of pixels.

    MDTA(x) = project_out(channel_attention(qkv_dwconv(qkv(x)))), where qkv maps dim channels to 3 dim.
    """

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        self.temperature = jt.ones((heads, 1, 1))
        self.qkv = PointwiseConv(dim, 3 * dim, bias)
        self.qkv_dwconv = DepthwiseConv3x3(3 * dim, bias)
        self.project_out = PointwiseConv(dim, dim, bias)


class FeedForward(jt.nn.Module):
    """The parameters of GDFN: a gated feed-forward network.

    GDFN(x) = project_out(gated_gelu(dwconv(project_in(x)))), where project_in maps dim channels to 2 hidden.
    """

    def __init__(self, dim: int, ffn_expansion_factor: float, bias: bool) -> None:
        hidden = int(dim * ffn_expansion_factor)
        self.project_in = PointwiseConv(dim, 2 * hidden, bias)
        self.dwconv = DepthwiseConv3x3(2 * hidden, bias)
        self.project_out = PointwiseConv(hidden, dim, bias)


class TransformerBlock(jt.nn.Module):
    """x + MDTA(norm(x)), then x + GDFN(norm(x)): (b, dim, H, W) -> the same.

    Args:
        dim: channels, a multiple of `heads`.
        heads: groups of channels; channels attend to those of their own group.
        ffn_expansion_factor: hidden channels of the feed-forward network, as a multiple of `dim`.
        bias: whether its convolutions have a bias.
        LayerNorm_type: 'WithBias' or 'BiasFree'.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        ffn_expansion_factor: float = 4,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
    ) -> None:
        self.norm1 = LayerNorm(dim, LayerNorm_type)
        self.attn = Attention(dim, heads, bias)
        self.norm2 = LayerNorm(dim, LayerNorm_type)
        self.ffn = FeedForward(dim, ffn_expansion_factor, bias)

    def execute(self, x: jt.Var) -> jt.Var:
        norm1, attn, norm2, ffn = self.norm1.body, self.attn, self.norm2.body, self.ffn
        return ops.transformer_block(
            x,
            (norm1.weight, norm1.bias),
            (attn.qkv.weight, attn.qkv.bias),
            (attn.qkv_dwconv.weight, attn.qkv_dwconv.bias),
            attn.temperature,
            (attn.project_out.weight, attn.project_out.bias),
            (norm2.weight, norm2.bias),
            (ffn.project_in.weight, ffn.project_in.bias),
            (ffn.dwconv.weight, ffn.dwconv.bias),
            (ffn.project_out.weight, ffn.project_out.bias),
        )
