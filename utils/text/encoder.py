"""Text features from pretrained encoders of width 768, by transformers and PyTorch.

Both are imported where they are needed: they take seconds, and ready features need neither.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from net.shapes import TEXT_SHAPE
from utils.runtime.errors import UserError
from utils.runtime.threads import map_ahead

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TOKENS, WIDTH = TEXT_SHAPE
# Texts that one core takes at a time: the weights stay in its cache for them, and so do the activations.
BATCH = 4
# Settings of a configuration that say where it comes from, not what the encoder computes.
ORIGIN = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True)
class Family:
    """Encoders that are loaded in one way.

    Attributes:
        hub: the hub's name of the family's default encoder.
        model_type: what config.json calls the family.
        architecture: the class of transformers that holds the text side.
        module: the text side within it; empty where it is all of it. It is called with token ids and their mask.
        config: the part of the configuration that describes the text side; empty where it is all of it.
    """

    hub: str
    model_type: str
    architecture: str
    module: str = ""
    config: str = ""


FAMILIES = {
    "bert": Family("bert-base-uncased", "bert", "AutoModel"),
    "blip": Family(
        "Salesforce/blip-itm-base-coco",
        "blip",
        "BlipForImageTextRetrieval",
        module="text_encoder",
        config="text_config",
    ),
    # The paper's: text goes through the Q-Former alone, without queries and images.
    "blip2": Family("Salesforce/blip2-itm-vit-g", "blip-2", "Blip2TextModelWithProjection", config="qformer_config"),
}
# All encoders that no row names are loaded as BERT is.
OTHERS = FAMILIES["bert"]


# --- loading


def quiet_transformers() -> ModuleType:
    """The module transformers, with its warnings switched off; download bars still show."""
    import huggingface_hub
    import transformers

    transformers.utils.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    return transformers


def load_pretrained(source: str, what: str, architecture: str, **options: object) -> Any:
    """Load something of transformers from a folder, or by a name: from the hub's cache, else from the hub.

    Args:
        source: the folder or name.
        what: what is expected of it, for the error message.
        architecture: the class of transformers whose `from_pretrained` loads it.
        options: its further arguments.

    Raises:
        UserError: it cannot be loaded; says why and what to do.
    """
    load = getattr(quiet_transformers(), architecture).from_pretrained
    folder = Path(source).expanduser()
    if folder.is_dir():
        attempts = [(str(folder), True)]
        way_out = "config.json, weights and tokenizer as transformers saves them were expected there"
        if not (folder / "config.json").is_file():  # transformers would guess at one by the folder's name
            raise UserError(f"{source}: {what} cannot be loaded (no config.json); {way_out}")
    elif re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        attempts = [(source, True), (source, False)]
        way_out = (
            "give a folder that holds it, set HF_HOME to a cache that has it, or HF_ENDPOINT to a mirror of the hub"
        )
    else:
        raise UserError(f"{source}: no such folder; {what} was expected there")
    for place, local in attempts:
        try:
            return load(place, local_files_only=local, trust_remote_code=False, **options)
        except Exception as error:  # of transformers, its hub, tokenizers, safetensors, torch: anything may come
            problem = error
        if local and len(attempts) > 1:
            print(f"{source}: not found in the cache of this machine, asking the hub", file=sys.stderr)
    reason = re.split(r"\n|\. ", str(problem).strip())[0].rstrip(".") or type(problem).__name__
    raise UserError(f"{source}: {what} cannot be loaded ({reason}); {way_out}") from problem


def load_model(source: str, what: str, architecture: str, part: str = "") -> tuple[PreTrainedModel, set[str]]:
    """Load a model in float32 for inference.

    Args:
        source: a folder or a name.
        what: what is expected of it, for the error message.
        architecture: the class of transformers.
        part: the submodule to return; empty for the complete model.

    Returns:
        The model or its part, and the names of the parameters whose values its weights do not hold: those of an
        unused pooling layer at most.

    Raises:
        UserError: it cannot be loaded, or its weights lack something, and chance would take their place.
    """
    import torch

    model, info = load_pretrained(source, what, architecture, dtype=torch.float32, output_loading_info=True)
    prefix = f"{part}." if part else ""
    missing = {name.removeprefix(prefix) for name in info["missing_keys"] if name.startswith(prefix)}
    if needed := sorted(name for name in missing if not name.startswith("pooler.")):
        raise UserError(
            f"{source}: {what} was expected, but its weights lack {prefix}{needed[0]}"
            + (f" and {len(needed) - 1} more" if needed[1:] else "")
        )
    return (attrgetter(part)(model) if part else model).eval(), missing


# --- encoding


@dataclass(frozen=True)
class Tokens:
    """Texts as an encoder takes them, padded or cut.

    Attributes:
        ids: int64 (n, 149).
        mask: int64 (n, 149), 1 where there is a token, 0 where there is padding.
        lengths: how many tokens each text has uncut.
    """

    ids: np.ndarray
    mask: np.ndarray
    lengths: list[int]

    def __getitem__(self, rows: Sequence[int]) -> Tokens:
        rows = list(rows)
        return Tokens(self.ids[rows], self.mask[rows], [self.lengths[row] for row in rows])

    def __len__(self) -> int:
        return len(self.ids)

    def key(self, row: int) -> str:
        """A name for the content of a row."""
        return hashlib.sha256(self.ids[row].tobytes() + self.mask[row].tobytes()).hexdigest()


class TextEncoder:
    """A pretrained text encoder of width 768."""

    def __init__(self, source: str) -> None:
        """Load it.

        Args:
            source: a key of `FAMILIES`, a name on the hub, or a folder as transformers saves one.

        Raises:
            UserError: it is unavailable, of another width, or cannot take 149 tokens.
        """
        self.source = FAMILIES[source].hub if source in FAMILIES else source
        what = f"a text encoder of width {WIDTH}"
        config = load_pretrained(self.source, what, "AutoConfig")  # before the weights, which may be gigabytes
        family = next((family for family in FAMILIES.values() if family.model_type == config.model_type), OTHERS)
        config = getattr(config, family.config) if family.config else config
        width, positions = getattr(config, "hidden_size", None), getattr(config, "max_position_embeddings", None)
        if width != WIDTH:
            raise UserError(f"{self.source}: {what} was expected; its width is {width} ({', '.join(FAMILIES)} will do)")
        if positions is not None and positions < TOKENS:
            raise UserError(f"{self.source}: takes {positions} tokens; a text encoder of {TOKENS} was expected")
        self._tokenizer = load_pretrained(self.source, f"the tokenizer of {what}", "AutoTokenizer")
        if self._tokenizer.pad_token is None:
            raise UserError(f"{self.source}: its tokenizer has no padding; {what} that pads was expected")
        model, missing = load_model(self.source, what, family.architecture, family.module)
        self._model = model.get_encoder() if config.is_encoder_decoder else model
        self.fingerprint = _fingerprint(self._model, config.to_dict(), missing)
        _pack(self._model)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Texts as tokens, padded or cut to 149.

        Raises:
            UserError: the tokenizer is of another encoder.
        """
        texts = list(texts)
        lengths = [len(ids) for ids in self._tokenizer(texts, verbose=False)["input_ids"]]
        tokens = self._tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="np")
        ids, mask = (tokens[key].astype(np.int64) for key in ("input_ids", "attention_mask"))
        words = self._model.get_input_embeddings().num_embeddings
        if ids.max() >= words:
            raise UserError(
                f"{self.source}: its tokenizer knows token {ids.max()}, its weights {words} tokens; they do not belong "
                "together"
            )
        return Tokens(ids, mask, lengths)

    def encode(self, tokens: Tokens) -> Iterator[np.ndarray]:
        """The last hidden state of each text, float32 (149, 768), in order (film.md, section 4).

        Each core encodes different texts, `BATCH` at a time: on two cores that is faster than one text at a time on
        both, where every operation waits for the slower core. All 149 positions are computed, because padding is part
        of a feature: shorter batches would be other features.

        Raises:
            UserError: the encoder returns values that are not finite.
        """
        import torch

        cores = torch.get_num_threads()
        size = min(BATCH, math.ceil(len(tokens) / cores))
        starts = range(0, len(tokens), size)
        threads = max(1, cores // len(starts))

        def run(start: int) -> np.ndarray:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)  # a setting of this thread
            ids, mask = (torch.from_numpy(array[start : start + size]) for array in (tokens.ids, tokens.mask))
            with torch.inference_mode():
                return self._model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()

        try:
            for states in map_ahead(run, starts, min(cores, len(starts))):
                if not np.isfinite(states).all():
                    raise UserError(f"{self.source}: gives values that are not finite; its weights are damaged")
                yield from states
        finally:
            torch.set_num_threads(cores)


def _fingerprint(model: PreTrainedModel, config: Mapping[str, object], ignored: set[str]) -> str:
    """A name for what an encoder computes, wherever it lies: its parameters but the ignored ones, its configuration."""
    digest = hashlib.sha256()
    settings = {key: value for key, value in config.items() if key not in ORIGIN}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        if name not in ignored:
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().contiguous().numpy())
    return digest.hexdigest()[:32]


def _pack(model: PreTrainedModel) -> None:
    """Let oneDNN compute the linear layers, their weights packed once instead of at every call.

    They are nine tenths of the work, and a tenth faster so; results move in the seventh digit. Where PyTorch has no
    oneDNN nothing is done.
    """
    import torch

    if not torch.backends.mkldnn.is_available():
        return
    ops = torch.ops.mkldnn

    def linear(packed: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
        return ops._linear_pointwise(x, packed, bias, "none", [], "")

    with torch.no_grad():
        for module in model.modules():
            if type(module) is torch.nn.Linear:
                packed = ops._reorder_linear_weight(module.weight, BATCH * TOKENS)
                module.forward = partial(linear, packed, module.bias)
