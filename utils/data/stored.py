"""Text features in .npy and H5 files: float32 (1, 149, 768), with a leading axis (film.md, section 4).

In memory a feature is (149, 768). Only this module adds and removes the leading axis.
"""

from __future__ import annotations

import numpy as np

from net.shapes import TEXT_SHAPE

STORED_SHAPE = (1, *TEXT_SHAPE)


def to_stored(feature: np.ndarray) -> np.ndarray:
    """(149, 768) -> (1, 149, 768)."""
    return feature[None]


def from_stored(stored: np.ndarray) -> np.ndarray:
    """(1, 149, 768) -> (149, 768)."""
    return stored[0]
