"""Build the stand-in: a CUDA toolkit whose libraries pretend to be a GPU (README.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from utils.runtime import cuda

HERE = Path(__file__).resolve().parent / "standin"
# name -> the file name that programs look for
LIBRARIES = {"cuda": "libcuda.so.1", "cudart": "libcudart.so.{major}", "cublas": "libcublas.so.{major}"}
LIBRARIES |= {"cublasLt": "libcublasLt.so.{major}", "curand": "libcurand.so.10"}


def build(folder: Path, root: Path, version: tuple[int, int]) -> None:
    """Make a toolkit in `folder`: the headers of the real one at `root`, and the stand-in's nvcc and libraries."""
    for name in ("bin", "include", "lib64"):
        (folder / name).mkdir(parents=True)
    for header in [*(HERE / "include").iterdir(), *(root / "include").iterdir()]:
        if not (folder / "include" / header.name).exists():
            (folder / "include" / header.name).symlink_to(header)
    (folder / "bin" / "nvcc").symlink_to(HERE / "nvcc")
    # To optimize Jittor's core and the operators' host code would take longer than to run it.
    (folder / "bin" / "g++").write_text(f'#!/bin/sh\nexec {shutil.which(cuda.host_compiler())} "$@" -O0\n')
    (folder / "bin" / "g++").chmod(0o755)
    flags = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared"]
    flags += [f"-I{folder / 'include'}", f"-DSTANDIN_CUDA={version[0]}"]
    for name, file in LIBRARIES.items():
        library = folder / "lib64" / file.format(major=version[0])
        source = HERE / f"{name}.cc"
        # There is no source for cublasLt, which is loaded and not used.
        sources = [source] if source.exists() else ["-x", "c++", os.devnull]
        sources += [HERE / "grid.cc"] * (name == "cudart")
        subprocess.run(["g++", *flags, *sources, f"-Wl,-soname,{library.name}", "-o", library], check=True, timeout=300)
        (folder / "lib64" / f"lib{name}.so").symlink_to(library.name)


def forget_older(folder: Path) -> None:
    """Delete the operators below `folder` if an older version of the stand-in compiled some of them."""
    changed = max(path.stat().st_mtime for path in HERE.iterdir() if path.is_file())
    for jit in folder.rglob("jit"):
        files = [path for path in jit.iterdir() if path.is_file()]
        # All of them: what is compiled together must not become part of an older file.
        if any(path.stat().st_mtime < changed for path in files):
            for path in files:
                path.unlink()


def environment(folder: Path, nvcc: Path, home: Path) -> dict[str, str]:
    """The environment in which a process sees the stand-in in `folder`, and Jittor compiles below `home`.

    Not $JITTOR_HOME: Jittor would write it to its settings, and use it again at every later start.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "JITTOR_HOME"}
    return inherited | {
        "HOME": str(home),
        "LD_LIBRARY_PATH": str(folder / "lib64"),
        "nvcc_path": str(folder / "bin" / "nvcc"),
        "FILM_TRUST_CUDA": "1",
        "cc_path": str(folder / "bin" / "g++"),
        "STANDIN_NVCC": str(nvcc),
        "STANDIN_COMPILE": f"'{sys.executable}' '{HERE / 'compile.py'}'",
    }
