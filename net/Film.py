"""FILM: image fusion guided by text (Zhao et al., *Image Fusion via Vision-Language Model*, ICML 2024).

`Net` follows the official PyTorch code, which reproduces the published results. Its parameters have the official names,
so that checkpoints of either framework load into the other by name.
"""

from __future__ import annotations

import math

from net import ops
from net.layers import Conv3x3, PointwiseConv, PReLU, uniform_parameter
from net.restormer import TransformerBlock
from net.shapes import STAGE_SIZE, TEXT_SHAPE
from utils.runtime.jittor_env import jt

# What official checkpoints call the parts of a guidance stage, for image A and for image B.
OFFICIAL_NAMES = {
    "conv1": ("convA1", "convB1"),
    "prelu1": ("preluA1", "preluB1"),
    "conv2": ("convA2", "convB2"),
    "prelu2": ("preluA2", "preluB2"),
    "conv3": ("convA3", "convB3"),
    "prelu3": ("preluA3", "preluB3"),
    "restormer": ("restormerA1", "restormerB1"),
    "cross_attention": ("cross_attentionA1", "cross_attentionA2"),
    "image_to_text": ("imagef2textfA1", "imagef2textfB1"),
}


class TextProcess(jt.nn.Module):
    """Project text features position by position: (b, L, 768) -> (b, L, hidden_dim)."""

    def __init__(self, hidden_dim: int) -> None:
        self.conv = TextProjection(TEXT_SHAPE[1], hidden_dim)

    def execute(self, text: jt.Var) -> jt.Var:
        return self.conv(text)


class TextProjection(jt.nn.Module):
    """A linear layer whose weight has the shape (out, in, 1) of the 1-D convolution in official checkpoints."""

    def __init__(self, in_features: int, out_features: int) -> None:
        bound = 1 / math.sqrt(in_features)
        self.weight = uniform_parameter((out_features, in_features, 1), bound)
        self.bias = uniform_parameter((out_features,), bound)

    def execute(self, x: jt.Var) -> jt.Var:
        return jt.nn.matmul_transpose(x, self.weight[:, :, 0]) + self.bias


class ImageToText(jt.nn.Module):
    """Turn image features into tokens that text can attend to: (b, 32, H, W) -> (b, T, hidden_dim).

    The features are resized to 288x384, then read in memory order: a token is a run of `hidden_dim` consecutive pixels
    of one channel. This is unusual, but it is what the official network does. T is 13824 at the defaults.

    The official network convolves first, then resizes. Both orders give the same values, because the resizing takes
    the nearest pixel and the convolution sees one pixel at a time. So the convolution gets the smaller image.
    """

    def __init__(self, mid_channel: int, image2text_dim: int, hidden_dim: int) -> None:
        self.conv = PointwiseConv(mid_channel, image2text_dim, bias=True)
        self.hidden_dim = hidden_dim

    def execute(self, f: jt.Var) -> jt.Var:
        if math.prod(f.shape[2:]) > math.prod(STAGE_SIZE):
            f = self.conv(ops.nearest_resize(f, STAGE_SIZE))
        else:
            f = ops.nearest_resize(self.conv(f), STAGE_SIZE)
        return f.reshape((f.shape[0], -1, self.hidden_dim))


class OutProjection(jt.nn.Module):
    """The parameters of an attention's output projection, under their official names."""

    def __init__(self, dim: int) -> None:
        self.weight = uniform_parameter((dim, dim), 1 / math.sqrt(dim))
        self.bias = jt.zeros((dim,))


class MultiheadAttention(jt.nn.Module):
    """The parameters of torch.nn.MultiheadAttention, under their official names and with its initial values."""

    def __init__(self, dim: int) -> None:
        self.in_proj_weight = uniform_parameter((3 * dim, dim), math.sqrt(6 / (3 * dim + dim)))
        self.in_proj_bias = jt.zeros((3 * dim,))
        self.out_proj = OutProjection(dim)


