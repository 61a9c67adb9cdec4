"""Text features in files, .npy and H5: float32 (1, 149, 768) (film.md, section 4).

In memory a feature is (149, 768). The leading axis is added and dropped here and nowhere else.
"""

from __future__ import annotations

import numpy as np

from net.shapes import TEXT_SHAPE

STORED_SHAPE = (1, *TEXT_SHAPE)


def to_stored(feature: np.ndarray) -> np.ndarray:
    """The form in files, (1, 149, 768), of a text feature (149, 768)."""
    return feature[None]


def from_stored(stored: np.ndarray) -> np.ndarray:
    """The text feature (149, 768) of its form in files, (1, 149, 768)."""
    return stored[0]
