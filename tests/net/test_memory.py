"""The CPU kernels access nothing outside their arrays, and run on other processors; compiled without Jittor."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).with_name("memory.cpp")
KERNELS = SOURCE.parents[2] / "net" / "kernels"
FLAGS = ["-std=c++14", "-march=native", "-fopenmp", "-O1", "-g", "-w"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The compiled memory.cpp."""
    path = tmp_path_factory.mktemp("memory") / "memory"
    subprocess.run([os.environ.get("cc_path", "g++"), *FLAGS, f"-I{KERNELS}", SOURCE, "-o", path], check=True)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3, 40])
@pytest.mark.parametrize(
    "shape",  # batch, height, width, channels, heads, queries
    [
        (2, 48, 64, 32, 8, 149),
        (1, 40, 50, 64, 8, 149),
        (1, 5, 577, 32, 8, 9),
        (3, 13, 37, 32, 8, 3),
        (1, 33, 16, 7, 7, 1),
        (2, 1, 7, 6, 2, 5),
        (1, 7, 1, 5, 1, 17),
        (1, 1, 1, 1, 1, 1),
    ],
)
def test_kernels_stay_within_their_arrays(program, shape, threads):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "ASAN_OPTIONS": "detect_leaks=1"}
    done = subprocess.run([program, *map(str, shape)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("whole\n")


def compiled(path: Path, compiler: str, flags: list[str]) -> Path:
    """`path`, the program as users get it: compiled for speed."""
    common = ["-std=c++14", "-Ofast", "-fopenmp", "-w", f"-I{KERNELS}"]
    subprocess.run([compiler, *common, *flags, SOURCE, "-o", path], check=True)
    return path


def values(*command: str | Path) -> np.ndarray:
    """What the program prints of every array: a weighted sum, and the sum of the magnitudes."""
    # With this shape, as many numbers follow the tokens of `keys` with 8 lanes as with 16: all arrays are comparable.
    shape = ("1", "7", "38", "32", "8", "9")
    lines = subprocess.run([*command, *shape], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines.pop() == "whole"
    return np.array([line.split() for line in lines], np.float64)


@pytest.fixture(scope="module")
def native_values(tmp_path_factory) -> np.ndarray:
    """What the kernels compute on this processor; test_ops.py compares that with the reference forms."""
    return values(compiled(tmp_path_factory.mktemp("native") / "memory", "g++", ["-march=native"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "compiler", "flags", "emulator"),
    [
        ("x86_64", "g++", ["-march=x86-64"], None),  # SSE2
        ("x86_64", "g++", ["-march=x86-64-v3"], None),  # AVX2
        (None, "aarch64-linux-gnu-g++", ["-static"], "qemu-aarch64"),  # NEON; Debian: g++-aarch64-linux-gnu, qemu-user
    ],
)
def test_other_processors_compute_the_same(tmp_path, native_values, machine, compiler, flags, emulator):
    tools = [tool for tool in (compiler, emulator) if tool]
    if machine not in (None, platform.machine()) or not all(map(shutil.which, tools)):
        pytest.skip(f"needs {' and '.join(tools)}" + (f" on {machine}" if machine else ""))
    command = [emulator] * bool(emulator) + [compiled(tmp_path / "memory", compiler, flags)]
    difference = np.abs(values(*command) - native_values)[:, 0]
    assert np.all(difference <= 1e-5 * native_values[:, 1])
