"""Text features from pretrained encoders of width 768, computed by transformers and PyTorch.

Both are imported in functions, because the import takes seconds and ready features do not need it.
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
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from net.shapes import TEXT_SHAPE
from utils.runtime.errors import UserError, first_line
from utils.runtime.files import expanded
from utils.runtime.threads import map_ahead

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TOKENS, WIDTH = TEXT_SHAPE
# Texts per call and core: few enough for the activations to stay in its cache, and enough to reuse the weights there.
BATCH = 4
# Settings of a configuration that describe its origin and do not change the encoder's results.
ORIGIN = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True)
class Family:
    """Encoders that are loaded in the same way.

    Attributes:
        hub: the name of the default encoder on the hub.
        model_type: the name of the family in config.json.
        architecture: the class of transformers that contains the text encoder.
        module: the text encoder in it; empty if it is the complete model. It is called with token ids and a mask.
        config: the part of the configuration for the text encoder; empty if it is the complete configuration.
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
    # The paper's encoder: the text passes through the Q-Former, without queries and images.
    "blip2": Family("Salesforce/blip2-itm-vit-g", "blip-2", "Blip2TextModelWithProjection", config="qformer_config"),
}
# Encoders of all other types are loaded like BERT.
OTHERS = FAMILIES["bert"]


# --- loading


def quiet_transformers() -> ModuleType:
    """The module transformers, with warnings switched off; progress bars of downloads still show.

    Raises:
        UserError: it cannot be imported, for instance because of an environment variable such as HF_HUB_....
    """
    import torch  # noqa: F401 - if it is missing, say so before transformers prints a warning and asks the hub

    try:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        import huggingface_hub  # comes with transformers
    except ModuleNotFoundError:
        raise
    except Exception as error:
        problem = f"transformers: cannot be started ({first_line(error)})"
        raise UserError(f"{problem}; check the variables HF_... and TRANSFORMERS_... in the environment") from error

    huggingface_hub.utils.logging.set_verbosity_error()
    return transformers


def load_pretrained(source: str, what: str, architecture: str, **options: object) -> Any:
    """Load an object of transformers from a folder or, by name, from the cache of the hub, else from the hub.

    Args:
        source: the folder or name.
        what: what it should be, for the error message.
        architecture: the class of transformers whose `from_pretrained` loads it.
        options: further arguments of `from_pretrained`.

    Raises:
        UserError: it cannot be loaded; the message says why and what to do.
    """
    load = getattr(quiet_transformers(), architecture).from_pretrained
    folder = expanded(source)
    if folder.is_dir():
        attempts = [(str(folder), True)]
        way_out = "expected config.json, weights and tokenizer there, as saved by transformers"
        if not (folder / "config.json").is_file():  # transformers would guess the type from the folder's name
            raise UserError(f"{source}: {what} cannot be loaded (no config.json); {way_out}")
    elif re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        attempts = [(source, True), (source, False)]
        way_out = "name a folder that contains it, set HF_HOME to a cache of it, or HF_ENDPOINT to a mirror of the hub"
    else:
        raise UserError(f"{source}: no such folder; expected {what} there")
    for place, local in attempts:
        try:
            return load(place, local_files_only=local, trust_remote_code=False, **options)
        # transformers, its hub, tokenizers, safetensors and torch raise many kinds of errors.
        except Exception as error:
            problem = error
        if local and len(attempts) > 1:
            print(f"{source}: not in the cache of this machine, asking the hub", file=sys.stderr)
    reason = re.split(r"\n|\. ", str(problem).strip())[0].rstrip(".") or type(problem).__name__
    raise UserError(f"{source}: {what} cannot be loaded ({reason}); {way_out}") from problem


def load_model(source: str, what: str, architecture: str, part: str = "") -> tuple[PreTrainedModel, set[str]]:
    """Load a model in float32 for inference.

    Args:
        source: a folder or a name.
        what: what it should be, for the error message.
        architecture: the class of transformers.
        part: the submodule to return; empty for the complete model.

    Returns:
        The model or its part, and the names of parameters that the weights lack: at most those of an unused pooling
        layer.

    Raises:
        UserError: it cannot be loaded, or the weights lack a parameter, which would be random then.
    """
    import torch

    model, info = load_pretrained(source, what, architecture, dtype=torch.float32, output_loading_info=True)
    prefix = f"{part}." if part else ""
    missing = {name.removeprefix(prefix) for name in info["missing_keys"] if name.startswith(prefix)}
    if needed := sorted(name for name in missing if not name.startswith("pooler.")):
        more = f" and {len(needed) - 1} more" if needed[1:] else ""
        raise UserError(f"{source}: the weights lack {prefix}{needed[0]}{more}, which {what} needs")
    return (attrgetter(part)(model) if part else model).eval(), missing


# --- encoding


