"""The network against the values that the official code produced, and against PyTorch's rules."""

from __future__ import annotations

import math

import numpy as np
import pytest

from net import ops
from net.Film import ImageToText, Net
from net.ops.reference import nearest_indices
from net.restormer import TransformerBlock
from net.shapes import STAGE_SIZE
from utils.runtime.jittor_env import jt
from utils.training.checkpoint import load_weights
from utils.training.losses import fusion_loss

# Differences between this network and the official one, as the README states them.
OUTPUT_TOLERANCE = 1e-5
GRADIENT_NORM_TOLERANCE = 2e-3  # for the PReLU slopes too
GRADIENT_TOLERANCE = 5e-3


@pytest.fixture(scope="module")
def net(shared):
    net = Net()
    load_weights(net, shared / "golden" / "official_seed0.pth")
    return net


@pytest.fixture(scope="module")
def gradients(net, golden) -> dict[str, np.ndarray]:
    """Gradients of the fusion loss at batch 2, 288x384, by parameter."""
    a, b, text = (jt.array(golden[f"train_{key}"]) for key in "ABT")
    parameters = dict(net.named_parameters())
    loss = fusion_loss(a, b, net(a, b, text)).total
    return dict(zip(parameters, (g.numpy() for g in jt.grad(loss, list(parameters.values()))), strict=True))


def test_parameters_carry_the_official_names_and_shapes(net, golden_weights):
    parameters = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert parameters == {name: value.shape for name, value in golden_weights.items()}
    assert len(parameters) == 189
    assert sum(math.prod(shape) for shape in parameters.values()) == 2_070_235


@pytest.mark.parametrize("case", ["train", "test0", "test1"])
def test_outputs_equal_the_official_ones(net, golden, case):
    """288x384 at batch 2, 301x496 and 480x640."""
    with jt.no_grad():
        fused = net(*(jt.array(golden[f"{case}_{key}"]) for key in "ABT")).numpy()
    assert np.abs(fused - golden[f"{case}_out"]).max() <= OUTPUT_TOLERANCE


def test_reference_form_gives_the_official_output(net, golden):
    with ops.reference_only(), jt.no_grad():
        fused = net(*(jt.array(golden[f"test0_{key}"]) for key in "ABT")).numpy()
    assert np.abs(fused - golden["test0_out"]).max() <= OUTPUT_TOLERANCE


def test_gradient_norms_equal_the_official_ones(gradients, golden):
    off = {}
    for name, gradient in gradients.items():
        exact = float(golden[f"gradnorm64/{name}"])
        error = abs(np.linalg.norm(gradient.astype(np.float64)) / exact - 1)
        if error > GRADIENT_NORM_TOLERANCE:
            off[name] = error
    assert not off


def test_stored_gradients_equal_the_official_ones(gradients, golden):
    names = [key.removeprefix("grad64/") for key in golden.files if key.startswith("grad64/")]
    assert len(names) == 7
    for name in names:
        exact = golden[f"grad64/{name}"]
        assert np.linalg.norm(gradients[name] - exact) <= GRADIENT_TOLERANCE * np.linalg.norm(exact), name


