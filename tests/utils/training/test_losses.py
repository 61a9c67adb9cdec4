"""The losses against the official values, and against the same formulas written with other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import convolve, correlate

from utils.runtime.jittor_env import jt
from utils.training.losses import SOBEL_X, SOBEL_Y, fusion_loss, lp_ssim, sobel, ssim


def images(seed: int, count: int, *shape: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(shape, dtype=np.float32) for _ in range(count)]


def test_fusion_loss_equals_the_official_one(golden):
    a, b, fused = (jt.array(golden[key]) for key in ("train_A", "train_B", "train_out"))
    for value, key in zip(fusion_loss(a, b, fused, 20), ("loss_total", "loss_in", "loss_grad"), strict=True):
        assert value.item() == pytest.approx(float(golden[key]), rel=1e-5)


@pytest.mark.parametrize("source", "AB")
def test_lp_ssim_equals_the_official_one(golden, source):
    values = lp_ssim(jt.array(golden[f"train_{source}"]), jt.array(golden["train_out"]))
    assert [v.item() for v in values] == pytest.approx(golden[f"lplssim{source}"].tolist(), rel=1e-5)


def test_sobel_is_a_cross_correlation_with_zero_padding():
    (x,) = images(0, 1, 2, 1, 7, 9)
    expected = [
        sum(np.abs(correlate(plane[0].astype(float), np.array(k), mode="constant")) for k in (SOBEL_X, SOBEL_Y))
        for plane in x
    ]
    np.testing.assert_allclose(sobel(jt.array(x)).numpy()[:, 0], expected, atol=1e-5)


def test_fusion_loss_of_a_perfect_image_and_of_a_flat_offset():
    """Fused = max(A, B) has no intensity loss; 0.1 more everywhere costs 0.1, and a gradient at the border."""
    a, b = images(1, 2, 1, 1, 12, 12)
    best = np.maximum(a, b)
    assert fusion_loss(*map(jt.array, (a, b, best))).intensity.item() == pytest.approx(0, abs=1e-7)
    assert fusion_loss(*map(jt.array, (a, b, best + 0.1))).intensity.item() == pytest.approx(0.1, rel=1e-4)
    flat = np.full((1, 1, 12, 12), 0.5, np.float32)
    assert fusion_loss(*map(jt.array, (flat, flat, flat))).gradient.item() == pytest.approx(0, abs=1e-7)


def test_ssim_of_equal_images_is_one_and_else_as_in_float64():
    x, y = images(2, 2, 1, 1, 11, 14)
    assert ssim(jt.array(x), jt.array(x)).item() == pytest.approx(1, abs=1e-5)
    offsets = np.arange(5) - 2
    row = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(row, row) / row.sum() ** 2
    blur = lambda image: convolve(image, window, mode="constant")  # noqa: E731
    p, q = x[0, 0].astype(float), y[0, 0].astype(float)
    mp, mq = blur(p), blur(q)
    vp, vq, cov = blur(p * p) - mp**2, blur(q * q) - mq**2, blur(p * q) - mp * mq
    expected = ((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))).mean()
    assert ssim(jt.array(x), jt.array(y)).item() == pytest.approx(expected, rel=1e-4)


def test_lp_is_one_norm_over_the_batch_and_ssim_has_its_weight():
    """Two images that differ by 0.5 in each of 2 * 20 pixels: Lp = sqrt(40 * 0.25); the weight is int(sqrt(4 * 5))."""
    x = np.zeros((2, 1, 4, 5), np.float32)
    values = lp_ssim(jt.array(x), jt.array(x + 0.5))
    assert values.lp.item() == pytest.approx(math.sqrt(10), rel=1e-6)
    similarity = ssim(jt.array(x), jt.array(x + 0.5)).item()
    assert values.ssim.item() == pytest.approx((1 - similarity) * 4, rel=1e-5)
    assert values.total.item() == pytest.approx(values.lp.item() + values.ssim.item(), rel=1e-6)
