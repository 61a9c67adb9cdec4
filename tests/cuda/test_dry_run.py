"""The GPU path without a GPU: the real nvcc compiles everything, and a stand-in checks how it is used (README.md)."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tools.roofline import read_report

pytestmark = pytest.mark.slow
PARTS = ("forward", "training", "reference")


@pytest.fixture(scope="module")
def dry_run(on_standin) -> Callable[..., subprocess.CompletedProcess[str]]:
    """dry_run(OUT, *PARTS, **settings) runs dry_run.py on the stand-in."""
    return partial(on_standin, Path(__file__).with_name("dry_run.py"))


@pytest.fixture(scope="module")
def counted(dry_run, folder) -> dict[str, dict[str, list[str]]]:
    """Part -> what was counted -> its values, for a forward pass, a training step and a pass of the reference forms.

    The files stay: tools.roofline reads them.
    """
    out = folder / "counts"
    out.mkdir(exist_ok=True)
    done = dry_run(out, *PARTS)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return {part: read_report(out / f"{part}.tsv") for part in PARTS}


@pytest.mark.parametrize("part", PARTS)
def test_a_gpu_would_accept_every_call(counted, part):
    """Launches, matrix products and copies are possible and stay in their allocations, whose guard bytes are intact."""
    assert counted[part].get("error", []) == []
    assert int(counted[part]["launches"][0]) > 50, "the part has run on the stand-in"


def test_no_operator_runs_on_the_cpu(counted, folder):
    """Jittor compiles an operator that has no form for a GPU with g++, and copies its arrays back and forth."""
    commands = [path.read_text(errors="replace").split()[0] for path in (folder / "home").rglob("*_op.so.key")]
    assert len(commands) > 50
    assert {Path(command.strip('"')).name for command in commands} == {"nvcc"}


def test_a_training_step_waits_for_its_losses_only(counted):
    """What leaves the device: four losses, together. What it gets: the batch."""
    step = {name: int(values[0]) for name, values in counted["training"].items() if name != "error"}
    pair = 2 * 288 * 384 + 149 * 768
    assert step["bytes device to host"] == 4 * 4
    assert step["bytes host to device"] == 2 * pair * 4
    assert step["cudaDeviceSynchronize"] == 2, "the losses, and the end of what is counted"


def test_the_arrays_of_launches_are_known(counted):
    """The gate of the eight transformer blocks of width 32: 256 channels with windows of nine become 128."""
    plane = 4 * 288 * 384
    kernel = "launch _ZN4film3gpu15for_each_kernelINS0_13DepthwiseGateEEEvT_l"
    assert counted["forward"][f"{kernel} {256 * plane} {4 * 256 * 9} {128 * plane}"] == ["8"]


POOLED = {"STANDIN_POOLED": "1"}  # with Jittor's allocator, as users have it (dry_run.py)


def test_memory_and_copies_of_a_training_step(counted, dry_run, tmp_path):
    """At batch 2 and 288x384: at most 6 GB; nothing is copied within the device."""
    done = dry_run(tmp_path, "training", **POOLED)
    assert done.returncode == 0, done.stderr[-6000:]
    step = read_report(tmp_path / "training.tsv")
    assert int(step["peak"][0]) <= 6e9
    assert "bytes device to device" not in step


def test_a_full_gpu_is_one_line(counted, dry_run, tmp_path):
    done = dry_run(tmp_path, "forward", STANDIN_MEMORY=str(200 << 20), **POOLED)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert re.match(r"error: out of device memory: [\d,]+ bytes more do not fit; smaller images or batches", line)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "None"),
        ({"STANDIN_DRIVER": "10"}, "the driver supports CUDA up to 10.0, nvcc is"),
        ({"STANDIN_CAPABILITY": "2"}, "stand-in has compute capability 2.0, nvcc"),
    ],
)
def test_a_driver_too_old_and_a_gpu_too_old_are_one_line(on_standin, settings, said):
    assert problem(on_standin, settings).startswith(said)


@pytest.mark.parametrize("library", ["cudart", "cublas", "curand"])
def test_a_toolkit_without_a_part_is_one_line(on_standin, toolkit, tmp_path, library):
    broken = shutil.copytree(toolkit, tmp_path / "toolkit", symlinks=True)
    for path in (broken / "lib64").glob(f"lib{library}.so*"):
        path.unlink()
    settings = {"nvcc_path": str(broken / "bin" / "nvcc")}  # the driver's library still finds those of `toolkit`
    assert f"but no lib{library}.so with" in problem(on_standin, settings)


def problem(on_standin: Callable[..., subprocess.CompletedProcess[str]], settings: dict[str, str]) -> str:
    """The line that `cuda.problem` has for this stand-in."""
    done = on_standin("-c", "from utils.runtime import cuda; print(cuda.problem(cuda.look()))", **settings)
    (line,) = done.stdout.splitlines()
    return line


def test_the_stand_in_notices_what_a_gpu_would_not_do(toolkit, tmp_path):
    """A write behind and one before an allocation, a copy that is too long, and a block of too many threads."""
    lib = ctypes.CDLL(str(toolkit / "lib64" / "libcudart.so"))

    class Dim3(ctypes.Structure):
        _fields_ = tuple((axis, ctypes.c_uint) for axis in "xyz")

    def errors() -> list[str]:
        lib.standin_report(str(tmp_path / "report.tsv").encode())
        return read_report(tmp_path / "report.tsv").get("error", [])

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
