"""What several tests share: where ../shared lies, and the values the official code produced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of given data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: this test compares with values or images that do not ship")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> np.lib.npyio.NpzFile:
    """Inputs, outputs, losses and gradients of the official code."""
    return np.load(shared / "golden" / "official_seed0.npz")


@pytest.fixture(scope="session")
def golden_weights(shared: Path) -> dict[str, np.ndarray]:
    """The weights those values belong to, by name."""
    from utils.checkpoint import read_checkpoint, weights_of

    path = shared / "golden" / "official_seed0.pth"
    return weights_of(read_checkpoint(path), path)
