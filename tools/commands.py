"""The commands of an installed FILM (`pip install .`): film-train is train.py, and so on.

pyproject.toml installs the repository as the package `film_jittor`. Its folder is put first on the path, so that the
scripts can import `net`, `utils` and `tools` as in the repository.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def _run(name: str) -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    # The standard library's module `test` may be imported already.
    sys.modules.pop(name, None)
    cli = importlib.import_module("utils.runtime.cli")
    return cli.run_command(importlib.import_module(name).main)


def data_process() -> int:
    return _run("data_process")


def train() -> int:
    return _run("train")


def test() -> int:
    return _run("test")


def fuse() -> int:
    return _run("fuse")


def doctor() -> int:
    return _run("tools.doctor")


def export() -> int:
    return _run("tools.export")
