"""Videos: frame count and rate are kept, nothing flickers, an interrupted video plays, and what is refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.evaluation.video import find_videos, stretch_slowly
from utils.runtime.errors import Stopped, UserError

SIZE = (48, 64)


def video(path: Path, count: int = 20, rate: float = 25, size: tuple[int, int] = SIZE, noise: int = 3) -> Path:
    """A still scene, a ramp from left to right, with noise."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, size[::-1])
    ramp = np.tile(np.linspace(40, 200, size[1]), (size[0], 1))
    for _ in range(count):
        noisy = ramp + rng.normal(0, noise, size) if noise else ramp
        writer.write(np.dstack([np.clip(noisy, 0, 255).astype(np.uint8)] * 3))
    writer.release()
    return path


def play(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a + b) / 2


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi"])
def test_count_rate_and_size_are_kept_and_a_static_scene_does_not_flicker(tmp_path, suffix):
    a, b = video(tmp_path / "a.avi"), video(tmp_path / "b.avi")
    (job,) = find_videos([a, b], tmp_path / f"out.{suffix}", "IVF")
    assert job.write(mean, color=True) == [tmp_path / f"out.{suffix}", tmp_path / f"out_RGB.{suffix}"]
    for path in (job.gray, job.rgb):
        frames, rate = play(path)
        assert (len(frames), rate, frames[0].shape) == (20, 25, (*SIZE, 3))
        assert np.ptp([frame.mean() for frame in frames]) < 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.avi", "b.avi", f"out.{suffix}", f"out_RGB.{suffix}"]


def test_the_stretch_follows_slowly():
    """A scene whose range doubles: after a step of 2 s at 10 frames per second, 1 - 1/e of the way to 2."""
    frames = [np.array([[0.0, 1.0]])] * 8 + [np.array([[0.0, 1.0, 2.0]])] * 20
    stretched = list(stretch_slowly(frames, rate=10))
    assert len(stretched) == 28
    assert stretched[0].tolist() == [[0, 255]]
    assert stretched[-1].tolist() == [[0, int(255 / (2 - np.exp(-1))), 255]]


def test_a_short_and_a_constant_film():
    assert [frame.tolist() for frame in stretch_slowly([np.full((1, 2), 3.0)] * 2, 25)] == [[[0, 0]]] * 2
    assert list(stretch_slowly([], 25)) == []


def test_ctrl_c_leaves_a_film_that_plays(tmp_path):
    a, b = video(tmp_path / "a.avi"), video(tmp_path / "b.avi")
    (job,) = find_videos([a, b], tmp_path / "out.mp4", "IVF")
    calls = iter(range(1, 100))

    def interrupted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if next(calls) == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return mean(x, y)

    with pytest.raises(Stopped):
        job.write(interrupted, color=False)
    assert len(play(job.gray)[0]) == 12


def test_what_is_refused(tmp_path):
    a, b = video(tmp_path / "a.avi", 4), video(tmp_path / "b.avi", 4)
    (tmp_path / "text.mp4").write_text("no video")
    for given, out, message in (
        ([a, tmp_path / "none.mp4"], None, "none.mp4: no such video"),
        ([a, tmp_path / "text.mp4"], None, "text.mp4: cannot be read as a video"),
        ([a, tmp_path / "b.png"], None, "a.avi: is a video; expected two videos"),
        ([a, b], tmp_path / "o.png", "o.png: expected the name of a video"),
        ([a, video(tmp_path / "c.avi", 5)], None, "a.avi: 4 frames, but 5 in"),
        ([a, video(tmp_path / "d.avi", 4, rate=30)], None, "25 frames per second, but 30 in"),
        ([a, video(tmp_path / "e.avi", 4, size=(32, 64))], None, "different sizes"),
    ):
        with pytest.raises(UserError, match=message):
            find_videos(given, out, "IVF")
    assert find_videos([Path("a.png"), Path("b.png")], None, "IVF") == []
