"""Drafts of paragraphs: a BLIP captioning model describes the two images of a pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.bad_pairs import BadPairs
from utils.data.images import read_bgr
from utils.data.pairs import Pair
from utils.data.tasks import TASKS
from utils.runtime.errors import UserError
from utils.runtime.files import write_text
from utils.text.encoder import load_model, load_pretrained

CAPTIONERS = {"blip": "Salesforce/blip-image-captioning-base"}
# The beam search of BLIP's demo, but with longer captions.
SEARCH = {"num_beams": 3, "do_sample": False, "min_new_tokens": 5, "max_new_tokens": 40}


class Captioner:
    """A BLIP model that describes images."""

    def __init__(self, source: str) -> None:
        """Load it.

        Args:
            source: a key of `CAPTIONERS`, a name on the hub, or a folder saved by transformers.

        Raises:
            UserError: it is unavailable, or not a BLIP captioning model.
        """
        self.source = CAPTIONERS.get(source, source)
        what = "a BLIP captioning model"
        kind = load_pretrained(self.source, what, "AutoConfig").model_type
        if kind != "blip":
            raise UserError(f"{self.source}: is a model of type {kind}, expected {what}")
        self._pixels = load_pretrained(self.source, what, "BlipImageProcessor")
        self._tokenizer = load_pretrained(self.source, f"the tokenizer of {what}", "AutoTokenizer")
        self._model, _ = load_model(self.source, what, "BlipForConditionalGeneration")

    def __call__(self, images: Sequence[np.ndarray]) -> list[str]:
        """A caption for each image, uint8 (h, w, 3), BGR."""
        rgb = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        pixels = self._pixels(rgb, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        tokens = self._model.generate(pixel_values=pixels, **SEARCH)
        return [caption.strip() for caption in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def compose(task: str, captions: Sequence[str]) -> str:
    """The paragraph of two captions.

    >>> compose("IVF", ["a man walking", "a street at night"])
    'The infrared image shows a man walking. The visible image shows a street at night.'
    """
    return " ".join(
        f"The {side} shows {caption.rstrip('.')}." for side, caption in zip(TASKS[task].sides, captions, strict=True)
    )


def write_captions(
    pairs: Sequence[Pair],
    task: str,
    captioner: Callable[[], Captioner],
    read: Callable[[Path], np.ndarray] = read_bgr,
    bad: BadPairs | None = None,
) -> list[Path]:
    """Write a paragraph for each pair that has no text file; existing files are not changed.

    Args:
        pairs: the pairs of one task.
        task: a key of `TASKS`.
        captioner: returns the captioner; called only if there is a paragraph to write.
        read: reads an image, uint8 (H, W, 3), BGR.
        bad: collects the pairs of which an image cannot be read.

    Returns:
        The files written.

    Raises:
        UserError: an image cannot be read and its pair is not to be skipped, the captioner is unavailable, or a file
            cannot be written.
    """
    missing = [pair for pair in pairs if not pair.text.exists()]
    if not missing:
        return []
    describe = captioner()
    bad = bad or BadPairs()
    written = []
    for pair in tqdm(missing, desc="captions", unit="pair"):
        with bad.guard(pair.name):
            images = [read(pair.image_a), read(pair.image_b)]
        if pair.name in bad.reasons:
            continue
        paragraph = compose(task, describe(images))
        write_text(pair.text, f"{paragraph}\n")
        written.append(pair.text)
    return written