class CrossAttention(jt.nn.Module):
    """Cross-attention with text positions as queries and image tokens as keys and values, averaged over the queries.

    (b, L, dim) text and (b, T, dim) tokens -> (b, 1, dim).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        self.num_heads = num_heads
        self.multihead_attn = MultiheadAttention(dim)

    def execute(self, text: jt.Var, tokens: jt.Var) -> jt.Var:
        attn = self.multihead_attn
        return ops.pooled_text_attention(
            text,
            tokens,
            attn.in_proj_weight,
            attn.in_proj_bias,
            attn.out_proj.weight,
            attn.out_proj.bias,
            self.num_heads,
        )


class GuidedBranch(jt.nn.Module):
    """The branch of a guidance stage for one image: (b, in, H, W) and text (b, L, hidden_dim) -> (b, mid, H, W)."""

    def __init__(
        self,
        in_channel: int,
        mid_channel: int,
        decoder_num_heads: int,
        ffn_factor: float,
        bias: bool,
        LayerNorm_type: str,
        hidden_dim: int,
        image2text_dim: int,
    ) -> None:
        self.conv1 = Conv3x3(in_channel, mid_channel)
        self.prelu1 = PReLU()
        self.conv2 = PointwiseConv(mid_channel, mid_channel, bias=True)
        self.prelu2 = PReLU()
        self.conv3 = PointwiseConv(2 * mid_channel, mid_channel, bias=True)
        self.prelu3 = PReLU()
        self.restormer = TransformerBlock(mid_channel, decoder_num_heads, ffn_factor, bias, LayerNorm_type)
        self.cross_attention = CrossAttention(hidden_dim, decoder_num_heads)
        self.image_to_text = ImageToText(mid_channel, image2text_dim, hidden_dim)

    def execute(self, x: jt.Var, text: jt.Var) -> jt.Var:
        batch, _, height, width = x.shape
        f = self.restormer(self.prelu1(self.conv1(x)))  # (b, 32, H, W)
        tokens = self.image_to_text(f)  # (b, 13824, 256)
        pooled = self.cross_attention(text, tokens)  # (b, 1, 256)
        g = ops.guide(tokens, pooled).reshape((batch, -1, *STAGE_SIZE))  # (b, 32, 288, 384)
        g = ops.nearest_resize(g, (height, width))
        # prelu3(conv3([f, prelu2(conv2(g)) + f])), in one pass over the pixels
        return ops.merge(
            f,
            g,
            self.conv2.weight,
            self.conv2.bias,
            self.prelu2.weight,
            self.conv3.weight,
            self.conv3.bias,
            self.prelu3.weight,
        )


class GuidanceStage(jt.nn.Module):
    """One of FILM's three stages of text-guided feature extraction: two images and the text -> two feature maps.

    The layers are attributes under their official names; the branches only arrange them.
    """

    def __init__(self, *branch_settings: object) -> None:
        self._branches = tuple(GuidedBranch(*branch_settings) for _ in "AB")
        for part, names in OFFICIAL_NAMES.items():
            for branch, name in zip(self._branches, names, strict=True):
                setattr(self, name, getattr(branch, part))

    def execute(self, a: jt.Var, b: jt.Var, text: jt.Var) -> tuple[jt.Var, jt.Var]:
        branch_a, branch_b = self._branches
        return branch_a(a, text), branch_b(b, text)


class Net(jt.nn.Module):
    """FILM: images A and B (b, 1, H, W) in 0..1 and text features (b, L, 768) -> the fused image (b, 1, H, W) in 0..1.

    Any image size and any number L of text positions are accepted. 2,070,235 parameters in 189 tensors at the defaults.

    Args:
        mid_channel: channels of the image features.
        decoder_num_heads: heads of every attention.
        ffn_factor: hidden channels of the feed-forward networks, as a multiple of their width.
        bias: whether the convolutions of the transformer blocks have a bias.
        LayerNorm_type: 'WithBias' or 'BiasFree'.
        out_channel: channels of the fused image.
        hidden_dim: width of text tokens; a multiple of the heads that divides 288 * 384 * image2text_dim.
        image2text_dim: channels of the image features that text attends to; must equal `mid_channel`.
        pooling: how text positions are pooled; only 'avg'.
        normalization: how the pooled guidance is normalised; only 'l1'.

    Raises:
        ValueError: the arguments do not describe a network that this code supports.
    """

    def __init__(
        self,
        mid_channel: int = 32,
        decoder_num_heads: int = 8,
        ffn_factor: float = 4,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
        out_channel: int = 1,
        hidden_dim: int = 256,
        image2text_dim: int = 32,
        pooling: str = "avg",
        normalization: str = "l1",
    ) -> None:
        if (pooling, normalization) != ("avg", "l1"):
            raise ValueError(f"pooling {pooling!r}, normalization {normalization!r}: only 'avg' and 'l1' are supported")
        if image2text_dim != mid_channel:
            raise ValueError(f"image2text_dim {image2text_dim}: must equal mid_channel, {mid_channel}")
        if math.prod(STAGE_SIZE) * image2text_dim % hidden_dim or hidden_dim % decoder_num_heads:
            raise ValueError(
                f"hidden_dim {hidden_dim}: must divide {math.prod(STAGE_SIZE) * image2text_dim}, and be a "
                f"multiple of {decoder_num_heads}"
            )
        block = (decoder_num_heads, ffn_factor, bias, LayerNorm_type)
        stage = (mid_channel, *block, hidden_dim, image2text_dim)
        self.text_process = TextProcess(hidden_dim)
        self.restormerca1 = GuidanceStage(1, *stage)
        self.restormerca2 = GuidanceStage(mid_channel, *stage)
        self.restormerca3 = GuidanceStage(mid_channel, *stage)
        self.restormer1 = TransformerBlock(2 * mid_channel, *block)
        self.restormer2 = TransformerBlock(mid_channel, *block)
        self.restormer3 = TransformerBlock(mid_channel, *block)
        self.conv1 = PointwiseConv(2 * mid_channel, mid_channel, bias=True)
        self.conv2 = PointwiseConv(mid_channel, out_channel, bias=True)

    def execute(self, imageA: jt.Var, imageB: jt.Var, text: jt.Var) -> jt.Var:
        text = self.text_process(text)
        a, b = imageA, imageB
        for stage in (self.restormerca1, self.restormerca2, self.restormerca3):
            a, b = stage(a, b, text)
        x = self.restormer1(ops.concat_channels(a, b))  # (b, 64, H, W)
        x = self.restormer3(self.restormer2(self.conv1(x)))  # (b, 32, H, W)
        return jt.sigmoid(self.conv2(x))
