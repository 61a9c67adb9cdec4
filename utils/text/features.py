"""Paragraphs of text, and their features: float32 (149, 768), one for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.data.pairs import Pair
from utils.data.stored import STORED_SHAPE, from_stored
from utils.runtime.errors import UserError


class FeatureFiles:
    """Ready features: the TextFeature/ files of the data set."""

    def prepare(self, pairs: Sequence[Pair]) -> str:
        """See that each pair has a feature file; they are read one by one.

        Raises:
            UserError: names the first that is missing.
        """
        missing = [pair.feature for pair in pairs if not pair.feature.is_file()]
        if missing:
            raise UserError(
                f"{missing[0]}: no such text feature, {len(missing)} of {len(pairs)} are missing; a float32 .npy of "
                f"shape {STORED_SHAPE} was expected (--text_encoder bert encodes paragraphs instead)"
            )
        return f"text features: {len(pairs)} ready ones, {pairs[0].feature.parent}"

    def feature(self, pair: Pair) -> np.ndarray:
        """Read the feature file of a pair: float32 (149, 768).

        Raises:
            UserError: it is missing, no .npy file, of another shape, or not finite.
        """
        path: Path = pair.feature
        expected = f"a float32 .npy of shape {STORED_SHAPE} was expected"
        try:
            feature = np.load(path, allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such text feature; {expected}") from error
        except Exception as error:  # a damaged header makes NumPy raise errors of many kinds
            raise UserError(f"{path}: cannot be read; {expected}") from error
        if not isinstance(feature, np.ndarray) or feature.shape != STORED_SHAPE or feature.dtype.kind != "f":
            shape, dtype = getattr(feature, "shape", "?"), getattr(feature, "dtype", "?")
            raise UserError(f"{path}: holds {dtype} of shape {shape}; {expected}")
        feature = feature.astype(np.float32)
        if not np.isfinite(feature).all():
            raise UserError(f"{path}: holds values that are not finite; {expected}")
        return from_stored(feature)


def read_paragraph(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark, and no white space around it.

    Raises:
        UserError: the file is missing, empty, or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such text; write an English paragraph about the pair there (data_process.py --caption blip "
            "writes a first draft)"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start + 1}); save the paragraph as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not text:
        raise UserError(f"{path}: is empty; an English paragraph about the pair was expected")
    return text
