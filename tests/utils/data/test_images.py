"""Images: read and resized as the official code does it, bit for bit."""

from __future__ import annotations

import resource

import cv2
import numpy as np
import pytest

from utils.data.images import read_gray, side_by_side, stretch_to_uint8, to_training_size, write_png
from utils.runtime.errors import UserError


def color(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
@pytest.mark.parametrize("name", ["plain", "a.b c", "图像"])
def test_gray_equals_the_official_steps(tmp_path, suffix, name):
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(cv2.imencode(f".{suffix}", color(20, 31))[1].tobytes())
    decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    expected = np.round(cv2.cvtColor(decoded.astype("float32"), cv2.COLOR_BGR2GRAY))
    gray = read_gray(path)
    assert gray.dtype == np.float32
    np.testing.assert_array_equal(gray, expected)


def test_gray_of_known_colors(tmp_path):
    """0.299 R + 0.587 G + 0.114 B, rounded: red 76.245, green 149.685, blue 29.07."""
    bgr = np.array([[[0, 0, 255], [0, 255, 0], [255, 0, 0], [255, 255, 255]]], np.uint8)
    write_png(tmp_path / "x.png", bgr)
    assert read_gray(tmp_path / "x.png").tolist() == [[76, 150, 29, 255]]


def test_missing_and_undecodable_images_are_named(tmp_path):
    with pytest.raises(UserError, match=r"x.png: no such image"):
        read_gray(tmp_path / "x.png")
    for name in ("x" * 300, "x\0.png"):  # names that no file can have; an H5 file may claim them
        with pytest.raises(UserError, match=": no such image"):
            read_gray(tmp_path / name)
    for content in (b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(UserError, match=r"x.png: cannot be decoded"):
            read_gray(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_an_image_that_was_cut_short_is_refused_and_opencv_logs_nothing(tmp_path, suffix, capfd):
    content = cv2.imencode(f".{suffix}", color(60, 80))[1].tobytes()
    (tmp_path / f"x.{suffix}").write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(UserError, match=rf"x.{suffix}: cannot be decoded"):
        read_gray(tmp_path / f"x.{suffix}")
    # libpng may still print one line, which no setting reaches.
    assert [line for line in capfd.readouterr().err.splitlines() if not line.startswith("libpng")] == []


def test_training_size():
    """Landscape to 288x384; portrait and square to 384x288, then transposed."""
    wide = np.random.default_rng(0).random((30, 50), dtype=np.float32)
    np.testing.assert_array_equal(to_training_size(wide), cv2.resize(wide, (384, 288)))
    for other in (wide.T.copy(), wide[:, :30].copy()):
        np.testing.assert_array_equal(to_training_size(other), cv2.resize(other, (288, 384)).T)
        assert to_training_size(other).shape == (288, 384)
        assert to_training_size(other).flags["C_CONTIGUOUS"]


def test_stretch_truncates():
    """(x - 0.25) / 0.5 * 255: 0, 127.5 and 255, and the half is cut."""
    assert stretch_to_uint8(np.array([[0.25, 0.5, 0.75]])).tolist() == [[0, 127, 255]]
    assert stretch_to_uint8(np.full((2, 2), 0.3)).tolist() == [[0, 0], [0, 0]]


def test_png_round_trip_and_unwritable_folder(tmp_path):
    image = color(5, 7)[..., 0]
    write_png(tmp_path / "deep" / "x.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "deep" / "x.png"), cv2.IMREAD_UNCHANGED), image)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_png(tmp_path / "file" / "x.png", image)
    assert side_by_side(image, image[:, :3]).shape == (5, 10)


@pytest.mark.parametrize("claim", ["chunk", "end"])
def test_a_png_that_claims_gigabytes_is_not_decoded(tmp_path, claim):
    """Found by fuzzing: OpenCV makes room for a chunk of 3.6 GB before it looks whether there is one."""
    data = bytearray(cv2.imencode(".png", np.zeros((20, 24, 3), np.uint8))[1].tobytes())
    at = 33  # after the header chunk
    length = int.from_bytes(data[at : at + 4], "big")
    if claim == "chunk":
        data[at : at + 4] = b"\xd7\x6a\xd4\x00"
    else:
        data[at + 4 : at + 8] = b"IEND"  # an end that holds something; what follows is read on
        data[at + 12 + length : at + 16 + length] = b"\xd7\x6a\xd4\x00"
    (tmp_path / "x.png").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"x.png: cannot be decoded"):
        read_gray(tmp_path / "x.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
