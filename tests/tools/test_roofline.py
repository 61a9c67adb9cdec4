"""The arithmetic of the roofline model, on launches made here; and what is counted of PyTorch."""

from __future__ import annotations

from collections import Counter

import pytest

from net.shapes import STAGE_SIZE, TEXT_SHAPE
from tools import roofline
from tools.roofline import Gpu, Launch

SLOW = Gpu("slow", bandwidth=100, rate=1000)  # bytes and operations per second


def test_a_launch_takes_the_longer_of_its_bytes_and_its_arithmetic():
    assert Launch("copy", (150, 50)).seconds(SLOW) == 2
    assert Launch("product", (150, 50), flop=3000).seconds(SLOW) == 3
    assert Launch("small", (1,)).seconds(SLOW, least=0.5) == 0.5


def test_launches_run_one_after_the_other():
    launches = Counter({Launch("copy", (150, 50)): 3, Launch("product", (0,), flop=500): 4})
    assert roofline.seconds(launches, SLOW) == 3 * 2 + 4 * 0.5
    assert roofline.seconds(launches, SLOW, least=1) == 3 * 2 + 4 * 1


def test_what_the_stand_in_counted_is_read():
    """A matrix product of (b, m, k) and (b, k, n) has 2 b m k n operations."""
    report = {
        "launches": ["5"],
        "launch _Z16multiply_add_1_3iPfS_i 4096 128": ["5"],
        "gemm NT m 3 n 5 k 7 batch 2": ["4"],
        "cudaMalloc": ["9"],
        "error": ["something, with words"],
    }
    assert roofline.ours(report) == {
        Launch("multiply_add", (4096, 128)): 5,
        Launch("matrix product 3x7x5", (2 * 4 * 21, 2 * 4 * 35, 2 * 4 * 15), 2 * 2 * 3 * 5 * 7): 4,
    }


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_Z8kernel_4Pii", "kernel"),
        ("_Z18reduce_maximum_1_2iiiPfS_ii", "reduce_maximum"),
        ("_ZN6jittor13slice_func_12EiiiPfS0_iiS0_", "slice_func"),
        ("_ZN4film3gpu15for_each_kernelINS0_9DepthwiseEEEvT_l", "Depthwise"),
        ("_ZN4film3gpu21for_each_block_kernelINS0_7SumEachILi9ENS0_14Conv3x3WeightsEEEEEvT_", "Conv3x3Weights"),
    ],
)
def test_names_of_kernels(mangled, name):
    assert roofline.kernel_name(mangled) == name


def test_operations_of_convolutions():
    b, i, o, pixels = 2, 3, 5, 70
    x, weight, y = 4 * b * i * pixels, 4 * 9 * i * o, 4 * b * o * pixels
    for name, arrays in (("Conv3x3", (x, weight, y)), ("Conv3x3Weights", (x, y, weight))):
        assert roofline.convolution_flop(name, arrays) == pytest.approx(2 * 9 * b * i * o * pixels)
    assert roofline.convolution_flop("DepthwiseWeights", (x, x, 4 * 9 * i)) == 2 * 9 * b * i * pixels
    assert roofline.convolution_flop("LayerNorm", (x, x)) == 0


def test_every_convolution_of_pytorch_is_counted():
    torch = pytest.importorskip("torch")
    from tools.torch_film import TwinNet

    weights = [m.weight for m in TwinNet().modules() if isinstance(m, torch.nn.Conv2d)]
    (text,) = [m.weight for m in TwinNet().modules() if isinstance(m, torch.nn.Conv1d)]
    counted = roofline.pytorch_eager(batch=1, training=False)
    convolutions = {launch: n for launch, n in counted.items() if launch.kernel == "convolution"}
    assert sum(convolutions.values()) == len(weights) + 1
    pixels, words = STAGE_SIZE[0] * STAGE_SIZE[1], TEXT_SHAPE[0]
    products = pixels * sum(w.numel() for w in weights) + words * text.numel()
    assert sum(launch.flop * n for launch, n in convolutions.items()) == 2 * products
