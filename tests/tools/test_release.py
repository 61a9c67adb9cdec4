"""tools/release.py: the files that ship."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tools import release
from utils.data.provenance import Provenance
from utils.runtime.cli import run_command
from utils.training.checkpoint import read_checkpoint, save_checkpoint

FEATURE = np.arange(149 * 768, dtype=np.float32).reshape(149, 768)
SENTENCE = "The over-exposed image and the under-exposed image of the same scene."


class Encoded:
    """Takes the place of `EncodedText`."""

    encoder = ("/home/me/mpnet", "d1")

    def __init__(self, source: str) -> None:
        assert source == "mpnet"

    def prepare_texts(self, texts: dict[str, str]) -> str:
        (self.text,) = texts.values()
        return "encoded"

    def feature_of(self, name: str) -> np.ndarray:
        assert self.text == SENTENCE
        return FEATURE


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(release, "EncodedText", Encoded)
    state = {
        "model": {"module.w": np.array([1, 2.5])},
        "optimizer": {"m": np.zeros(2, np.float32)},
        "step": 12,
        "options": {"seed": 3, "dataset_path": "/home/me/x.h5"},
        "data": asdict(Provenance("MEF", "/home/me/mpnet", "d1")),
    }
    save_checkpoint(tmp_path / "c.pkl", state)
    return tmp_path / "c.pkl"


def run(*arguments: object) -> int:
    return run_command(release.main, [*map(str, arguments), "--text_encoder", "mpnet"])


def test_weights_and_neutral_feature(checkpoint, tmp_path):
    out = tmp_path / "models"
    assert run(checkpoint, "--task", "MEF", "--encoder_name", "hub/mpnet", "--commit", "abc", "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["MEF.npy", "MEF.pkl"]
    written = read_checkpoint(out / "MEF.pkl")
    assert written["model"]["w"].dtype == np.float32
    assert written.pop("model")["w"].tolist() == [1, 2.5]
    data = {"task": "MEF", "text_encoder": "hub/mpnet", "encoder_digest": "d1"}
    assert written == {"data": data, "options": {"seed": 3}, "step": 12, "commit": "abc"}
    np.testing.assert_array_equal(np.load(out / "MEF.npy"), FEATURE[None])


def test_another_task_or_encoder_is_one_line(checkpoint, tmp_path, monkeypatch, capsys):
    assert run(checkpoint, "--out", tmp_path / "models") == 2
    assert "c.pkl: was trained for MEF, not IVF" in capsys.readouterr().err
    monkeypatch.setattr(Encoded, "encoder", ("bert", "d2"))
    assert run(checkpoint, "--task", "MEF", "--out", tmp_path / "models") == 2
    assert "c.pkl: was trained with another text encoder, /home/me/mpnet" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_the_mean_of_several_checkpoints(checkpoint, tmp_path):
    second = tmp_path / "d.pkl"
    save_checkpoint(second, read_checkpoint(checkpoint) | {"model": {"w": np.array([3, 0.5], np.float32)}, "step": 24})
    assert run(checkpoint, second, "--task", "MEF", "--out", tmp_path / "models") == 0
    written = read_checkpoint(tmp_path / "models" / "MEF.pkl")
    assert written["model"]["w"].tolist() == [2, 1.5]
    assert written["step"] == 24


def test_checkpoints_of_two_networks_have_no_mean(checkpoint, tmp_path, capsys):
    save_checkpoint(tmp_path / "d.pkl", {"model": {"v": np.zeros(2, np.float32)}})
    assert run(checkpoint, tmp_path / "d.pkl", "--task", "MEF", "--out", tmp_path / "models") == 2
    assert "d.pkl: is of another network than" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
