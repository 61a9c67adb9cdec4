"""Text features: float32 (1, 149, 768), one for each pair."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from net.shapes import TEXT_SHAPE
from utils.datasets import Pair
from utils.errors import UserError

FEATURE_SHAPE = (1, *TEXT_SHAPE)


class TextFeatures(Protocol):
    """Where the text features of pairs come from."""

    def feature(self, pair: Pair) -> np.ndarray:
        """The feature of a pair, float32 (1, 149, 768), finite; a `UserError` where it cannot be had."""


class FeatureFiles:
    """Ready features: the TextFeature/ files of the data set."""

    def feature(self, pair: Pair) -> np.ndarray:
        """Read the feature file of a pair.

        Raises:
            UserError: it is missing, no .npy file, of another shape, or not finite.
        """
        path: Path = pair.feature
        expected = f"a float32 .npy of shape {FEATURE_SHAPE} was expected"
        try:
            feature = np.load(path, allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such text feature; {expected}") from error
        except Exception as error:  # a damaged header makes NumPy raise errors of many kinds
            raise UserError(f"{path}: cannot be read; {expected}") from error
        if not isinstance(feature, np.ndarray) or feature.shape != FEATURE_SHAPE or feature.dtype.kind != "f":
            shape, dtype = getattr(feature, "shape", "?"), getattr(feature, "dtype", "?")
            raise UserError(f"{path}: holds {dtype} of shape {shape}; {expected}")
        feature = feature.astype(np.float32)
        if not np.isfinite(feature).all():
            raise UserError(f"{path}: holds values that are not finite; {expected}")
        return feature
