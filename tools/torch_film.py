"""FILM's network and losses in PyTorch, written from the specification alone: the test reference of the Jittor code.

It shares only the two shapes of `net/shapes.py` with `net/` and `utils/training/losses.py`, so an error in one does not
repeat in the other. Parameter names are the official ones. Only `hidden_dim` and `image2text_dim` can be chosen: the
official training script has options for them.
"""

from __future__ import annotations

import ctypes
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.shapes import STAGE_SIZE, TEXT_SHAPE

CHANNELS = 32
HEADS = 8
FFN_FACTOR = 4

# The cross attention of each image, as the checkpoints call it.
ATTENTIONS = {"A": "cross_attentionA1", "B": "cross_attentionA2"}

# film.md, section 2.
SSIM_WINDOW, SSIM_SIGMA = 5, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of every pixel: (b,c,h,w) to (b,c,h,w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class ChannelAttention(nn.Module):
    """Restormer's MDTA: attention between the channels of a head, (b,c,h,w) to (b,c,h,w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv_dwconv(self.qkv(x)).view(b, 3, HEADS, c // HEADS, h * w).unbind(1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)  # (b, heads, c/heads, c/heads)
        mixed = torch.softmax(scores * self.temperature, dim=-1) @ v
        return self.project_out(mixed.reshape(b, c, h, w))


class GatedFeedForward(nn.Module):
    """Restormer's GDFN: (b,c,h,w) to (b,c,h,w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels * FFN_FACTOR
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class TransformerBlock(nn.Module):
    """Restormer's block: (b,c,h,w) to (b,c,h,w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.attn = ChannelAttention(channels)
        self.norm2 = ChannelNorm(channels)
        self.ffn = GatedFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class TextGuidedStage(nn.Module):
    """One of the three stages in which the text weights the features of both images.

    In checkpoints, parameter names of image A contain an A and those of image B a B, except for the attentions.
    """

    def __init__(self, in_channels: int, hidden_dim: int, image2text_dim: int) -> None:
        super().__init__()
        # In the official order, so that a seed makes the official initial values.
        for image in "AB":
            self.add_module(f"conv{image}1", nn.Conv2d(in_channels, CHANNELS, 3, padding=1, bias=False))
            self.add_module(f"prelu{image}1", nn.PReLU())
            self.add_module(f"conv{image}2", nn.Conv2d(image2text_dim, CHANNELS, 1))
            self.add_module(f"prelu{image}2", nn.PReLU())
            self.add_module(f"conv{image}3", nn.Conv2d(2 * CHANNELS, CHANNELS, 1))
            self.add_module(f"prelu{image}3", nn.PReLU())
        for image in "AB":
            self.add_module(f"restormer{image}1", TransformerBlock(CHANNELS))
        for name in ATTENTIONS.values():
            attention = nn.MultiheadAttention(hidden_dim, HEADS, batch_first=True)
            self.add_module(name, nn.ModuleDict({"multihead_attn": attention}))
        for image in "AB":
            self.add_module(f"imagef2textf{image}1", nn.ModuleDict({"conv": nn.Conv2d(CHANNELS, image2text_dim, 1)}))

    def forward(self, a: Tensor, b: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(b,in,h,w), (b,in,h,w), (b,L,hidden) to (b,32,h,w), (b,32,h,w)."""
        return self._guide("A", a, text), self._guide("B", b, text)

    def _guide(self, image: str, x: Tensor, text: Tensor) -> Tensor:
        def part(name: str) -> nn.Module:
            return self.get_submodule(name.replace("X", image))

        features = part("restormerX1")(part("preluX1")(part("convX1")(x)))
        resized = F.interpolate(part("imagef2textfX1.conv")(features), size=STAGE_SIZE, mode="nearest")
        # In memory order: a token is a run of pixels of one channel.
        tokens = resized.reshape(len(x), -1, text.shape[-1])
        attended, _ = part(f"{ATTENTIONS[image]}.multihead_attn")(text, tokens, tokens)  # (b, L, hidden)
        weight = F.normalize(attended.mean(dim=1, keepdim=True), p=1, dim=-1)
        guidance = F.interpolate((tokens * weight).reshape(resized.shape), size=x.shape[-2:], mode="nearest")
        guided = part("preluX2")(part("convX2")(guidance)) + features
        return part("preluX3")(part("convX3")(torch.cat([features, guided], dim=1)))


class TwinNet(nn.Module):
    """The official network with PyTorch's initial values (`torch.manual_seed` decides them).

    Args:
        hidden_dim: width of the text tokens inside, a multiple of 8 that divides image2text_dim * 288 * 384.
        image2text_dim: channels of the image features that the text attends to.
    """

    def __init__(self, hidden_dim: int = 256, image2text_dim: int = 32) -> None:
        super().__init__()
        self.text_process = nn.ModuleDict({"conv": nn.Conv1d(TEXT_SHAPE[1], hidden_dim, 1)})
        self.restormerca1 = TextGuidedStage(1, hidden_dim, image2text_dim)
        self.restormerca2 = TextGuidedStage(CHANNELS, hidden_dim, image2text_dim)
        self.restormerca3 = TextGuidedStage(CHANNELS, hidden_dim, image2text_dim)
        self.restormer1 = TransformerBlock(2 * CHANNELS)
        self.restormer2 = TransformerBlock(CHANNELS)
        self.restormer3 = TransformerBlock(CHANNELS)
        self.conv1 = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        self.conv2 = nn.Conv2d(CHANNELS, 1, 1)

    def forward(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """Images A and B (b,1,h,w) in 0..1 and text (b,L,768) to the fused image (b,1,h,w) in 0..1."""
        text = self.text_process["conv"](text.transpose(1, 2)).transpose(1, 2)
        for stage in (self.restormerca1, self.restormerca2, self.restormerca3):
            a, b = stage(a, b, text)
        x = self.conv1(self.restormer1(torch.cat([a, b], dim=1)))
        return torch.sigmoid(self.conv2(self.restormer3(self.restormer2(x))))


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for new ones, instead of returning it to the system.

    By default every large tensor is new memory, which the system clears page by page: a training step on the CPU takes
    several times as long. Peak memory grows by about a quarter. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def fusion_loss(a: Tensor, b: Tensor, fused: Tensor, grad_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The fusion loss of images (b,1,h,w): total, intensity term, gradient term (film.md, section 2)."""
    intensity = (torch.maximum(a, b) - fused).abs().mean()
    gradient = (torch.maximum(_sobel(a), _sobel(b)) - _sobel(fused)).abs().mean()
    return intensity + grad_weight * gradient, intensity, gradient


def _sobel(x: Tensor) -> Tensor:
    """|horizontal| + |vertical| Sobel response of (b,1,h,w), with zeros around the image."""
    horizontal = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=x.dtype, device=x.device)
    vertical = torch.tensor([[1, 2, 1], [0, 0, 0], [-1, -2, -1]], dtype=x.dtype, device=x.device)
    kernels = torch.stack([horizontal, vertical]).unsqueeze(1)
    return F.conv2d(x, kernels, padding=1).abs().sum(dim=1, keepdim=True)


def lp_ssim_loss(image: Tensor, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The Lp+SSIM loss of images (b,1,h,w): total, Lp term, weighted SSIM term (film.md, section 2)."""
    height, width = image.shape[-2:]
    lp = (image - fused).square().sum().sqrt()
    dissimilarity = (1 - _ssim(image, fused)) * int(math.sqrt(height * width))
    return lp + dissimilarity, lp, dissimilarity


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean SSIM of (b,1,h,w) in 0..1, with a Gaussian window and zeros around the image."""
    offsets = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    line = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    line = line / line.sum()
    window = torch.outer(line, line)[None, None]

    def local_mean(z: Tensor) -> Tensor:
        return F.conv2d(z, window, padding=SSIM_WINDOW // 2)

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = local_mean(x * x) - mean_x.square()
    var_y = local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)
    return (likeness / ((mean_x.square() + mean_y.square() + SSIM_C1) * (var_x + var_y + SSIM_C2))).mean()
