"""The stand-in for the tests here: they are skipped where nvcc is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda import standin
from utils.runtime import cuda, jittor_tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def nvcc() -> Path:
    found = cuda.find_nvcc()
    if found is None:
        pytest.skip("no nvcc here: the GPU path is not compiled and not checked")
    return found


@pytest.fixture(scope="session")
def folder() -> Path:
    """Where the stand-in and what is compiled with it are kept between runs."""
    return jittor_tree.cache_folder() / "film_standin"


@pytest.fixture(scope="session")
def toolkit(nvcc: Path, folder: Path) -> Path:
    """The stand-in, built for the nvcc of this machine."""
    standin.forget_older(folder)
    shutil.rmtree(folder / "toolkit", ignore_errors=True)
    standin.build(folder / "toolkit", cuda.toolkit_root(nvcc), cuda.nvcc_version(nvcc) or (0, 0))
    return folder / "toolkit"


@pytest.fixture(scope="session")
def on_standin(folder: Path, toolkit: Path, nvcc: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """on_standin(*ARGUMENTS, **settings) runs Python on the stand-in, with these settings of it (README.md)."""
    environment = standin.environment(toolkit, nvcc, folder / "home") | {"PYTHONPATH": str(ROOT)}

    def run(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, env=environment | settings, cwd=ROOT, capture_output=True, text=True, timeout=1200
        )

    return run