@dataclass(frozen=True)
class Tokens:
    """The tokens of texts, padded or truncated to 149.

    Attributes:
        ids: token ids, int64 (n, 149).
        mask: int64 (n, 149), 1 for tokens, 0 for padding.
        lengths: the number of tokens of each text before truncation.
        unknown: how many of these stand for words that the encoder does not know.
    """

    ids: np.ndarray
    mask: np.ndarray
    lengths: list[int]
    unknown: list[int]

    def __getitem__(self, rows: Sequence[int]) -> Tokens:
        rows = list(rows)
        counts = ([counts[row] for row in rows] for counts in (self.lengths, self.unknown))
        return Tokens(self.ids[rows], self.mask[rows], *counts)

    def __len__(self) -> int:
        return len(self.ids)

    def key(self, row: int) -> str:
        """A hash of the content of a row."""
        return hashlib.sha256(self.ids[row].tobytes() + self.mask[row].tobytes()).hexdigest()


class TextEncoder:
    """A pretrained text encoder of width 768."""

    def __init__(self, source: str) -> None:
        """Load it.

        Args:
            source: a key of `FAMILIES`, a name on the hub, or a folder saved by transformers.

        Raises:
            UserError: it is unavailable, has another width, or does not take 149 tokens.
        """
        self.source = FAMILIES[source].hub if source in FAMILIES else source
        what = f"a text encoder of width {WIDTH}"
        config = load_pretrained(self.source, what, "AutoConfig")  # before the weights, which may be gigabytes
        family = next((family for family in FAMILIES.values() if family.model_type == config.model_type), OTHERS)
        config = getattr(config, family.config) if family.config else config
        width, positions = getattr(config, "hidden_size", None), getattr(config, "max_position_embeddings", None)
        if width != WIDTH:
            raise UserError(f"{self.source}: has width {width}, expected {what} (such as {', '.join(FAMILIES)})")
        if positions is not None and positions < TOKENS:
            raise UserError(f"{self.source}: takes {positions} tokens, expected at least {TOKENS}")
        self._tokenizer = load_pretrained(self.source, f"the tokenizer of {what}", "AutoTokenizer")
        if self._tokenizer.pad_token is None:
            raise UserError(f"{self.source}: its tokenizer has no padding token; name another encoder")
        model, missing = load_model(self.source, what, family.architecture, family.module)
        self._model = model.get_encoder() if config.is_encoder_decoder else model
        self.fingerprint = _fingerprint(self._model, config.to_dict(), missing)
        _pack(self._model)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Convert texts to tokens.

        Raises:
            UserError: the tokenizer does not fit the weights.
        """
        texts = list(texts)
        complete = self._tokenizer(texts, verbose=False)["input_ids"]
        # Some tokenizers know all characters, and name as unknown the token that also ends a text.
        ends = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        unknown = None if self._tokenizer.unk_token_id in ends else self._tokenizer.unk_token_id
        tokens = self._tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="np")
        ids, mask = (tokens[key].astype(np.int64) for key in ("input_ids", "attention_mask"))
        words = self._model.get_input_embeddings().num_embeddings
        if ids.max() >= words:
            problem = f"its tokenizer uses token {ids.max()}, but its weights have only {words} tokens"
            raise UserError(f"{self.source}: {problem}; use the tokenizer of these weights")
        return Tokens(ids, mask, [len(row) for row in complete], [row.count(unknown) for row in complete])

    def encode(self, tokens: Tokens) -> Iterator[np.ndarray]:
        """The last hidden state of each text, float32 (149, 768), in order (film.md, section 4).

        Each core encodes different texts, `BATCH` at a time. If all cores shared each text, every operation would wait
        for the slowest core. All 149 positions are computed, because padding is part of a feature: shorter rows would
        change it.

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
                torch.set_num_threads(threads)  # applies to this thread only
            ids, mask = (torch.from_numpy(array[start : start + size]) for array in (tokens.ids, tokens.mask))
            with torch.inference_mode():
                return self._model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()

        try:
            for states in map_ahead(run, starts, min(cores, len(starts))):
                if not np.isfinite(states).all():
                    raise UserError(f"{self.source}: returns values that are not finite; its weights are damaged")
                yield from states
        finally:
            torch.set_num_threads(cores)


def _fingerprint(model: PreTrainedModel, config: Mapping[str, object], ignored: set[str]) -> str:
    """A hash of the configuration and of all parameters except `ignored`."""
    digest = hashlib.sha256()
    settings = {key: value for key, value in config.items() if key not in ORIGIN}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        if name not in ignored:
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().contiguous().numpy())
    return digest.hexdigest()[:32]


def _pack(model: PreTrainedModel) -> None:
    """Let oneDNN compute the linear layers, with weights packed once instead of in every call.

    These layers are nine tenths of the work and become a tenth faster; results change in the seventh digit. Without
    oneDNN in PyTorch this does nothing.
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
