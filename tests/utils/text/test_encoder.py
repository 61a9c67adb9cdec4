"""Text encoders and the cache of features: tiny encoders with random weights, and a real one where there is one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from utils.data.pairs import Pair
from utils.runtime.errors import UserError
from utils.text import encoder as encoder_module
from utils.text.cache import EncodedText, cache_folder, text_features
from utils.text.encoder import TextEncoder, load_pretrained
from utils.text.features import FeatureFiles

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[3]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["a", "man", "dog", "cup", "of", "coffee", "and", "the", "at", "night"]
TEXTS = [" ".join(WORDS[5 + (i * j) % 10] for j in range(1, i + 3)) for i in range(1, 12)]
# Linear layers are computed by another library than in a model called by hand (encoder_module._pack).
TOLERANCE = 1e-5
TINY = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": len(WORDS)}
VISION = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 8,
    "patch_size": 4,
}


def save(folder: Path, model: transformers.PreTrainedModel) -> Path:
    """Save a model and a tokenizer of `WORDS`, as the hub has them."""
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def bert(width: int = 768, positions: int = 160, words: int = len(WORDS)) -> transformers.BertModel:
    torch.manual_seed(0)
    settings = {**TINY, "vocab_size": words}
    return transformers.BertModel(
        transformers.BertConfig(hidden_size=width, max_position_embeddings=positions, **settings)
    ).eval()


def blip_config() -> transformers.BlipConfig:
    text = {**TINY, "hidden_size": 768, "encoder_hidden_size": 8, "max_position_embeddings": 160}
    return transformers.BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=4)


def blip() -> transformers.BlipForImageTextRetrieval:
    torch.manual_seed(1)
    return transformers.BlipForImageTextRetrieval(blip_config()).eval()


def blip2() -> transformers.Blip2ForImageTextRetrieval:
    torch.manual_seed(2)
    qformer = {
        **TINY,
        "hidden_size": 768,
        "encoder_hidden_size": 8,
        "max_position_embeddings": 160,
        "use_qformer_text_input": True,
    }
    config = transformers.Blip2Config(
        qformer_config=qformer, vision_config=VISION, num_query_tokens=2, image_text_hidden_size=4
    )
    model = transformers.Blip2ForImageTextRetrieval(config).eval()
    model.query_tokens.data.normal_()
    return model


def t5() -> transformers.T5Model:
    torch.manual_seed(3)
    config = transformers.T5Config(d_model=768, d_kv=8, d_ff=8, num_layers=1, num_heads=2, vocab_size=len(WORDS))
    return transformers.T5Model(config).eval()


def by_hand(model: transformers.PreTrainedModel, folder: Path, text: str) -> np.ndarray:
    """What transformers computes, one text at a time, through the whole model with images where it takes images."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        text, padding="max_length", max_length=149, truncation=True, return_tensors="pt"
    )
    inputs = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    pixels = torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        if isinstance(model, transformers.BlipForImageTextRetrieval):
            return model(**inputs, pixel_values=pixels, use_itm_head=False).question_embeds[0].numpy()
        if isinstance(model, transformers.Blip2ForImageTextRetrieval):
            return model(**inputs, pixel_values=pixels).text_model_output.last_hidden_state[0].numpy()
        if isinstance(model, transformers.T5Model):
            decoder = torch.zeros(1, 1, dtype=torch.long)
            return model(**inputs, decoder_input_ids=decoder).encoder_last_hidden_state[0].numpy()
        return model(**inputs).last_hidden_state[0].numpy()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FILM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny BERT."""
    return save(tmp_path / "bert", bert())


def encode(folder: Path, *texts: str) -> list[np.ndarray]:
    encoder = TextEncoder(str(folder))
    return list(encoder.encode(encoder.tokenize(texts)))


# --- what is computed


@pytest.mark.parametrize("make", [bert, blip, blip2, t5])
def test_each_family_gives_what_transformers_gives_by_hand(tmp_path, make):
    model = make()
    folder = save(tmp_path / "model", model)
    for text, feature in zip(TEXTS, encode(folder, *TEXTS), strict=True):
        assert feature.shape == (149, 768)
        assert feature.dtype == np.float32
        np.testing.assert_allclose(feature, by_hand(model, folder, text), atol=TOLERANCE)


def test_each_name_stands_for_its_encoder():
    # The names are those of the issue; the families those that the models' own configurations state.
    assert {name: (family.hub, family.model_type) for name, family in encoder_module.FAMILIES.items()} == {
        "bert": ("bert-base-uncased", transformers.BertConfig.model_type),
        "blip": ("Salesforce/blip-itm-base-coco", transformers.BlipConfig.model_type),
        "blip2": ("Salesforce/blip2-itm-vit-g", transformers.Blip2Config.model_type),
    }


def test_padding_is_masked(folder):
    # With the padding masked, the words' states are those of the sentence alone: [CLS] a cup of coffee [SEP].
    with torch.inference_mode():
        alone = bert()(input_ids=torch.tensor([[2, 5, 8, 9, 10, 3]])).last_hidden_state[0].numpy()
    (feature,) = encode(folder, "a cup of coffee")
    np.testing.assert_allclose(feature[:6], alone, atol=TOLERANCE)


def test_long_texts_are_cut(folder):
    # [CLS], 147 times coffee, [SEP]
    with torch.inference_mode():
        cut = bert()(input_ids=torch.tensor([[2, *[10] * 147, 3]])).last_hidden_state[0].numpy()
    (feature,) = encode(folder, "coffee " * 400)
    np.testing.assert_allclose(feature, cut, atol=TOLERANCE)


def test_same_text_same_feature_other_text_other_feature(folder):
    one, other, again = encode(folder, "a man", "a dog", "a man")
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_and_threads_change_nothing(folder, threads):
    encoder = TextEncoder(str(folder))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = list(encoder.encode(encoder.tokenize(TEXTS)))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for text, feature in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(feature, next(encoder.encode(encoder.tokenize([text]))), atol=1e-6)


def test_without_onednn_the_layers_stay_as_they_are(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    (feature,) = encode(folder, "a man")
    np.testing.assert_array_equal(feature, by_hand(bert(), folder, "a man"))


# --- cache


def prepared(folder: Path, *texts: str) -> tuple[EncodedText, str]:
    features = EncodedText(str(folder))
    return features, features.prepare_texts({f"text {i}": text for i, text in enumerate(texts)})


def test_a_text_is_encoded_once_across_runs_and_places(folder, tmp_path):
    first, report = prepared(folder, "a man", "a dog", "a man")
    assert "3 texts" in report
    assert "2 encoded, 0 from" in report
    moved = shutil.copytree(folder, tmp_path / "moved")
    second, report = prepared(moved, "a dog", "a cup", " a  DOG")
    # The uncased tokenizer sees the first and the last as the same text.
    assert "1 encoded, 1 from" in report
    np.testing.assert_array_equal(second.feature_of("text 0"), first.feature_of("text 1"))
    np.testing.assert_array_equal(second.feature_of("text 2"), first.feature_of("text 1"))
    assert [features.encoder[0] for features in (first, second)] == [str(folder), str(moved)]
    assert first.encoder[1] == second.encoder[1]


def test_a_snapshot_in_the_cache_of_the_hub_is_a_folder(folder, tmp_path):
    """Its files are links to blobs/. The person who names an encoder trusts it, so no option is needed."""
    snapshot, blobs = tmp_path / "models--me--bert/snapshots/e3b0c4", tmp_path / "models--me--bert/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        shutil.copy(path, blobs / f"hash of {path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash of {path.name}")
    np.testing.assert_array_equal(encode(snapshot, "a man")[0], encode(folder, "a man")[0])


def test_other_weights_or_settings_are_another_encoder(folder):
    prepared(folder, "a man")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 0.5'))
    assert "1 encoded, 0 from" in prepared(folder, "a man")[1]
    (folder / "config.json").write_text(config)
    assert "0 encoded, 1 from" in prepared(folder, "a man")[1]
    model = bert()
    model.encoder.layer[0].output.dense.bias.data[0] += 1
    save(folder, model)
    assert "1 encoded, 0 from" in prepared(folder, "a man")[1]


def test_a_pooling_layer_that_the_weights_lack_does_not_matter(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(hidden_size=768, max_position_embeddings=160, **TINY)
    folder = save(tmp_path / "masked", transformers.BertForMaskedLM(config))
    assert "1 encoded" in prepared(folder, "a man")[1]
    assert "0 encoded, 1 from" in prepared(folder, "a man")[1]


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("harm", [truncate, flip, lambda content: b"", lambda content: b"text"])
def test_a_damaged_entry_is_computed_anew(folder, cache, harm: Callable[[bytes], bytes]):
    features, _ = prepared(folder, "a man", "a dog")
    expected = features.feature_of("text 0")
    (entry,) = (path for path in cache.rglob("*.npz") if path == features._entries["text 0"])
    entry.write_bytes(harm(entry.read_bytes()))
    again, report = prepared(folder, "a man", "a dog")
    assert "1 encoded, 1 from" in report
    np.testing.assert_array_equal(again.feature_of("text 0"), expected)


def test_an_entry_that_goes_away_is_named(folder, cache):
    features, _ = prepared(folder, "a man")
    shutil.rmtree(cache)
    with pytest.raises(UserError, match="has disappeared from the cache"):
        features.feature_of("text 0")


def test_a_cache_that_cannot_be_written_is_named(folder, cache):
    cache.write_text("in the way")
    with pytest.raises(UserError, match="cannot be written .*set FILM_CACHE to another folder"):
        prepared(folder, "a man")


def test_cut_texts_are_counted_and_named(folder):
    # With [CLS] and [SEP], 147 words just fit.
    _, report = prepared(folder, "man " * 147, "man " * 148, "a dog", "coffee " * 400)
    assert "cut to 149 tokens: 2 texts: text 1 (150 tokens), text 3 (402 tokens)" in report
    assert "149 tokens" not in prepared(folder, "a dog")[1]


def test_words_that_the_encoder_does_not_know_are_counted_and_named(folder):
    """The tokenizer splits Chinese into characters; with [CLS] and [SEP], 夜晚的街道 is 7 tokens, 5 of them unknown."""
    _, report = prepared(folder, "a man", "夜晚的街道", "a 人")
    assert "words that this encoder does not know: 2 texts: text 1 (5 of 7 tokens), text 2 (1 of 4 tokens)" in report
    assert "translate them into English, or name a multilingual encoder of width 768" in report
    assert "does not know" not in prepared(folder, "a man")[1]


def test_default_place_of_the_cache(monkeypatch):
    monkeypatch.delenv("FILM_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "film-jittor" / "text"


# --- which features


def test_ready_features_go_first(tmp_path):
    pairs = [Pair(name, *[tmp_path / name] * 3, tmp_path / f"{name}.npy") for name in "ab"]
    chosen = text_features("auto", pairs)
    assert isinstance(chosen, EncodedText)
    assert chosen.source == "bert"
    (tmp_path / "b.npy").touch()
    assert isinstance(text_features("auto", pairs), FeatureFiles)
    assert isinstance(text_features("npy", pairs), FeatureFiles)
    assert text_features("blip2", pairs).source == "blip2"
    (tmp_path / "b.npy").unlink()
    assert text_features("auto", pairs, "mpnet").source == "mpnet"


# --- what is refused


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()


def no_padding(folder: Path) -> None:
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def infinite(folder: Path) -> None:
    model = bert()
    model.encoder.layer[0].output.dense.bias.data[:] = np.inf
    model.save_pretrained(folder)


def captioner(folder: Path) -> None:
    transformers.BlipForConditionalGeneration(blip_config()).save_pretrained(folder)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda folder: bert(width=32).save_pretrained(folder), r"has width 32, expected a text encoder of width 768"),
        (lambda folder: bert(positions=77).save_pretrained(folder), r"takes 77 tokens, expected at least 149"),
        (
            lambda folder: bert(words=8).save_pretrained(folder),
            r"its tokenizer uses token \d+, but its weights have only 8 tokens",
        ),
        (without("config.json"), r"cannot be loaded \(no config.json\); expected config.json, "),
        (without("model.safetensors"), r"cannot be loaded \(.*model.safetensors"),
        (no_tokenizer, r"cannot be loaded \(.*tokenizer"),
        (no_padding, "its tokenizer has no padding"),
        (cut_weights, "cannot be loaded"),
        (infinite, "values that are not finite"),
        (captioner, r"the weights lack text_encoder\.\S+ and \d+ more, which .* needs"),
    ],
)
def test_bad_encoders_are_one_line(folder, harm, problem):
    harm(folder)
    with pytest.raises(UserError, match=f"bert: .*{problem}") as caught:
        encode(folder, "the coffee at night")
    assert "\n" not in str(caught.value)


def test_a_qformer_without_text_side_is_refused(tmp_path):
    model = blip2()
    model.config.qformer_config.use_qformer_text_input = False
    trunk = transformers.Blip2ForImageTextRetrieval(model.config)
    weights = {name: value for name, value in trunk.state_dict().items() if not name.startswith("embeddings.")}
    folder = tmp_path / "blip2"
    save(folder, trunk)
    trunk.save_pretrained(folder, state_dict=weights)
    with pytest.raises(UserError, match=r"the weights lack embeddings\.\S+ and 1 more, which .* needs"):
        TextEncoder(str(folder))


def test_missing_folder_is_named_without_a_question_to_the_hub(tmp_path):
    for source in (str(tmp_path / "none"), "./none", "~/no such folder", "one/two/three"):
        with pytest.raises(UserError, match="no such folder; expected a text encoder of width 768 there"):
            TextEncoder(source)


def test_a_name_is_looked_up_in_the_cache_first(capsys, monkeypatch):
    asked = []

    def load(source: str, local_files_only: bool, trust_remote_code: bool) -> str:
        asked.append((source, local_files_only))
        assert not trust_remote_code
        if local_files_only:
            raise OSError("not there")
        return "loaded"

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", load)
    assert load_pretrained("owner/name", "an encoder", "AutoModel") == "loaded"
    assert asked == [("owner/name", True), ("owner/name", False)]
    assert capsys.readouterr().err.count("\n") == 1


# --- the script


def make_dataset(root: Path, texts: list[str | None]) -> None:
    base = root / "Image" / "IVF" / "Set"
    rng = np.random.default_rng(0)
    for number, text in enumerate(texts):
        for folder in ("IR", "VI"):
            (base / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(base / folder / f"{number}.png"), rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        if text is not None:
            path = root / "Text" / "IVF" / "Set" / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (base / "train.txt").write_text("".join(f"{number}.png\n" for number in range(len(texts))))


def run(root: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "data_process.py"), "--dataset", "Set", "--root", root, "--out", root / "h5"]
    environment = {**os.environ, "HF_HOME": str(root / "hub"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*map(str, command), *map(str, options)], capture_output=True, text=True, timeout=120, env=environment
    )


def test_script_encodes_paragraphs(tmp_path, folder):
    make_dataset(tmp_path, ["a man at night\n", "coffee " * 200])
    done = run(tmp_path, "--text_encoder", folder)
    assert done.returncode == 0, done.stderr
    assert "2 encoded" in done.stdout
    assert "cut to 149 tokens: 1 texts:" in done.stdout
    with h5py.File(tmp_path / "h5" / "Set_train.h5") as file:
        np.testing.assert_allclose(file["text"]["0"][0], by_hand(bert(), folder, "a man at night"), atol=TOLERANCE)
    # Progress bars, and not a word of transformers.
    assert [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line] == []


@pytest.mark.parametrize(
    ("texts", "options", "problem"),
    [
        (
            ["a man"],
            [],
            r"error: bert-base-uncased: .* cannot be loaded .*a folder .*HF_HOME.*HF_ENDPOINT",
        ),
        (["a man", ""], [], r"error: \S+1.txt: is empty"),
        (["a man", None], [], r"error: \S+1.txt: no such text"),
        (["a man"], ["--text_encoder", "npy"], r"error: \S+0.npy: no such text feature"),
    ],
)
def test_script_fails_in_one_line(tmp_path, texts, options, problem):
    make_dataset(tmp_path, texts)
    done = run(tmp_path, *options)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "asking the hub" not in line]
    assert len(lines) == 1, done.stderr
    assert re.match(problem, lines[0]), lines[0]
    assert not (tmp_path / "h5").exists()


# --- a real encoder


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory) -> Path:
    """The encoder of ../shared/tools/get_text_encoder.sh, or of the folder FILM_TEST_ENCODER that holds it."""
    if given := os.environ.get("FILM_TEST_ENCODER"):
        return Path(given)
    folder = tmp_path_factory.mktemp("encoder")
    script = shared / "tools" / "get_text_encoder.sh"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", script, folder], capture_output=True, text=True, env={**os.environ, "PATH": path})
    if done.returncode != 0:
        pytest.skip(f"{script} failed: {done.stderr.strip()[-200:]}")
    return folder


@pytest.mark.slow
def test_real_encoder_gives_the_golden_features(real, shared):
    golden = {path.stem: np.load(path) for path in sorted((shared / "golden/features/RoadScene").glob("*.npy"))}
    texts = {name: (shared / "data/RoadScene/Text" / f"{name}.txt").read_text() for name in golden}
    features = EncodedText(str(real))
    assert f"{len(golden)} encoded" in features.prepare_texts(texts)
    for name, expected in golden.items():
        np.testing.assert_allclose(features.feature_of(name), expected[0], atol=TOLERANCE)
    names = list(golden)
    assert np.abs(features.feature_of(names[0]) - features.feature_of(names[1])).max() > 0.1

    again = EncodedText(str(real))
    assert "1 encoded, 1 from" in again.prepare_texts({"same": texts[names[0]], "other": "A cup of coffee."})
    np.testing.assert_array_equal(again.feature_of("same"), features.feature_of(names[0]))
    model = transformers.AutoModel.from_pretrained(real).eval()
    np.testing.assert_allclose(again.feature_of("other"), by_hand(model, real, "A cup of coffee."), atol=TOLERANCE)
