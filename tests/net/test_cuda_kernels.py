"""The CUDA kernels without a GPU: their bodies run on the CPU against the portable forms; nvcc compiles the sources."""

from __future__ import annotations

import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from net import cuda, portable, primitives
from tests.net.compare_forms import SIZES, assert_same, random
from utils.runtime.jittor_env import jt


@pytest.mark.parametrize("size", SIZES)
def test_depthwise_conv3x3(size):
    b, h, w = size
    inputs = random(b, 5, h, w), random(5, 1, 3, 3), random(5)
    assert_same(cuda.depthwise_conv3x3, portable.depthwise_conv3x3, *inputs)
    assert_same(cuda.depthwise_conv3x3, portable.depthwise_conv3x3, *inputs[:2])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "outputs"), [(1, 32), (3, 5)])
def test_conv3x3(size, channels, outputs):
    b, h, w = size
    assert_same(cuda.conv3x3, portable.conv3x3, random(b, channels, h, w), random(outputs, channels, 3, 3))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [32, 7])
def test_channel_layer_norm(size, channels):
    b, h, w = size
    inputs = random(b, channels, h, w) + 1, random(channels), random(channels)
    assert_same(cuda.channel_layer_norm, portable.channel_layer_norm, *inputs, tolerance=1e-4)
    without_bias = (lambda x, weight, form=form: form.channel_layer_norm(x, weight, None) for form in (cuda, portable))
    assert_same(*without_bias, *inputs[:2], tolerance=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_gated_gelu(size):
    b, h, w = size
    assert_same(cuda.gated_gelu, portable.gated_gelu, random(b, 6, h, w) * 3)


@pytest.mark.parametrize("size", [(5, 9), (1, 1), (26, 74), (13, 37), (7, 80)])
def test_nearest_resize(size):
    fast, plain = (lambda x, form=form: form.nearest_resize(x, size) for form in (cuda, portable))
    assert_same(fast, plain, random(2, 3, 13, 37))


PRIMITIVES = {
    "conv3x3": (random(1, 2, 4, 5), random(3, 2, 3, 3)),
    "depthwise_conv3x3": (random(1, 2, 4, 5), random(2, 1, 3, 3), random(2)),
    "channel_layer_norm": (random(1, 2, 4, 5), random(2), random(2)),
    "gated_gelu": (random(1, 2, 4, 5),),
    "nearest_resize": (random(1, 2, 4, 5), (3, 7)),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_each_is_taken_on_a_gpu_unless_portable_forms_are_asked_for(name, use_kernels, monkeypatch):
    """jt.flags refuses a device that is not there, so what `primitives` sees of Jittor is replaced."""
    monkeypatch.setattr(primitives, "jt", SimpleNamespace(flags=SimpleNamespace(use_cuda=1)))
    sources = []

    def record(*args: object, cuda_src: str, **rest: object) -> list[jt.Var]:
        sources.append(cuda_src)
        return [jt.zeros((1,))]

    monkeypatch.setattr(cuda.jt, "code", record)
    arguments = [jt.array(x) if isinstance(x, np.ndarray) else x for x in PRIMITIVES[name]]
    getattr(primitives, name)(*arguments)
    assert len(sources) == 1
    assert not primitives.kernels_in_use(), "the CPU's fused blocks must not be taken"
    use_kernels(False)
    getattr(primitives, name)(*arguments)
    assert len(sources) == 1


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
def test_nvcc_compiles_every_source(tmp_path, monkeypatch):
    """For compute capabilities 8.0 and 9.0, with the variables that Jittor declares around a source."""
    functions: dict[str, str] = {}
    code = jt.code

    def record(shapes, dtypes, inputs, *, cuda_header, cuda_src, **rest):
        variables = {f"in{i}": (str(x.dtype), len(x.shape)) for i, x in enumerate(inputs)}
        variables |= {f"out{i}": (str(t), len(s)) for i, (t, s) in enumerate(zip(dtypes, shapes, strict=True))}
        declared = "".join(
            f"Var {n}_var{{1}}; Var* {n} = &{n}_var; {'int' if t == 'int32' else 'float'}* {n}_p = nullptr; "
            + "".join(f"int64_t {n}_shape{d} = 1; " for d in range(rank))
            for n, (t, rank) in variables.items()
        )
        functions.setdefault(cuda_header + cuda_src, f"void f{len(functions)}() {{ {declared}\n{cuda_src}\n}}\n")
        headers.add(cuda_header.split("using")[0])
        return code(shapes, dtypes, inputs, cuda_header=cuda_header, cuda_src=cuda_src, **rest)

    headers: set[str] = set()
    monkeypatch.setattr(cuda.jt, "code", record)
    for name, arguments in PRIMITIVES.items():
        arrays = [jt.array(x) for x in arguments if isinstance(x, np.ndarray)]
        rest = [x for x in arguments if not isinstance(x, np.ndarray)]
        jt.grad(getattr(cuda, name)(*arrays, *rest).sum(), arrays)
    assert len(functions) == 13  # five forward passes, eight parts of backward passes
    source = tmp_path / "all.cu"
    source.write_text(
        "#include <cstdint>\nstruct Var { int64_t num; };\n"
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
