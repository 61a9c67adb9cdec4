"""What several tests share: the folder ../shared, the values that the official code produced, and the device.

``FILM_TEST_DEVICE=cuda python -m pytest tests/net tests/utils/training/test_losses.py`` computes on the
GPU in every test that computes in its own process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


TEST_DEVICE = os.environ.get("FILM_TEST_DEVICE")


@pytest.fixture(scope="session", autouse=True)
def no_signal_is_ignored() -> None:
    """As in a terminal. A test run under nohup ignores SIGHUP, and one in the background of a script SIGINT."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """Compute on $FILM_TEST_DEVICE, if it is set; an unavailable device fails every test."""
    if TEST_DEVICE:
        from utils.runtime.jittor_env import use_device

        print(use_device(TEST_DEVICE))


@pytest.fixture(autouse=True)
def children_may_be_killed() -> None:
    """If an earlier test has started Jittor, its handler would end pytest when a child process is killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def same_device() -> Iterator[None]:
    """Return to $FILM_TEST_DEVICE after a test that chose another device."""
    yield
    if TEST_DEVICE:
        from utils.runtime.jittor_env import use_device

        use_device(TEST_DEVICE)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data that do not ship; tests that need it are skipped if it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: this test compares with values or images that do not ship")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> np.lib.npyio.NpzFile:
    """Inputs, outputs, losses and gradients of the official code."""
    return np.load(shared / "golden" / "official_seed0.npz")


@pytest.fixture(scope="session")
def golden_weights(shared: Path) -> dict[str, np.ndarray]:
    """The weights with which `golden` was computed, by name."""
    from utils.training.checkpoint import read_weights

    return read_weights(shared / "golden" / "official_seed0.pth")
