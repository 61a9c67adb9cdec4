"""Text files and feature files: one paragraph, or one float32 array (149, 768), per pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.pairs import Pair
from utils.data.stored import STORED_SHAPE, from_stored
from utils.runtime.errors import UserError, of_system

EXPECTED = f"expected a float32 .npy of shape {STORED_SHAPE}"


class FeatureFiles:
    """Ready features: the files in TextFeature/. They do not tell their encoder."""

    encoder = ("", "")

    def check(self, pair: Pair) -> None:
        """Raise `UserError` if the feature file of a pair is missing; its content is checked by `feature`."""
        if not pair.feature.is_file():
            raise UserError(f"{pair.feature}: no such text feature; {EXPECTED}")

    def prepare(self, pairs: Sequence[Pair]) -> str:
        """Return a report of one line, or raise `UserError` if a feature file is missing."""
        if missing := [pair.feature for pair in pairs if not pair.feature.is_file()]:
            problem = f"no such text feature, {len(missing)} of {len(pairs)} are missing"
            raise UserError(f"{missing[0]}: {problem}; {EXPECTED} (--text_encoder bert encodes paragraphs instead)")
        return f"text features: {len(pairs)} ready, {pairs[0].feature.parent}"

    def feature(self, pair: Pair) -> np.ndarray:
        """Read the feature file of a pair: float32 (149, 768).

        Raises:
            UserError: it is missing, is not a .npy file, has another shape, or is not finite.
        """
        path = pair.feature
        feature = load_array(path)
        if not isinstance(feature, np.ndarray) or feature.shape != STORED_SHAPE or feature.dtype.kind != "f":
            shape, dtype = getattr(feature, "shape", "?"), getattr(feature, "dtype", "?")
            raise UserError(f"{path}: holds {dtype} of shape {shape}; {EXPECTED}")
        feature = feature.astype(np.float32)
        if not np.isfinite(feature).all():
            raise UserError(f"{path}: holds values that are not finite; {EXPECTED}")
        return from_stored(feature)


def load_array(path: Path) -> Any:
    """What a .npy or .npz file holds. Objects, which could run code, are refused.

    Raises:
        UserError: it is missing, or cannot be read.
    """
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such text feature; {EXPECTED}") from error
    except Exception as error:  # NumPy raises many kinds of errors for a damaged header
        if isinstance(error, OSError) and error.errno:
            raise UserError(of_system(error, path, "cannot be read")) from error
        raise UserError(f"{path}: cannot be read; {EXPECTED}") from error


def read_paragraph(path: Path) -> str:
    """The text of a UTF-8 file without byte-order mark and surrounding white space.

    Raises:
        UserError: the file is missing, unreadable, empty, or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError as error:
        way_out = "write an English paragraph about the pair (data_process.py --caption blip writes a draft)"
        raise UserError(f"{path}: no such text; {way_out}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start + 1}); save the paragraph as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not text:
        raise UserError(f"{path}: is empty; expected an English paragraph about the pair")
    return text
