"""The GPU path without a GPU: the real nvcc compiles everything, and a stand-in checks how it is used (README.md)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import standin
from utils.runtime import cuda, jittor_tree

ROOT = Path(__file__).resolve().parents[2]
NVCC = cuda.find_nvcc()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None, reason="no nvcc here: the GPU path is not compiled and not checked"),
]
PARTS = ("forward", "training", "reference")


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where the stand-in and what is compiled with it are kept between runs."""
    return jittor_tree.jittor_home() / ".cache" / "jittor" / "film_standin"


@pytest.fixture(scope="module")
def toolkit(folder: Path) -> Path:
    """The stand-in, built for the nvcc of this machine."""
    assert NVCC
    shutil.rmtree(folder / "toolkit", ignore_errors=True)
    standin.build(folder / "toolkit", cuda.toolkit_root(NVCC), cuda.nvcc_version(NVCC) or (0, 0))
    return folder / "toolkit"


@pytest.fixture(scope="module")
def counted(folder: Path, toolkit: Path, tmp_path_factory) -> dict[str, dict[str, list[str]]]:
    """Part -> what was counted -> its values, for a forward pass, a training step and a pass of the reference forms."""
    out = tmp_path_factory.mktemp("dry_run")
    environment = standin.environment(toolkit, NVCC, folder / "home") | {"PYTHONPATH": str(ROOT)}
    script = [sys.executable, Path(__file__).with_name("dry_run.py"), out, *PARTS]
    done = subprocess.run(script, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return {part: standin.read_report(out / f"{part}.tsv") for part in PARTS}


@pytest.mark.parametrize("part", PARTS)
def test_a_gpu_would_accept_every_call(counted, part):
    """Launches, matrix products and copies are possible and stay in their allocations, whose guard bytes are intact."""
    assert counted[part].get("error", []) == []
    assert int(counted[part]["launches"][0]) > 50, "the part has run on the stand-in"


def test_no_operator_runs_on_the_cpu(counted, folder):
    """Jittor compiles an operator that has no form for a GPU with g++, and copies its arrays to and fro."""
    commands = [path.read_text(errors="replace").split()[0] for path in (folder / "home").rglob("*_op.so.key")]
    assert len(commands) > 50
    assert {Path(command.strip('"')).name for command in commands} == {"nvcc"}


def test_a_training_step_waits_for_its_losses_only(counted):
    """What leaves the device: three losses, each a float. What it gets: the batch, and two numbers for Adam."""
    step = {name: int(values[0]) for name, values in counted["training"].items() if name != "error"}
    assert step["bytes device to host"] == 3 * 4
    assert step["peak"] < 13 << 30, "bytes of device memory at batch 2 and 288x384"


def test_the_stand_in_notices_what_a_gpu_would_not_do(toolkit, tmp_path):
    """A write behind and one before an allocation, a copy that is too long, and a block of too many threads."""
    lib = ctypes.CDLL(str(toolkit / "lib64" / "libcudart.so"))

    class Dim3(ctypes.Structure):
        _fields_ = tuple((axis, ctypes.c_uint) for axis in "xyz")

    def errors() -> list[str]:
        lib.standin_report(str(tmp_path / "report.tsv").encode())
        return standin.read_report(tmp_path / "report.tsv").get("error", [])

    size = 4000
    for at in (size, -4):
        p = ctypes.c_void_p()
        assert lib.cudaMalloc(ctypes.byref(p), ctypes.c_size_t(size)) == 0
        before = len(errors())
        ctypes.memset(p.value + at, 0, 1)
        assert len(errors()) == before + 1
        lib.cudaFree(p)
    lib.cudaMalloc(ctypes.byref(p), ctypes.c_size_t(size))
    assert lib.cudaMemcpy(p, ctypes.create_string_buffer(2 * size), ctypes.c_size_t(size + 1), 1) != 0
    key = ctypes.create_string_buffer(1)
    handle = lib.__getattr__("__cudaRegisterFatBinary")
    handle.restype = ctypes.c_void_p
    register = lib.__getattr__("__cudaRegisterFunction")
    register(ctypes.c_void_p(handle(None)), key, None, b"kernel", *[None] * 6)
    launch = lib.cudaLaunchKernel
    launch.argtypes = [ctypes.c_void_p, Dim3, Dim3, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    where = ctypes.addressof(key)
    assert launch(where, Dim3(1, 1, 1), Dim3(1024, 1, 1), None, 0, None) == 0
    assert launch(where, Dim3(1, 1, 1), Dim3(1024, 2, 1), None, 0, None) != 0
    assert launch(where, Dim3(0, 1, 1), Dim3(32, 1, 1), None, 0, None) != 0
    assert launch(where, Dim3(1, 1, 1), Dim3(32, 1, 1), None, 50000, None) != 0
