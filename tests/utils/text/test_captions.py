"""Captions by a tiny BLIP model with random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from utils.data.pairs import Pair, find_pairs
from utils.runtime.errors import UserError
from utils.text.captions import CAPTIONERS, Captioner, compose, write_captions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[3]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["a", "man", "dog", "cup", "of", "coffee", "and", "the", "at", "night", "[DEC]"]
SIZE = 8


def blip_config(width: int) -> transformers.BlipConfig:
    # The wide spread of the weights makes captions depend on the image.
    tiny = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "initializer_range": 0.5}
    vision = {**tiny, "hidden_size": 16, "image_size": SIZE, "patch_size": 4}
    text = {
        **tiny,
        "hidden_size": width,
        "encoder_hidden_size": 16,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 160,
        "bos_token_id": len(WORDS) - 1,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    return transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=4)


def save_blip(folder: Path, architecture: str = "BlipForConditionalGeneration", width: int = 16) -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(blip_config(width))
    if architecture == "BlipForConditionalGeneration":
        # Words only.
        model.text_decoder.cls.predictions.bias.data[:5] = -100
        model.text_decoder.cls.predictions.bias.data[-1] = -100
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), bos_token="[DEC]").save_pretrained(folder)
    transformers.BlipImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_blip(tmp_path_factory.mktemp("blip"))


def make_dataset(root: Path, names: str) -> list[Pair]:
    base = root / "Image" / "IVF" / "Set"
    rng = np.random.default_rng(0)
    for folder, (low, high) in {"IR": (0, 60), "VI": (150, 256)}.items():
        (base / folder).mkdir(parents=True)
        for name in names:
            cv2.imwrite(str(base / folder / f"{name}.png"), rng.integers(low, high, (12, 16, 3), dtype=np.uint8))
    (base / "train.txt").write_text("".join(f"{name}.png\n" for name in names))
    return find_pairs(root, "IVF", "Set", "train")


def by_hand(folder: Path, path: Path) -> str:
    """What transformers gives for one image, by BLIP's processor and the search that utils/text/captions.py states."""
    processor = transformers.BlipProcessor.from_pretrained(folder)
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    pixels = processor(images=cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), return_tensors="pt")
    tokens = model.generate(**pixels, num_beams=3, do_sample=False, min_new_tokens=5, max_new_tokens=40)
    return processor.decode(tokens[0], skip_special_tokens=True)


def test_captions_are_those_of_transformers(tmp_path, folder):
    (pair,) = make_dataset(tmp_path, "x")
    (path,) = write_captions([pair], "IVF", lambda: Captioner(str(folder)))
    a, b = by_hand(folder, pair.image_a), by_hand(folder, pair.image_b)
    assert a
    assert a != b
    assert path == pair.text == tmp_path / "Text" / "IVF" / "Set" / "x.txt"
    assert path.read_text() == f"The infrared image shows {a}. The visible image shows {b}.\n"


def test_what_is_there_stays_as_it_is(tmp_path):
    pairs = make_dataset(tmp_path, "abc")
    pairs[0].text.parent.mkdir(parents=True)
    pairs[0].text.write_text("Mine.")
    pairs[1].text.touch()

    def describe(images: list[np.ndarray]) -> list[str]:
        return [f"{image.shape[0]} rows of {name}" for image, name in zip(images, ("heat", "light."), strict=True)]

    assert write_captions(pairs, "IVF", lambda: describe) == [pairs[2].text]
    assert [pair.text.read_text() for pair in pairs] == [
        "Mine.",
        "",
        "The infrared image shows 12 rows of heat. The visible image shows 12 rows of light.\n",
    ]
    # With nothing to write, no model is loaded.
    assert write_captions(pairs, "IVF", lambda: pytest.fail("loaded")) == []


def test_each_task_has_its_words():
    assert compose("MFF", ["a cup", "a street."]) == (
        "The image focused on the near shows a cup. The image focused on the far shows a street."
    )
    assert CAPTIONERS == {"blip": "Salesforce/blip-image-captioning-base"}


def test_an_unreadable_image_leaves_no_text(tmp_path, folder):
    pairs = make_dataset(tmp_path, "x")
    pairs[0].image_b.write_bytes(b"broken")
    with pytest.raises(UserError, match="x.png: cannot be decoded"):
        write_captions(pairs, "IVF", lambda: Captioner(str(folder)))
    assert not pairs[0].text.exists()


def test_models_that_do_not_caption_are_refused(tmp_path):
    matching = save_blip(tmp_path / "matching", "BlipForImageTextRetrieval")
    with pytest.raises(
        UserError,
        match=r"matching: the weights lack text_decoder\.\S+ and \d+ more, which a BLIP captioning model needs",
    ):
        Captioner(str(matching))
    (tmp_path / "other").mkdir()
    transformers.BertConfig().save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="is a model of type bert, expected a BLIP captioning model"):
        Captioner(str(tmp_path / "other"))


def test_script_captions_and_then_encodes(tmp_path, folder):
    make_dataset(tmp_path, "abc")
    texts = tmp_path / "Text" / "IVF" / "Set"
    texts.mkdir(parents=True)
    (texts / "b.txt").write_text("Mine.")
    encoder = save_blip(tmp_path / "encoder", "BlipForImageTextRetrieval", width=768)
    command = [sys.executable, ROOT / "data_process.py", "--dataset", "Set", "--root", tmp_path, "--out", tmp_path]
    command += ["--caption", folder, "--text_encoder", encoder]
    environment = {**os.environ, "FILM_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "captions: 2 written" in done.stdout
    assert (texts / "a.txt").read_text().startswith("The infrared image shows ")
    assert (texts / "b.txt").read_text() == "Mine."
    # Progress bars, and not a word of transformers.
    assert [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line] == []
    with h5py.File(tmp_path / "Set_train.h5") as file:
        assert file["text"]["c"].shape == (1, 149, 768)
