"""Every form of every operation against its reference form, forward and backward.

A form is an implementation of an operation (net/ops). To test a new operation, add inputs of it to cases.py. Each case
runs on every fast form; on the CPU also on those for CUDA, whose sources compile for both. The output and the gradients
with respect to all float arrays must equal those of the reference form.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import ndtr

from net import ops
from net.ops import reference
from net.ops.binding import KernelOperation
from net.restormer import TransformerBlock
from tests.net.cases import Case, block_weights, cases, deviations, evaluate, random
from utils.runtime.jittor_env import jt

ON_GPU = os.environ.get("FILM_TEST_DEVICE") == "cuda"
DEVICES = ("cuda",) if ON_GPU else ("cpu", "cuda")  # whose forms can be tested
only_cpu = pytest.mark.skipif(ON_GPU, reason="kernels of the CPU")


def check(form: Callable[..., jt.Var], case: Case) -> None:
    """Assert that `form` equals the reference form of the case's operation."""
    fast = evaluate(form, case.inputs)
    with ops.reference_only():
        plain = evaluate(getattr(ops, case.operation), case.inputs)
    jt.sync(fast + plain)  # in one call, so that Jittor compiles all their kernels in parallel
    for index, deviation in enumerate(deviations(fast, plain, case.floor)):
        assert deviation <= case.tolerance, f"array {index}: {deviation}"


OPERATIONS = {name: value for name, value in vars(ops).items() if isinstance(value, ops.Operation)}
FORMS = [
    pytest.param(form, case, id=f"{case.operation}-{device}-{index}")
    for index, case in enumerate(cases())
    for device in DEVICES
    if (form := getattr(OPERATIONS[case.operation], device))
]


@pytest.mark.parametrize(("form", "case"), FORMS)
def test_fast_form_equals_the_reference(form, case):
    check(form, case)


def test_every_fast_form_has_a_case():
    assert {name for name, row in OPERATIONS.items() if row.cpu or row.cuda} == {case.operation for case in cases()}


@pytest.fixture
def many_threads() -> Iterator[None]:
    """More threads than cores, and more than some images have rows: the work is divided in other ways."""
    library = ctypes.CDLL("libgomp.so.1")
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(40)
    yield
    library.omp_set_num_threads(before)


@only_cpu
@pytest.mark.parametrize("operation", ["transformer_block", "pooled_text_attention"])
def test_fast_form_equals_the_reference_with_many_threads(many_threads, operation):
    for case in cases():
        if case.operation == operation:
            check(OPERATIONS[operation].cpu, case)


@pytest.mark.parametrize(("bias", "norm_bias"), [(True, True), (False, False)])
def test_block_with_biases_or_bias_free_norms_is_composed_of_operations(bias, norm_bias):
    check(ops.transformer_block, Case("transformer_block", (random(2, 6, 5, 9), *block_weights(6, bias, norm_bias, 2))))


@pytest.fixture
def gpu(monkeypatch) -> None:
    """Make `ops` believe there is a GPU; jt.flags itself refuses an absent device."""
    monkeypatch.setattr(ops, "jt", SimpleNamespace(flags=SimpleNamespace(use_cuda=1)))


@pytest.mark.parametrize(("bias", "norm_bias"), [(False, True), (True, False)])
def test_block_is_composed_of_cuda_forms_on_a_gpu(gpu, bias, norm_bias):
    check(ops.transformer_block, Case("transformer_block", (random(2, 6, 5, 9), *block_weights(6, bias, norm_bias, 2))))


def test_the_form_of_the_device_is_chosen(monkeypatch):
    def forms(names: str) -> dict[str, Callable[[], str]]:
        return {name: partial(str, name) for name in names.split()}

    both, none = ops.Operation(**forms("reference cpu cuda")), ops.Operation(**forms("reference"))
    unsupported = ops.Operation(**forms("reference"), cpu=lambda: NotImplemented, cuda=lambda: NotImplemented)
    for use_cuda, device in ((0, "cpu"), (1, "cuda")):
        monkeypatch.setattr(ops, "jt", SimpleNamespace(flags=SimpleNamespace(use_cuda=use_cuda)))
        assert (both(), none(), unsupported()) == (device, "reference", "reference")
        with ops.reference_only():
            assert ops.reference_in_use()
            assert both() == "reference"
        assert not ops.reference_in_use()


@only_cpu
@pytest.mark.parametrize("form", [ops.conv3x3.cpu, ops.conv3x3.cuda])
def test_only_kernels_whose_results_are_needed_run(form):
    """If only the gradient of the weight is needed, that of the image is not computed."""
    x, weight = jt.array(random(1, 2, 4, 5)()), jt.array(random(3, 2, 3, 3)())
    y = form(x, weight)
    y.sync()
    with jt.profile_scope() as report:
        jt.grad(y.sum(), [weight])[0].sync()
    assert sum(row[0].startswith("code") for row in report[1:]) == 1


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"weight: shape \[3, 5, 3, 3\] is not 'o i 3 3' with .*'i': 2"):
        ops.conv3x3(jt.ones((1, 2, 4, 5)), jt.ones((3, 5, 3, 3)))
    with pytest.raises(ValueError, match=r"x: shape \[2, 4\] is not 'b i h w'"):
        ops.conv3x3(jt.ones((2, 4)), jt.ones((3, 2, 3, 3)))


