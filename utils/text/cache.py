"""Text features for pairs: from files, or encoded once on this machine and kept in a cache."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.pairs import Pair
from utils.data.stored import STORED_SHAPE, from_stored, to_stored
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path, expanded
from utils.text.encoder import TOKENS, WIDTH, TextEncoder
from utils.text.features import FeatureFiles, read_paragraph

NAMES_SHOWN = 5
MULTILINGUAL = "bert-base-multilingual-cased"


def text_features(encoder: str, pairs: Sequence[Pair], default: str = "bert") -> FeatureFiles | EncodedText:
    """The source of features that --text_encoder selects.

    Args:
        encoder: a key of `FAMILIES`, a name on the hub, a folder, 'npy' for ready features, or 'auto': ready features
            if any pair has one (features of several encoders must not be mixed), else `default`.
        pairs: where 'auto' searches for ready features.
        default: an encoder.
    """
    if encoder == "auto":
        encoder = "npy" if any(pair.feature.is_file() for pair in pairs) else default
    return FeatureFiles() if encoder == "npy" else EncodedText(encoder)


def cache_folder() -> Path:
    """The folder of encoded features: text/ in $FILM_CACHE, else in ~/.cache/film-jittor."""
    return expanded(os.environ.get("FILM_CACHE") or "~/.cache/film-jittor") / "text"


class EncodedText:
    """The features of paragraphs, each encoded once on this machine.

    A feature is stored in `cache_folder` under hashes of its encoder and its tokens, so the names and paths of texts
    and encoders do not matter. An entry is a .npz file, whose checksum reveals damage.
    """

    def __init__(self, source: str) -> None:
        """`source` as in `TextEncoder`, which is loaded for the first texts."""
        self.source = source
        self._encoder: TextEncoder | None = None
        self._entries: dict[str, Path] = {}

    @property
    def encoder(self) -> tuple[str, str]:
        """The name of the encoder, or its folder as an absolute path, and its fingerprint. Loads it."""
        if self._encoder is None:
            self._encoder = TextEncoder(self.source)
        folder = expanded(self._encoder.source)
        return str(folder.resolve()) if folder.is_dir() else self._encoder.source, self._encoder.fingerprint

    def check(self, pair: Pair) -> None:
        """Raise `UserError` if the paragraph of a pair is missing, empty or not UTF-8."""
        read_paragraph(pair.text)

    def prepare(self, pairs: Sequence[Pair]) -> str:
        """Encode the paragraphs of these pairs that are not in the cache; returns a report of a few lines.

        Raises:
            UserError: a paragraph is missing, empty or not UTF-8, the encoder is unavailable, or the cache cannot be
                written.
        """
        return self.prepare_texts({str(pair.text): read_paragraph(pair.text) for pair in pairs})

    def feature(self, pair: Pair) -> np.ndarray:
        """The feature of a pair passed to `prepare`, float32 (149, 768).

        Raises:
            UserError: it has disappeared from the cache.
        """
        return self.feature_of(str(pair.text))

    def prepare_texts(self, texts: Mapping[str, str]) -> str:
        """`prepare` for `texts`, which maps names to texts."""
        if self._encoder is None:
            self._encoder = TextEncoder(self.source)
        encoder, folder = self._encoder, cache_folder() / self._encoder.fingerprint
        tokens = encoder.tokenize(list(texts.values()))
        paths = [folder / f"{tokens.key(row)}.npz" for row in range(len(tokens))]
        self._entries.update(zip(texts, paths, strict=True))
        # A dictionary, because several texts may be equal.
        missing = {path: row for row, path in enumerate(paths) if _read_entry(path) is None}
        if missing:
            features = encoder.encode(tokens[list(missing.values())])
            progress = tqdm(missing, desc=f"text by {encoder.source}", unit="text")
            for path, feature in zip(progress, features, strict=True):
                _write_entry(path, feature)
        report = [
            f"text features: {len(texts)} texts by {encoder.source}, {len(missing)} encoded, "
            f"{len(set(paths)) - len(missing)} from {folder}"
        ]
        lengths, unknown = (dict(zip(texts, counts, strict=True)) for counts in (tokens.lengths, tokens.unknown))
        if cut := [f"{name} ({length} tokens)" for name, length in lengths.items() if length > TOKENS]:
            report.append(f"cut to {TOKENS} tokens: {_first(cut)}")
        if strange := [f"{name} ({count} of {lengths[name]} tokens)" for name, count in unknown.items() if count]:
            report.append(
                f"words that this encoder does not know: {_first(strange)}; translate them into English, or name a "
                f"multilingual encoder of width {WIDTH} that the weights were trained with, such as {MULTILINGUAL}"
            )
        return "\n".join(report)

    def feature_of(self, name: str) -> np.ndarray:
        """`feature` of a text by its name in `prepare_texts`."""
        feature = _read_entry(self._entries[name])
        if feature is None:
            raise UserError(
                f"{self._entries[name]}: has disappeared from the cache of text features; run the command again"
            )
        return feature


def _first(texts: Sequence[str]) -> str:
    """The number of texts, and the first few of them."""
    more = ", ..." if texts[NAMES_SHOWN:] else ""
    return f"{len(texts)} texts: {', '.join(texts[:NAMES_SHOWN])}{more}"


def _read_entry(path: Path) -> np.ndarray | None:
    """A feature from the cache; None if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            feature = archive["feature"]
    except Exception:  # NumPy and zipfile raise many kinds of errors; the feature is then computed again
        return None
    return from_stored(feature) if feature.shape == STORED_SHAPE and feature.dtype == np.float32 else None


def _write_entry(path: Path, feature: np.ndarray) -> None:
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, feature=to_stored(feature))
    except UserError as error:
        raise UserError(f"{error}; set FILM_CACHE to another folder for the cache of text features") from error
