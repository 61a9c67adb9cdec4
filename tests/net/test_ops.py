"""The CPU kernels against the portable forms, forward and backward."""

from __future__ import annotations

import os

import numpy as np
import pytest
from scipy.special import ndtr

from net import cpu, portable, primitives
from net.restormer import TransformerBlock
from tests.net.compare_forms import SIZES, assert_same, random
from utils.runtime.jittor_env import jt

pytestmark = pytest.mark.skipif(os.environ.get("FILM_TEST_DEVICE") == "cuda", reason="kernels of the CPU")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "outputs"), [(32, 32), (5, 3), (64, 1)])
def test_pointwise_conv(size, channels, outputs):
    b, h, w = size
    inputs = random(b, channels, h, w), random(outputs, channels, 1, 1), random(outputs)
    assert_same(cpu.pointwise_conv, portable.pointwise_conv, *inputs)
    assert_same(cpu.pointwise_conv, portable.pointwise_conv, *inputs[:2])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "outputs"), [(1, 32), (32, 32), (3, 5)])
def test_conv3x3(size, channels, outputs):
    b, h, w = size
    assert_same(cpu.conv3x3, portable.conv3x3, random(b, channels, h, w), random(outputs, channels, 3, 3))


@pytest.mark.parametrize("size", SIZES)
def test_depthwise_conv3x3(size):
    b, h, w = size
    inputs = random(b, 5, h, w), random(5, 1, 3, 3), random(5)
    assert_same(cpu.depthwise_conv3x3, portable.depthwise_conv3x3, *inputs)
    assert_same(cpu.depthwise_conv3x3, portable.depthwise_conv3x3, *inputs[:2])


@pytest.mark.parametrize("size", SIZES)
def test_gated_gelu(size):
    b, h, w = size
    assert_same(cpu.gated_gelu, portable.gated_gelu, random(b, 6, h, w) * 3)


def test_gelu_is_exact_in_its_tails():
    """Against scipy in float64, from -12 to 12, where exp underflows: within 2e-7 of the largest value."""
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    inputs = jt.array(np.stack([x, np.ones_like(x)])[None, :, None])
    exact = x.astype(np.float64) * ndtr(x.astype(np.float64))
    assert np.abs(cpu.gated_gelu(inputs).numpy()[0, 0, 0] - exact).max() < 2e-7 * 12


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [32, 7])
def test_channel_layer_norm(size, channels):
    b, h, w = size
    inputs = random(b, channels, h, w) + 1, random(channels), random(channels)
    assert_same(cpu.channel_layer_norm, portable.channel_layer_norm, *inputs, tolerance=1e-4)
    without_bias = (lambda x, weight, form=form: form.channel_layer_norm(x, weight, None) for form in (cpu, portable))
    assert_same(*without_bias, *inputs[:2], tolerance=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "heads"), [(32, 8), (6, 2)])
def test_channel_mixing(size, channels, heads):
    b, h, w = size
    inputs = random(b, 3 * channels, h, w), random(heads, 1, 1) + 1
    assert_same(cpu.channel_mixing, portable.channel_mixing, *inputs, tolerance=1e-4)


@pytest.mark.parametrize("slope", [0.25, 0.0, -0.5])
def test_prelu(slope):
    assert_same(cpu.prelu, portable.prelu, random(2, 3, 41, 17), np.array([slope], np.float32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [32, 3])
def test_merge(size, channels):
    b, h, w = size
    c = channels
    images = random(b, c, h, w), random(b, c, h, w, seed=1)
    second = random(c, c, 1, 1), random(c), np.array([0.25], np.float32)
    third = random(c, 2 * c, 1, 1), random(c), np.array([-0.1], np.float32)
    assert_same(cpu.merge, portable.merge, *images, *second, *third, tolerance=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dim", [32, 64])
def test_transformer_block(size, dim, use_kernels):
    """Both halves of a block, of random norms and temperatures, with every one of its weights."""
    b, h, w = size
    block = TransformerBlock(dim)
    names, parameters = zip(*block.named_parameters(), strict=True)
    values = [
        random(*p.shape, seed=i) * 0.3 + ("temperature" in n)
        for i, (n, p) in enumerate(zip(names, parameters, strict=True))
    ]

    x = jt.array(random(b, dim, h, w))
    for parameter, value in zip(parameters, values, strict=True):
        parameter.assign(value)

    def form() -> list[jt.Var]:
        y = block(x)
        return [y, *jt.grad((y * jt.array(random(*y.shape, seed=9))).sum(), [x, *parameters])]

    fast = form()
    use_kernels(False)
    plain = form()
    jt.sync(fast + plain)
    for name, a, b in zip(["output", "input", *names], fast, plain, strict=True):
        a, b = a.numpy(), b.numpy()
        assert np.abs(a - b).max() <= 1e-4 * max(np.abs(b).max(), 1e-2), name


@pytest.mark.parametrize(("batch", "queries", "tokens"), [(2, 149, 1300), (1, 5, 512), (1, 17, 3)])
def test_pooled_text_attention(batch, queries, tokens):
    width, heads = 64, 8
    inputs = (
        random(batch, queries, width),
        random(batch, tokens, width),
        random(3 * width, width) * 0.3,
        random(3 * width),
        random(width, width),
        random(width),
    )
    fast, plain = (lambda *v, form=form: form.pooled_text_attention(*v, heads) for form in (cpu, portable))
    assert_same(fast, plain, *inputs, tolerance=1e-4)


def test_pooled_text_attention_survives_large_scores():
    """Scores of several hundred: exp of them alone would overflow."""
    width, heads = 64, 8
    text, tokens = random(1, 4, width) * 40, random(1, 700, width) * 40
    weights = random(3 * width, width) * 0.3, random(3 * width), random(width, width), random(width)
    arrays = [jt.array(x) for x in (text, tokens, *weights)]
    fast, plain = (form.pooled_text_attention(*arrays, heads).numpy() for form in (cpu, portable))
    assert np.isfinite(fast).all()
    np.testing.assert_allclose(fast, plain, rtol=1e-3, atol=1e-3 * np.abs(plain).max())


@pytest.mark.parametrize("size", [(5, 9), (1, 1), (26, 74), (13, 37), (7, 80)])
def test_nearest_resize(size):
    fast, plain = (lambda x, form=form: form.nearest_resize(x, size) for form in (cpu, portable))
    assert_same(fast, plain, random(2, 3, 13, 37))


def test_portable_forms_are_chosen_on_request(use_kernels):
    assert primitives.kernels_in_use()
    use_kernels(False)
    assert not primitives.kernels_in_use()
