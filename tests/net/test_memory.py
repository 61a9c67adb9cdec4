"""The CPU kernels access nothing outside their arrays, and run on other processors; compiled without Jittor."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

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
    assert done.stdout == "whole\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "compiler", "flags", "emulator"),
    [
        ("x86_64", "g++", ["-march=x86-64"], None),  # SSE2
        ("x86_64", "g++", ["-march=x86-64-v3"], None),  # AVX2
        (None, "aarch64-linux-gnu-g++", ["-static"], "qemu-aarch64"),  # NEON; Debian: g++-aarch64-linux-gnu, qemu-user
    ],
)
def test_kernels_run_on_other_processors(tmp_path, machine, compiler, flags, emulator):
    tools = [tool for tool in (compiler, emulator) if tool]
    if machine not in (None, platform.machine()) or not all(map(shutil.which, tools)):
        pytest.skip(f"needs {' and '.join(tools)}" + (f" on {machine}" if machine else ""))
    path = tmp_path / "memory"
    common = ["-std=c++14", "-Ofast", "-fopenmp", "-w", f"-I{KERNELS}"]
    subprocess.run([compiler, *common, *flags, SOURCE, "-o", path], check=True)
    command = [emulator] * bool(emulator) + [path, "1", "7", "37", "32", "8", "9"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "whole\n"
