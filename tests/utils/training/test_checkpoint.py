"""Checkpoints: there and back, from and to PyTorch, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from utils.runtime.errors import UserError
from utils.runtime.jittor_env import jt
from utils.training.checkpoint import (
    load_weights,
    read_checkpoint,
    read_weights,
    save_checkpoint,
)

torch = pytest.importorskip("torch")


class Two(jt.nn.Module):
    def __init__(self) -> None:
        self.a = jt.zeros((2, 3))
        self.b = jt.zeros((4,))


WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


def test_what_is_saved_is_read(tmp_path):
    state = {"model": WEIGHTS, "epoch": 3, "step": 12, "schedule": {"gamma": 0.6}, "names": ["x", None]}
    save_checkpoint(tmp_path / "c.pkl", state)
    read = read_checkpoint(tmp_path / "c.pkl")
    assert {k: v for k, v in read.items() if k != "model"} == {k: v for k, v in state.items() if k != "model"}
    np.testing.assert_array_equal(read["model"]["a"], WEIGHTS["a"])
    assert jt.load(str(tmp_path / "c.pkl"))["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["c.pkl"]


def test_files_of_other_jittor_code_are_read(tmp_path):
    """`jt.save` of Jittor arrays themselves, not of NumPy's."""
    jt.save({"a": jt.array(WEIGHTS["a"]), "b": jt.array(WEIGHTS["b"])}, str(tmp_path / "c.pkl"))
    weights = read_weights(tmp_path / "c.pkl")
    np.testing.assert_array_equal(weights["a"], WEIGHTS["a"])


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "_orig_mod.", "module._orig_mod.module."])
def test_parameters_are_found_under_the_usual_keys_and_prefixes(key, prefix):
    model = {prefix + name: value for name, value in WEIGHTS.items()}
    weights = read_weights(Path("x.pth"), {key: model, "epoch": 1} if key else model)
    assert list(weights) == ["a", "b"]
    assert weights["a"] is WEIGHTS["a"]


def test_a_parameter_with_two_prefixes_is_refused():
    with pytest.raises(UserError, match=r"x.pth: holds a parameter twice"):
        read_weights(Path("x.pth"), {"module.a": WEIGHTS["a"], "_orig_mod.a": WEIGHTS["a"]})


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_files_load_by_name(tmp_path, prefix, legacy):
    path = tmp_path / "official.pth"
    model = {prefix + name: torch.tensor(value) for name, value in WEIGHTS.items()}
    torch.save({"model": model, "epoch": 1}, path, _use_new_zipfile_serialization=not legacy)
    net = Two()
    load_weights(net, path)
    np.testing.assert_array_equal(net.a.numpy(), WEIGHTS["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("a"), "a is missing"),
        (lambda w: w.update(c=np.ones(1, np.float32)), "c is not in the network"),
        (lambda w: w.update(a=np.ones((3, 2), np.float32)), r"a is \(3, 2\), expected \(2, 3\)"),
        (lambda w: w.update(b=np.array([1, np.nan, 1, 1], np.float32)), "b is not finite"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change, message):
    net, weights = Two(), dict(WEIGHTS)
    change(weights)
    with pytest.raises(UserError, match=f"^film.pkl: .*{message}"):
        load_weights(net, Path("film.pkl"), {"model": weights})
    assert (net.a.numpy() == 0).all()


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_that_calls_something_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jt.save({"model": WEIGHTS, "x": Malicious()}, "evil.pkl")
    with pytest.raises(UserError, match=r"evil.pkl: .*posix.system"):
        read_checkpoint(Path("evil.pkl"))
    Path("evil.pth").write_bytes(pickle.dumps(Malicious(), 2))
    with pytest.raises(UserError, match="evil.pth"):
        read_checkpoint(Path("evil.pth"))
    assert not Path("executed").exists()


def test_missing_cut_and_damaged_files_are_named(tmp_path):
    path = tmp_path / "c.pkl"
    with pytest.raises(UserError, match=r"c.pkl: no such checkpoint"):
        read_checkpoint(path)
    save_checkpoint(path, {"model": WEIGHTS})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"c.pkl: .*cut"):
        read_checkpoint(path)
    path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    with pytest.raises(UserError, match=r"c.pkl: .*damaged"):
        read_checkpoint(path)


def test_a_checkpoint_without_parameters_is_refused(tmp_path):
    for state in ({"model": {}}, {"model": {"a": 1}}):
        save_checkpoint(tmp_path / "c.pkl", state)
        with pytest.raises(UserError, match=r"c.pkl"):
            read_weights(tmp_path / "c.pkl")
