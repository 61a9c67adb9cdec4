"""Text features on demand: ready ones, or paragraphs that are encoded once on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.pairs import Pair
from utils.data.stored import STORED_SHAPE, from_stored, to_stored
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path
from utils.text.encoder import TOKENS, TextEncoder
from utils.text.features import FeatureFiles, read_paragraph

NAMES_SHOWN = 5


def text_features(encoder: str, pairs: Sequence[Pair]) -> FeatureFiles | EncodedText:
    """What --text_encoder asks for.

    Args:
        encoder: a key of `FAMILIES`, a hub name, a folder, 'npy' for ready features, or 'auto': ready features where
            one of the pairs has one (features of several encoders must not be mixed), else bert.
        pairs: where 'auto' looks for ready features.
    """
    if encoder == "auto":
        encoder = "npy" if any(pair.feature.is_file() for pair in pairs) else "bert"
    return FeatureFiles() if encoder == "npy" else EncodedText(encoder)


def cache_folder() -> Path:
    """Where features are kept between runs: $FILM_CACHE, else ~/.cache/film-jittor."""
    return Path(os.environ.get("FILM_CACHE") or "~/.cache/film-jittor").expanduser() / "text"


class EncodedText:
    """The features of paragraphs, each of which is encoded once on this machine.

    A feature is kept in `cache_folder` under the content of its encoder and its tokens, so that neither names nor
    places of texts and encoders matter. An entry is a .npz file, whose checksum tells when it is damaged.
    """

    def __init__(self, source: str) -> None:
        """`source` as of `TextEncoder`, which is loaded when the first texts come."""
        self.source = source
        self._encoder: TextEncoder | None = None
        self._entries: dict[str, Path] = {}

    def prepare(self, pairs: Sequence[Pair]) -> str:
        """Encode those paragraphs of these pairs that are not in the cache.

        Raises:
            UserError: a paragraph is missing, empty or not UTF-8, the encoder is unavailable, or the cache cannot
                be written.
        """
        return self.prepare_texts({str(pair.text): read_paragraph(pair.text) for pair in pairs})

    def feature(self, pair: Pair) -> np.ndarray:
        """The feature of the paragraph of a pair that was prepared, float32 (149, 768).

        Raises:
            UserError: it has gone from the cache meanwhile.
        """
        return self.feature_of(str(pair.text))

    def prepare_texts(self, texts: Mapping[str, str]) -> str:
        """Encode those texts that are not in the cache; `texts` maps names to them. Errors as of `prepare`."""
        if self._encoder is None:
            self._encoder = TextEncoder(self.source)
        encoder, folder = self._encoder, cache_folder() / self._encoder.fingerprint
        tokens = encoder.tokenize(list(texts.values()))
        paths = [folder / f"{tokens.key(row)}.npz" for row in range(len(tokens))]
        self._entries.update(zip(texts, paths, strict=True))
        # A dictionary, because several texts may be the same.
        missing = {path: row for row, path in enumerate(paths) if _read_entry(path) is None}
        if missing:
            features = encoder.encode(tokens[list(missing.values())])
            for path, feature in zip(
                tqdm(missing, desc=f"text by {encoder.source}", unit="text"), features, strict=True
            ):
                _write_entry(path, feature)
        report = [
            f"text features: {len(texts)} texts by {encoder.source}, {len(missing)} encoded, "
            f"{len(set(paths)) - len(missing)} from {folder}"
        ]
        if cut := [(name, length) for name, length in zip(texts, tokens.lengths, strict=True) if length > TOKENS]:
            names = ", ".join(f"{name} ({length} tokens)" for name, length in cut[:NAMES_SHOWN])
            report.append(f"cut to {TOKENS} tokens: {len(cut)} texts: {names}" + (", ..." if cut[NAMES_SHOWN:] else ""))
        return "\n".join(report)

    def feature_of(self, name: str) -> np.ndarray:
        """The feature of a text that was prepared under this name. Errors as of `feature`."""
        feature = _read_entry(self._entries[name])
        if feature is None:
            raise UserError(f"{self._entries[name]}: has gone from the cache of text features; start again")
        return feature


def _read_entry(path: Path) -> np.ndarray | None:
    """A feature of the cache; None where it is not there, or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            feature = archive["feature"]
    except Exception:  # NumPy and zipfile raise errors of many kinds; after any, the feature is computed again
        return None
    return from_stored(feature) if feature.shape == STORED_SHAPE and feature.dtype == np.float32 else None


def _write_entry(path: Path, feature: np.ndarray) -> None:
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, feature=to_stored(feature))
    except UserError as error:
        raise UserError(f"{error}; FILM_CACHE names another folder for the cache of text features") from error
