"""Other programs that this process starts: they end when it ends, however that happens."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A program that is asked to end (SIGTERM) is killed after this time.
PATIENCE_SECONDS = 10.0
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def _ends_with(parent: int) -> Callable[[], None]:
    """A function for a new child process of `parent`: the child gets SIGTERM when its parent ends, also by SIGKILL."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare_child() -> None:
        if prctl:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it has ended already
                os._exit(1)

    return prepare_child


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run`, for a program that ends with this process."""
    return subprocess.run(command, preexec_fn=_ends_with(os.getpid()), **options)


def start(command: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
    """`subprocess.Popen`, for a program that ends with this process."""
    return subprocess.Popen(command, preexec_fn=_ends_with(os.getpid()), **options)


@contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """`start`, for a program that ends with the ``with`` block at the latest."""
    with start(command, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
