"""Fusing two videos frame by frame, without flicker."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from utils.data.color import colorize, luma
from utils.data.images import require_one_size
from utils.data.pairs import pair_of
from utils.evaluation.inference import Job
from utils.evaluation.stacks import Fuse
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path, require_readable
from utils.training.stop import StopRequest

# The codec of each container, of those that the FFmpeg in OpenCV's wheels can write.
CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".m4v": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
VIDEOS = (*CODECS, ".webm", ".mpg", ".mpeg", ".wmv")
# The range of the stretch starts as the mean of this many frames, and follows with this time constant.
FIRST_FRAMES = 8
SECONDS = 2.0


@dataclass(frozen=True)
class Video(Job):
    """Two videos of one scene and the output files."""

    def write(self, fuse: Fuse, color: bool) -> list[Path]:
        """Fuse the videos and write the gray video, and with `color` the colour video; returns the paths.

        The first Ctrl-C ends the videos after the current frame; they are complete files of the frames so far.

        Raises:
            UserError: a video cannot be read, or the two differ in size, rate or length; or a file cannot be written.
            Stopped: after Ctrl-C, when the files are written.
        """
        a, b = _Reader(self.pair.image_a), _Reader(self.pair.image_b)
        require_same_kind(a, b)
        stop, colors = StopRequest(), []

        def fused() -> Iterator[np.ndarray]:
            with stop.listening(), tqdm(total=a.count, desc=self.pair.name, unit="frame") as progress:
                for frames in zip(a.frames(), b.frames(), strict=False):
                    colors.append(frames)
                    yield fuse(*(luma(frame) / np.float32(255) for frame in frames))
                    progress.update()
                    if stop.due:
                        return

        paths = [self.gray, self.rgb] if color else [self.gray]
        with ExitStack() as files:
            writers = [files.enter_context(_writing(path, a)) for path in paths]
            for gray in stretch_slowly(fused(), a.rate):
                sources = colors.pop(0)
                writers[0](np.dstack([gray] * 3))
                if color:
                    writers[1](colorize(gray, *sources))
        stop.raise_if_due()
        return paths


def stretch_slowly(frames: Iterable[np.ndarray], rate: float) -> Iterator[np.ndarray]:
    """Stretch the frames (H, W) of a video from their minimum and maximum to 0..255, truncated to uint8.

    The minimum and maximum start as the means of the first `FIRST_FRAMES` frames. From then on they are exponential
    averages with a time constant of `SECONDS`, so noise does not make the video flicker. Values outside are clipped.

    Args:
        frames: the fused frames, in any range.
        rate: frames per second.
    """
    frames = iter(frames)
    first = list(islice(frames, FIRST_FRAMES))
    if not first:
        return
    low, high = (np.mean([pick(frame) for frame in first]) for pick in (np.min, np.max))
    share = 1 - math.exp(-1 / (SECONDS * rate))
    for frame in first:
        yield _stretch(frame, low, high)
    for frame in frames:
        low += share * (frame.min() - low)
        high += share * (frame.max() - high)
        yield _stretch(frame, low, high)


def _stretch(frame: np.ndarray, low: float, high: float) -> np.ndarray:
    if high == low:
        return np.zeros(frame.shape, np.uint8)
    return (np.clip((frame - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _name(path: Path) -> str:
    """The name of a video for OpenCV.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return str(path).encode().decode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: OpenCV opens a video only by a name in UTF-8; rename it, or its folder") from error


class _Reader:
    """A video: its size, frames per second, and number of frames as its header says."""

    def __init__(self, path: Path) -> None:
        require_readable(path, "no such video")
        # For a bad file, OpenCV and FFmpeg would print lines in addition to the error below.
        cv2.setLogLevel(0)
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        self.path = path
        self._capture = cv2.VideoCapture(_name(path))
        width, height, self.rate, count = (
            self._capture.get(key)
            for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)
        )
        self.shape, self.count = (int(height), int(width)), int(max(count, 0))
        if not self._capture.isOpened() or not (math.isfinite(self.rate) and self.rate > 0 and self.count):
            raise UserError(f"{path}: cannot be read as a video; convert it, for instance with FFmpeg, to .mp4 or .avi")

    def frames(self) -> Iterator[np.ndarray]:
        """The frames, uint8 (H, W, 3), BGR."""
        while (read := self._capture.read())[0]:
            yield read[1]


def require_same_kind(a: _Reader, b: _Reader) -> None:
    """Raise `UserError` if two videos differ in size, number of frames or rate."""
    require_one_size(np.empty(a.shape), np.empty(b.shape), a.path, b.path)
    for what, values in (("frames", (a.count, b.count)), ("frames per second", (a.rate, b.rate))):
        if abs(values[0] - values[1]) > 0.01:
            raise UserError(f"{a.path}: {values[0]:g} {what}, but {values[1]:g} in {b.path}; cut or convert one")


@contextmanager
def _writing(path: Path, like: _Reader) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends a frame, uint8 (H, W, 3), to a video at `path`, in the size and rate of `like`."""
    height, width = like.shape
    with atomic_path(path) as temporary:
        codec = cv2.VideoWriter_fourcc(*CODECS[path.suffix.lower()])
        writer = cv2.VideoWriter(_name(temporary), codec, like.rate, (width, height))
        if not writer.isOpened():
            raise UserError(f"{path}: this build of OpenCV cannot write it; choose another of {', '.join(CODECS)}")
        written = 0

        def write(frame: np.ndarray) -> None:
            nonlocal written
            writer.write(frame)
            written += 1

        try:
            yield write
        finally:
            writer.release()
        # The writer reports no errors, such as a full disk.
        with suppress(UserError):
            if _Reader(temporary).count == written:
                return
        raise UserError(f"{path}: {written} frames could not be written completely; is there space left?")


def find_videos(given: list[Path], out: Path | None, task: str, follow_links: bool = False) -> list[Video]:
    """The two videos that the arguments of fuse.py name, as a list of one; empty if they name images or folders.

    Args:
        given: the arguments.
        out: the output (default: <name of A>_fused.mp4).
        task: a key of `TASKS`.
        follow_links: a text or feature may be a link that leads out of its folder.

    Raises:
        UserError: not exactly two videos, or `out` is no video that can be written.
    """
    videos = [path for path in given if path.suffix.lower() in VIDEOS]
    if not videos:
        return []
    if len(given) != 2 or len(videos) != 2:
        raise UserError(f"{videos[0]}: is a video; expected two videos")
    out = out or Path(f"{given[0].stem}_fused.mp4")
    if out.suffix.lower() not in CODECS or out.is_dir():
        raise UserError(f"{out}: expected the name of a video: {', '.join(CODECS)}")
    rgb = out.with_name(f"{out.stem}_RGB{out.suffix}")
    require_same_kind(*map(_Reader, given))
    home = given[0].resolve().parent
    place = Path("VLFDataset"), task, home.name
    pair = pair_of(given[0].stem, *given, *place, (home, home.parent), follow_links)
    return [Video(pair, out, rgb)]
