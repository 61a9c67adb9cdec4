"""Fusing a data set: what runs at the same time, in which order results come, how errors end it, and its memory."""

from __future__ import annotations

import time
import weakref

import cv2
import numpy as np
import pytest

from net.shapes import TEXT_SHAPE
from utils.data.h5 import H5Dataset, Sample, write_h5
from utils.data.images import stretch_to_uint8
from utils.evaluation import stream
from utils.evaluation.metrics import evaluate_pair
from utils.runtime import cores
from utils.runtime.errors import UserError


def average(net: None, a: np.ndarray, b: np.ndarray, text: np.ndarray) -> np.ndarray:
    """In place of the network: the mean of A and B."""
    return (a + b)[0, 0] / 2


@pytest.fixture
def dataset(tmp_path):
    """24 pairs of integer gray values, as data_process.py writes them."""
    rng = np.random.default_rng(0)
    text = np.ones(TEXT_SHAPE, np.float32)

    def sample(number: int) -> Sample:
        a, b = (cv2.GaussianBlur(rng.random((48, 64)), (0, 0), 2) for _ in "ab")
        a, b = (np.round((x - x.min()) / np.ptp(x) * 255)[None].astype(np.float32) / np.float32(255) for x in (a, b))
        return Sample(f"p.{number:02}", a, b, text)

    write_h5(tmp_path / "x.h5", map(sample, range(24)))
    with H5Dataset(tmp_path / "x.h5") as opened:
        yield opened


def test_each_pair_is_written_and_measured_in_order(monkeypatch, dataset, tmp_path, capsys):
    monkeypatch.setattr(stream, "fuse_unstretched", average)
    values, colorless = stream.fuse_dataset(None, dataset, tmp_path / "Gray", tmp_path / "RGB", {})
    assert colorless == 0
    assert not (tmp_path / "RGB").exists()
    assert len(values) == len(list((tmp_path / "Gray").iterdir())) == 24
    for sample, measured in zip(dataset, values, strict=True):
        a, b = (np.rint(image[0].astype(np.float64) * 255) for image in (sample.image_a, sample.image_b))
        fused = cv2.imread(str(tmp_path / "Gray" / f"{sample.name}.png"), cv2.IMREAD_UNCHANGED)
        assert (fused == stretch_to_uint8((sample.image_a + sample.image_b)[0] / 2)).all()
        expected = evaluate_pair(fused, a, b)
        assert {name: measured[name] for name in expected} == expected
    assert "the other 23: " in capsys.readouterr().out


def test_files_are_written_while_the_next_pair_is_computed(monkeypatch, dataset, tmp_path):
    """Each computation waits until the file of the pair before it exists."""
    calls = []

    def fuse(*arguments: np.ndarray) -> np.ndarray:
        before = tmp_path / f"p.{len(calls) - 1:02}.png"
        deadline = time.monotonic() + 10
        while calls and not before.exists():
            assert time.monotonic() < deadline, f"{before} is not written"
            time.sleep(0.001)
        calls.append(before)
        return average(*arguments)

    monkeypatch.setattr(stream, "fuse_unstretched", fuse)
    stream.fuse_dataset(None, dataset, tmp_path, tmp_path, {})
    assert len(calls) == 24


@pytest.mark.parametrize(
    ("failing", "error", "message"),
    [
        ("fuse_unstretched", UserError("is not finite"), "x.h5: p.04: is not finite"),
        ("write_png", UserError("disk full"), "disk full"),
        ("fuse_unstretched", KeyboardInterrupt(), ""),
    ],
)
def test_an_error_or_ctrl_c_ends_it_with_whole_files(monkeypatch, dataset, tmp_path, failing, error, message):
    """The fifth image cannot be computed or written, or Ctrl-C comes: one error; the files before are complete."""
    calls, original = [], {"fuse_unstretched": average, "write_png": stream.write_png}[failing]

    def fail(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 5:
            raise error
        return original(*arguments)

    monkeypatch.setattr(stream, "fuse_unstretched", average)
    monkeypatch.setattr(stream, failing, fail)
    monkeypatch.setenv(cores.VARIABLE, "1")
    out = tmp_path / "Gray"
    with pytest.raises(type(error), match=message):
        stream.fuse_dataset(None, dataset, out, out, {})
    written = sorted(out.iterdir())
    assert 0 < len(written) < 24
    assert all(cv2.imread(str(path)).shape == (48, 64, 3) for path in written)


def test_memory_does_not_grow_with_the_number_of_pairs(monkeypatch, dataset, tmp_path):
    """A pair and its fused image are released as soon as they are written and measured."""
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def fuse(net: None, a: np.ndarray, b: np.ndarray, text: np.ndarray) -> np.ndarray:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        fused = average(net, a, b, text)
        alive.extend(map(weakref.ref, (a, fused)))
        return fused

    monkeypatch.setattr(stream, "fuse_unstretched", fuse)
    monkeypatch.setenv(cores.VARIABLE, "1")
    stream.fuse_dataset(None, dataset, tmp_path, tmp_path, {})
    # one thread that writes, with two pairs, plus the pair just fused; two arrays of each pair are counted
    assert most <= 6