@pytest.mark.parametrize("size", [(1, 1), (17, 23), (64, 41), (300, 20)])
def test_any_size_works(size):
    """Smaller than 288x384, odd, portrait, a single pixel; the text may have any length."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((1, 1, *size), dtype=np.float32) for _ in "ab")
    fused = Net()(jt.array(a), jt.array(b), jt.array(rng.standard_normal((1, 7, 768)).astype(np.float32))).numpy()
    assert fused.shape == (1, 1, *size)
    assert ((fused > 0) & (fused < 1)).all()


@pytest.mark.parametrize(
    ("length", "out"), [(301, 288), (288, 301), (480, 288), (384, 496), (7, 7), (1, 5), (640, 384)]
)
def test_nearest_takes_the_pixels_that_torch_takes(length, out):
    torch = pytest.importorskip("torch")
    expected = torch.nn.functional.interpolate(torch.arange(length).float()[None, None], size=out, mode="nearest")
    assert nearest_indices(length, out).tolist() == expected[0, 0].int().tolist()


@pytest.mark.parametrize("size", [(290, 400), (200, 500), (31, 40)])
def test_tokens_are_convolved_pixels_of_the_resized_features(size):
    layer = ImageToText(mid_channel=32, image2text_dim=32, hidden_dim=256)
    f = np.random.default_rng(0).normal(size=(1, 32, *size)).astype(np.float32)
    rows, columns = (nearest_indices(n, out) for n, out in zip(size, STAGE_SIZE, strict=True))
    weight = layer.conv.weight.numpy()[:, :, 0, 0].astype(np.float64)
    convolved = np.einsum("oi,ihw->ohw", weight, f[0]) + layer.conv.bias.numpy()[:, None, None]
    expected = convolved[:, rows][:, :, columns].reshape(-1, 256)  # the official order: convolve, then resize
    with jt.no_grad():
        np.testing.assert_allclose(layer(jt.array(f)).numpy()[0], expected, rtol=0, atol=1e-5)


# Initial values: uniform in (-bound, bound) has mean 0 and standard deviation bound / sqrt 3.
UNIFORM = {
    "text_process.conv.weight": 1 / math.sqrt(768),
    "text_process.conv.bias": 1 / math.sqrt(768),
    "restormerca1.convA1.weight": 1 / 3,
    "restormerca2.convB1.weight": 1 / math.sqrt(32 * 9),
    "restormerca1.convA2.bias": 1 / math.sqrt(32),
    "restormerca3.convB3.weight": 1 / math.sqrt(64),
    "restormerca2.imagef2textfA1.conv.weight": 1 / math.sqrt(32),
    "restormer1.ffn.project_in.weight": 1 / 8,
    "restormer1.ffn.project_out.weight": 1 / math.sqrt(256),
    "restormer2.attn.qkv_dwconv.weight": 1 / 3,
    "restormerca1.cross_attentionA2.multihead_attn.in_proj_weight": math.sqrt(6 / (768 + 256)),
    "restormerca1.cross_attentionA2.multihead_attn.out_proj.weight": 1 / 16,
    "conv1.weight": 1 / 8,
}
CONSTANT = {
    "restormerca1.preluA1.weight": 0.25,
    "restormerca3.preluB3.weight": 0.25,
    "restormer1.norm1.body.weight": 1,
    "restormer1.norm2.body.bias": 0,
    "restormer2.attn.temperature": 1,
    "restormerca2.cross_attentionA1.multihead_attn.in_proj_bias": 0,
    "restormerca2.cross_attentionA1.multihead_attn.out_proj.bias": 0,
}


def test_initial_values_follow_pytorchs_defaults():
    jt.set_global_seed(5)
    parameters = {name: p.numpy() for name, p in Net().named_parameters()}
    for name, bound in UNIFORM.items():
        value = parameters[name]
        assert np.abs(value).max() <= bound, name
        # the largest of n values is within 5/n of the bound, the moments are within four standard errors
        assert np.abs(value).max() >= bound * (1 - 8 / value.size), name
        assert abs(value.mean()) <= 4 * bound / math.sqrt(3 * value.size), name
        assert abs(value.std() / (bound / math.sqrt(3)) - 1) <= 4 / math.sqrt(value.size), name
    for name, constant in CONSTANT.items():
        assert (parameters[name] == constant).all(), name


def test_seed_gives_the_same_weights_again():
    def weights(seed: int) -> np.ndarray:
        jt.set_global_seed(seed)
        return Net().conv1.weight.numpy()

    first, again, other = weights(1), weights(1), weights(2)
    assert (first == again).all()
    assert not (first == other).all()


def test_bias_and_biasfree_norm_are_possible():
    """BiasFree divides x, not x - mean, by the deviation; checked with NumPy at one pixel."""
    block = TransformerBlock(16, heads=4, bias=True, LayerNorm_type="BiasFree")
    names = {name for name, _ in block.named_parameters()}
    assert {"attn.qkv.bias", "ffn.dwconv.bias", "norm1.body.weight"} <= names
    assert "norm1.body.bias" not in names
    x = np.random.default_rng(0).standard_normal((1, 16, 3, 4)).astype(np.float32) + 2
    normed = block.norm1(jt.array(x)).numpy()
    pixel = x[0, :, 1, 2].astype(np.float64)
    np.testing.assert_allclose(normed[0, :, 1, 2], pixel / np.sqrt(pixel.var() + 1e-5), rtol=1e-5)
    assert block(jt.array(x)).numpy().shape == x.shape


@pytest.mark.parametrize("wrong", [{"pooling": "max"}, {"normalization": "l2"}, {"LayerNorm_type": "none"}])
def test_what_does_not_exist_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        Net(**wrong)