@only_cpu
def test_gelu_is_exact_in_its_tails():
    """Within 2e-7 * 12 of scipy in float64, from -12 to 12, where exp underflows."""
    gelu = KernelOperation(
        "simd.h",
        inputs={"x": "n"},
        makes={"y": "n"},
        forward="for (long k = 0; k < n; k += LANES) { vec z = load(x + k); store(y + k, gelu(z, normal(z))); }",
    )
    x = np.linspace(-12, 12, 4096, dtype=np.float32)
    exact = x.astype(np.float64) * ndtr(x.astype(np.float64))
    assert np.abs(gelu(jt.array(x)).numpy() - exact).max() < 2e-7 * 12


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_of_the_slope_keeps_its_digits(device):
    """A sum of a million terms: added to one float32 in turn, they lose two digits more."""
    x = -np.abs(random(1, 8, 320, 400)())
    slope = jt.array(np.array([0.25], np.float32))
    gradient = jt.grad(getattr(ops.prelu, device)(jt.array(x), slope).sum(), slope)
    assert gradient.item() == pytest.approx(x.sum(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_pooled_text_attention_survives_large_scores(device):
    """Scores of several hundred: exp would overflow without subtracting the maximum."""
    width, heads = 64, 8
    shapes = random(3 * width, width, scale=0.3), random(3 * width), random(width, width), random(width)
    inputs = random(1, 4, width, scale=40), random(1, 700, width, scale=40), *shapes
    arrays = [jt.array(make()) for make in inputs]
    fast = getattr(ops.pooled_text_attention, device)(*arrays, heads).numpy()
    with ops.reference_only():
        plain = ops.pooled_text_attention(*arrays, heads).numpy()
    assert np.isfinite(fast).all()
    np.testing.assert_allclose(fast, plain, rtol=1e-3, atol=1e-3 * np.abs(plain).max())


@pytest.mark.parametrize("bias", [False, True])
def test_block_uses_each_of_its_parameters_in_its_place(bias):
    """The official formula, with the parameters taken by their official names."""
    block = TransformerBlock(32, bias=bias)
    parameters = dict(block.named_parameters())
    for seed, (name, p) in enumerate(parameters.items()):
        p.assign(random(*p.shape, scale=0.3, shift="temperature" in name, seed=seed)())

    def layer(form: Callable[..., jt.Var], name: str, x: jt.Var) -> jt.Var:
        return form(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))

    x = y = jt.array(random(2, 32, 13, 37)())
    qkv = layer(reference.pointwise_conv, "attn.qkv", layer(reference.channel_layer_norm, "norm1.body", y))
    qkv = layer(reference.depthwise_conv3x3, "attn.qkv_dwconv", qkv)
    mixed = reference.channel_attention(qkv, parameters["attn.temperature"])
    y = y + layer(reference.pointwise_conv, "attn.project_out", mixed)
    hidden = layer(reference.pointwise_conv, "ffn.project_in", layer(reference.channel_layer_norm, "norm2.body", y))
    gated = reference.gated_gelu(layer(reference.depthwise_conv3x3, "ffn.dwconv", hidden))
    y = y + layer(reference.pointwise_conv, "ffn.project_out", gated)
    assert np.abs(block(x).numpy() - y.numpy()).max() <= 1e-4 * np.abs(y.numpy()).max()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is absent")
def test_nvcc_compiles_every_source(tmp_path, monkeypatch):
    """For compute capabilities 8.0 and 9.0, with the variables that Jittor declares around a source."""
    functions: dict[str, str] = {}
    headers: set[str] = set()
    code = jt.code

    def record(shapes, dtypes, inputs, *, cuda_header=None, cuda_src=None, **rest):
        if cuda_src is None:  # an operation composed of others, which have their own cases
            return code(shapes, dtypes, inputs, **rest)
        variables = {f"in{i}": (str(x.dtype), len(x.shape)) for i, x in enumerate(inputs)}
        variables |= {f"out{i}": (str(t), len(s)) for i, (t, s) in enumerate(zip(dtypes, shapes, strict=True))}
        declared = "".join(
            f"{'int' if t == 'int32' else 'float'}* {n}_p = nullptr; "
            + "".join(f"int64_t {n}_shape{d} = 1; " for d in range(rank))
            for n, (t, rank) in variables.items()
        )
        declared += "std::map<std::string, double> data; "
        functions.setdefault(cuda_header + cuda_src, f"void f{len(functions)}() {{ {declared}\n{cuda_src}\n}}\n")
        headers.add(cuda_header.split("using")[0])
        return code(shapes, dtypes, inputs, cuda_header=cuda_header, cuda_src=cuda_src, **rest)

    monkeypatch.setattr(jt, "code", record)
    for case in cases():
        if cuda := OPERATIONS[case.operation].cuda:
            evaluate(cuda, case.inputs)
    assert len(functions) == 29  # thirteen forward passes, sixteen parts of backward passes
    source = tmp_path / "all.cu"
    source.write_text(
        "#include <cstdint>\n#include <map>\n#include <string>\n"
        + "".join(sorted(headers))
        + "using namespace film::gpu;\n"
        + "".join(functions.values())
    )
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90)]
    done = subprocess.run(
        ["nvcc", "-std=c++14", "-w", *targets, "-c", source, "-o", tmp_path / "all.o"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
