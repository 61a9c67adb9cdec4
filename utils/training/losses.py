"""The losses of the official code (film.md, section 2). Images are (b, 1, H, W) in 0..1."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from net import ops
from utils.runtime.collective import sum_over_all
from utils.runtime.jittor_env import jt

SOBEL_X = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
SOBEL_Y = ((1, 2, 1), (0, 0, 0), (-1, -2, -1))
SSIM_WINDOW = 5
SSIM_SIGMA = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


class FusionLoss(NamedTuple):
    """`total` = `intensity` + weight * `gradient`, each a scalar (1,)."""

    total: jt.Var
    intensity: jt.Var
    gradient: jt.Var


class LpSSIM(NamedTuple):
    """`total` = `lp` + `ssim`, each a scalar (1,); `ssim` is (1 - SSIM) times int(sqrt(H W))."""

    total: jt.Var
    lp: jt.Var
    ssim: jt.Var


def fusion_loss(a: jt.Var, b: jt.Var, fused: jt.Var, grad_weight: float = 20) -> FusionLoss:
    """Distance of the fused image from the brighter source and from the stronger of the sources' gradients.

    mean |max(A, B) - F| + grad_weight * mean |max(S(A), S(B)) - S(F)|, S the Sobel magnitude |x * Kx| + |x * Ky|.
    """
    intensity = _mean((jt.maximum(a, b) - fused).abs())
    gradient = _mean((jt.maximum(sobel(a), sobel(b)) - sobel(fused)).abs())
    return FusionLoss(intensity + grad_weight * gradient, intensity, gradient)


def lp_ssim(image: jt.Var, fused: jt.Var) -> LpSSIM:
    """Distance of the fused image from one source: the L2 norm over the whole batch, and structural similarity.

    sqrt(sum (I - F)^2) + (1 - SSIM(I, F)) * int(sqrt(H W)). The norm is over the parts of all processes, so that the
    mean of `total` over the processes is its value for the whole batch.
    """
    difference = image - fused
    lp = jt.sqrt(sum_over_all(ops.total(difference * difference)))
    weight = int(math.sqrt(image.shape[2] * image.shape[3]))
    ssim_term = (1 - ssim(image, fused)) * weight
    return LpSSIM(lp + ssim_term, lp, ssim_term)


def sobel(x: jt.Var) -> jt.Var:
    """|x * Kx| + |x * Ky|, cross-correlation with zero padding 1: (b, 1, H, W) -> the same."""
    return _filter(x, SOBEL_X).abs() + _filter(x, SOBEL_Y).abs()


def ssim(x: jt.Var, y: jt.Var) -> jt.Var:
    """Mean structural similarity (Wang et al. 2004) over a 5x5 Gaussian window of sigma 1.5, zero padding 2."""
    window = _gaussian_window()
    mu_x, mu_y = _filter(x, window), _filter(y, window)
    var_x = _filter(x * x, window) - mu_x * mu_x
    var_y = _filter(y * y, window) - mu_y * mu_y
    covariance = _filter(x * y, window) - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + SSIM_C1) / (mu_x * mu_x + mu_y * mu_y + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (var_x + var_y + SSIM_C2)
    return _mean(luminance * structure)


def _mean(x: jt.Var) -> jt.Var:
    return ops.total(x) / x.numel()


Window = tuple[tuple[float, ...], ...]


@cache
def _gaussian_window() -> Window:
    """(5, 5) weights that sum to 1, each step rounded to float32, as in the official code.

    Flat regions have variances near the rounding error, where the last bit of the
    weights moves the SSIM term by 4e-5 relative.
    """
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    row = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2)).astype(np.float32)
    row /= row.sum()
    return tuple(map(tuple, np.outer(row, row)))


@cache
def _kernel(window: Window) -> jt.Var:
    """The window as the weight of a convolution, (1, 1, k, k). Kept, because each new array is a copy to the device."""
    return jt.array(np.asarray(window, np.float32)[None, None]).stop_grad()


def _filter(x: jt.Var, window: Window) -> jt.Var:
    """Cross-correlate (b, 1, H, W) with a square window, zero padding that keeps the size."""
    return ops.correlate(x, _kernel(window))
