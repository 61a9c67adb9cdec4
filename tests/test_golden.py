"""Parity without ../shared: `golden/small.npz` against the Jittor code, and against the PyTorch twin that made it.

golden/README.md says what the file holds. The checks with the values of the official code itself need ../shared.
"""

from __future__ import annotations

import numpy as np
import pytest

from net.Film import Net
from tests.golden.make import GOLDEN, GRAD_WEIGHT, compute
from tests.golden.rule import text_feature, uniform, weight
from tests.golden.tolerances import (
    GRADIENT_NORM_TOLERANCE,
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    METRIC_TOLERANCE,
    OUTPUT_TOLERANCE,
)
from utils.data.images import stretch_to_uint8
from utils.evaluation.metrics import evaluate_pair
from utils.runtime.jittor_env import jt
from utils.training.checkpoint import load_weights
from utils.training.losses import fusion_loss, lp_ssim


@pytest.fixture(scope="module")
def small() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def images(small) -> dict[str, jt.Var]:
    """A and B (1, 1, 48, 64) in 0..1."""
    return {side: jt.array(small[f"image_{side}"][None, None].astype(np.float32) / 255) for side in "ab"}


@pytest.fixture(scope="module")
def net() -> Net:
    net = Net()
    weights = {name: weight(name, tuple(p.shape)) for name, p in net.named_parameters()}
    load_weights(net, GOLDEN, {"model": weights})
    return net


@pytest.fixture(scope="module")
def fused(net, images) -> jt.Var:
    return net(images["a"], images["b"], jt.array(text_feature()))


def test_rule_is_splitmix64(small):
    """The formula of golden/rule.py with Python's integers."""
    mask = 2**64 - 1
    seed = int.from_bytes(bytes.fromhex("e3b0c44298fc1c14"), "little")  # the start of the SHA-256 of the empty name
    for i, value in enumerate(uniform("", (4,))):
        z = (seed + (i + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        assert value == (2 * ((z ^ (z >> 31)) >> 40) + 1) / 2**24 - 1
    assert np.linalg.norm(text_feature().astype(np.float64)) == pytest.approx(small["text_norm"], rel=1e-12)


def test_weights_are_those_of_the_file(net, small):
    norms = {name: np.linalg.norm(p.numpy().astype(np.float64)) for name, p in net.named_parameters()}
    assert norms == pytest.approx(dict(zip(small["names"], small["weight_norms"], strict=True)), rel=1e-12)


def test_output(fused, small):
    assert np.abs(fused.numpy() - small["fused"]).max() <= OUTPUT_TOLERANCE


def test_saved_image(fused, small):
    """Truncation lets float32 and float64 differ by 1 where the value is close to a whole number."""
    difference = stretch_to_uint8(fused.numpy()[0, 0]).astype(int) - small["fused_image"]
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) <= 0.01


def test_losses(fused, images, small):
    values = {
        "fusion_loss": fusion_loss(images["a"], images["b"], fused, GRAD_WEIGHT),
        "lp_ssim_a": lp_ssim(images["a"], fused),
        "lp_ssim_b": lp_ssim(images["b"], fused),
    }
    for name, terms in values.items():
        assert [term.item() for term in terms] == pytest.approx(small[name].tolist(), rel=LOSS_TOLERANCE), name


def test_gradients(net, fused, images, small):
    parameters = dict(net.named_parameters())
    total = fusion_loss(images["a"], images["b"], fused, GRAD_WEIGHT)[0]
    gradients = dict(zip(parameters, (g.numpy() for g in jt.grad(total, list(parameters.values()))), strict=True))
    norms = {name: np.linalg.norm(gradient.astype(np.float64)) for name, gradient in gradients.items()}
    assert len(norms) == 189
    expected = dict(zip(small["names"], small["gradient_norms"], strict=True))
    assert norms == pytest.approx(expected, rel=GRADIENT_NORM_TOLERANCE)
    stored = [key for key in small if key.startswith("gradient/")]
    assert len(stored) == 8
    for key in stored:
        error = np.linalg.norm(gradients[key.removeprefix("gradient/")] - small[key])
        assert error <= GRADIENT_TOLERANCE * np.linalg.norm(small[key]), key


def test_metrics(small):
    values = evaluate_pair(small["fused_image"], small["image_a"], small["image_b"])
    expected = dict(zip(small["metric_names"], small["metrics"], strict=True))
    assert values == pytest.approx(expected, rel=METRIC_TOLERANCE)


def test_file_is_what_the_twin_computes(small):
    """The float64 values of the file are exactly those that its script computes, up to rounding."""
    pytest.importorskip("torch")
    again = compute(small["image_a"], small["image_b"])
    assert small.keys() == again.keys() | {"image_a", "image_b"}
    for name, value in again.items():
        if name.endswith("names"):
            assert value.tolist() == small[name].tolist()
        else:
            np.testing.assert_allclose(
                value, small[name], rtol=1e-9, atol=1e-10 * np.abs(small[name]).max(), err_msg=name
            )
