"""tools/text_effect.py: what the text changes."""

from __future__ import annotations

import json
import pickle

import cv2
import h5py
import numpy as np
import pytest

from net.Film import Net
from tools.text_effect import main, rms
from utils.runtime.cli import run_command
from utils.training.checkpoint import weights_of_net


def test_root_mean_square():
    assert rms(np.array([3, -4], np.float32)) == pytest.approx(12.5**0.5)


def test_equal_texts_change_nothing_and_others_do(tmp_path, capsys):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "pairs.h5", "w") as file:
        text = rng.standard_normal((1, 149, 768), np.float32)
        for name in "xy":
            file.create_dataset(f"imageA/{name}", data=rng.random((1, 48, 44), np.float32))
            file.create_dataset(f"imageB/{name}", data=rng.random((1, 48, 44), np.float32))
            file.create_dataset(f"text/{name}", data=text)
    weights = weights_of_net(Net())
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"model": weights}))
    neutral = tmp_path / "neutral.npy"
    np.save(neutral, rng.standard_normal((1, 149, 768), np.float32))
    out = tmp_path / "effect"
    command = ["--h5", tmp_path / "pairs.h5", "--ckpt_path", tmp_path / "net.pkl", "--neutral", neutral, "--out", out]
    main([str(word) for word in command])

    seen = json.loads((tmp_path / "effect.json").read_text())
    assert seen["difference in gray levels"]["another pair's"] == {"mean": 0, "largest": 0}
    assert seen["metrics"]["another pair's"] == seen["metrics"]["own"]
    for stage in ("stage 1 A", "stage 1 B", "stage 2 A", "stage 2 B", "stage 3 A", "stage 3 B"):
        distance = seen["L1 distance of the guidance"][stage]
        assert distance["another pair's"] == 0
        assert 0 < distance["zeros"] <= 2
        assert 0 < distance["neutral sentence"] <= 2
        assert seen["rms(g) / rms(f)"][stage] > 0
    assert cv2.imread(str(tmp_path / "effect.png")) is not None
    assert "another pair's: differs by 0.000 gray levels on average, by 0 at most" in capsys.readouterr().out

    np.save(neutral, np.zeros((1, 149, 512), np.float32))
    assert run_command(main, list(map(str, command))) == 2
    assert "neutral.npy: has shape (149, 512); expected (149, 768)" in capsys.readouterr().err
