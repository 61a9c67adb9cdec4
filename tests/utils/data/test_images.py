"""Images: read and resized as the official code does it, bit for bit."""

from __future__ import annotations

import resource
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.data.images import (
    DTYPES,
    IMAGE_SUFFIXES,
    ImageReader,
    can_read,
    read_bgr,
    read_gray,
    side_by_side,
    stretch_to_uint8,
    to_training_size,
    write_png,
)
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
    # Names that no file can have; an H5 file may claim them.
    for name, problem in (("x" * 300, "cannot be read .File name too long"), ("x\0.png", "no such image")):
        with pytest.raises(UserError, match=f": {problem}"):
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


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


# A row from the lowest to the highest value of a scene; under --stretch they become 0, 51 (a fifth), 255.
SCENES = {
    "uint8": [10, 60, 250],  # stays as it is
    "uint16": [29000, 29500, 31500],
    "int8": [-100, -60, 100],
    "int16": [-1000, -500, 1500],
    "int32": [-100000, -50000, 150000],
    "float32": [-1.5, -1.0, 1.0],
    "float64": [-1.5, -1.0, 1.0],
    "float16": [-1.5, -1.0, 1.0],
}


def test_every_type_that_opencv_can_return_is_in_the_table():
    """OpenCV 4 numbers the types CV_8U = 0 to CV_16F = 7."""
    assert [*range(8)] == [cv2.CV_8U, cv2.CV_8S, cv2.CV_16U, cv2.CV_16S, cv2.CV_32S, cv2.CV_32F, cv2.CV_64F, cv2.CV_16F]
    assert set(DTYPES) == set(SCENES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_type_is_read_officially_or_stretched(tmp_path, monkeypatch, dtype):
    values = np.array([SCENES[dtype]] * 3, dtype)
    if dtype == "float16":  # no format holds it; a build of OpenCV may still return it
        save(tmp_path / "x.tif", values.astype(np.float32))
        monkeypatch.setattr(cv2, "imdecode", lambda data, flags: values)
    else:
        save(tmp_path / "x.tif", values)
    path = tmp_path / "x.tif"
    stretched = ImageReader(stretch=True).gray(path)
    assert stretched.dtype == np.float32
    assert stretched.tolist() == [[10, 60, 250] if dtype == "uint8" else [0, 51, 255]] * 3
    if DTYPES[dtype]:
        shift = {"uint8": 1, "uint16": 256}[dtype]
        assert read_gray(path).tolist() == (values // shift).tolist()
    else:
        with pytest.raises(UserError, match=rf"x.tif: holds {dtype} .*--stretch"):
            read_gray(path)
    # For --color, which needs the chroma only: a gray image has none.
    bgr = read_bgr(path)
    assert bgr.dtype == np.uint8
    assert bgr.shape == (3, 3, 3)
    assert (bgr == bgr[..., :1]).all()


def test_a_type_that_is_not_in_the_table_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "x.tif", np.zeros((3, 3), np.uint8))
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: np.zeros((3, 3), np.int64))
    with pytest.raises(UserError, match="x.tif: holds int64 values, which are not supported"):
        ImageReader(stretch=True).gray(path)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_few_gray_levels_of_16_bit_images_are_reported(tmp_path, suffix):
    """25 K in steps of 0.01 K from 20 degrees: 2500 values from 29315 = 114 * 256 + 131 to 31814 = 124 * 256 + 70."""
    scene = np.resize(np.arange(29315, 29315 + 2500, dtype=np.uint16), (50, 64))
    path = save(tmp_path / f"thermal.{suffix}", scene)
    reader = ImageReader()
    assert sorted(np.unique(reader.gray(path))) == [*range(114, 125)]
    assert reader.report() == [
        f"of 1 16-bit images, the upper 8 bits keep few gray levels: {path} (11 gray levels of 2500 values); "
        "--stretch keeps the detail"
    ]
    stretching = ImageReader(stretch=True)
    assert len(np.unique(stretching.gray(path))) == 256
    assert stretching.report() == []
    # All 16 bits in use, or the few levels that the file has: nothing is lost.
    for full in (np.resize(np.arange(0, 1 << 16, 16, dtype=np.uint16), (64, 64)), np.full((64, 64), 512, np.uint16)):
        reader = ImageReader()
        reader.gray(save(tmp_path / f"full.{suffix}", full))
        assert reader.report() == []


def test_8_bit_values_in_a_16_bit_file(tmp_path):
    """The official reading is black, and says so; stretched from 20..220, the value 70 is a quarter."""
    path = save(tmp_path / "x.png", np.array([[20, 70, 220]], np.uint16))
    reader = ImageReader()
    assert reader.gray(path).tolist() == [[0, 0, 0]]
    assert "(1 gray levels of 3 values)" in reader.report()[0]
    assert ImageReader(stretch=True).gray(path).tolist() == [[0, 64, 255]]


def test_one_range_for_a_folder_or_percentiles_of_each_file(tmp_path):
    cold, warm = (
        save(tmp_path / name, np.array([values], np.int16))
        for name, values in (("cold.tif", [-100, 0, 100]), ("warm.tif", [0, 100, 300]))
    )
    gray = save(tmp_path / "8 bit.png", np.array([[5, 6, 7]], np.uint8))
    reader = ImageReader(stretch=True)
    line = reader.measure([cold, warm, gray, tmp_path / "gone.tif"], "image A")
    assert line == "image A: the values -100..300 of 2 images become 0..255"
    assert reader.gray(cold).tolist() == [[0, 64, 128]]  # 63.75, 127.5 (to even)
    assert reader.gray(warm).tolist() == [[64, 128, 255]]
    assert reader.gray(gray).tolist() == [[5, 6, 7]]
    # 25 % and 75 % of -100, 0, 100 are -50 and 50; what lies outside is clipped.
    reader = ImageReader(percentiles=(25, 75))
    assert reader.measure([cold, warm], "image A") is None
    assert reader.gray(cold).tolist() == [[0, 128, 255]]


def test_colours_of_16_bits_are_stretched_in_one_range(tmp_path):
    """Gray of the two pixels: 0.114 * 1000 = 114 and 0.299 * 1000 = 299; blue and red exceed the range of the gray."""
    path = save(tmp_path / "x.png", np.array([[[1000, 0, 0], [0, 0, 1000]]], np.uint16))
    reader = ImageReader(stretch=True)
    assert reader.gray(path).tolist() == [[0, 255]]
    assert reader.bgr(path).tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_values_that_are_not_finite_are_not_stretched(tmp_path):
    path = save(tmp_path / "x.tif", np.array([[0, np.nan, 1]], np.float32))
    with pytest.raises(UserError, match="x.tif: holds values that are not finite"):
        ImageReader(stretch=True).gray(path)


@pytest.mark.parametrize("suffix", ["tif", "webp", "png"])
def test_of_several_pages_the_first_is_read_and_a_line_says_so(tmp_path, suffix):
    from PIL import Image

    first, second = Image.new("RGB", (40, 30), "white"), Image.new("RGB", (40, 30), "black")
    path = tmp_path / f"图.{suffix}"
    first.save(path, save_all=True, append_images=[second, first])
    reader = ImageReader()
    assert reader.gray(path).min() > 250
    assert reader.report() == [f"only the first page of 1 files was read: {path} (3 pages)"]
    first.save(path)
    reader = ImageReader()
    reader.gray(path)
    assert reader.report() == []


@pytest.mark.parametrize("suffix", [suffix for suffix in IMAGE_SUFFIXES if can_read(f"x{suffix}")])
def test_every_suffix_that_opencv_reads(tmp_path, suffix):
    """Written by OpenCV and read officially, or stretched where the format holds fractions."""
    image = color(40, 50)
    gray = suffix in (".pbm", ".pgm")
    path = save(tmp_path / f"x{suffix}", image[..., 0] if gray else image)
    kept = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    reader = ImageReader(stretch=kept.dtype != np.uint8)
    assert reader.gray(path).shape == (40, 50)
    assert reader.bgr(path).shape == (40, 50, 3)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be decoded"):
        reader.gray(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.gif", b"GIF89a" + bytes(60), "it is a GIF image: save"),
        ("x.png", b"GIF89a" + bytes(60), "it is a GIF image: save"),
        ("x.jpg", bytes(4) + b"ftypheic" + bytes(60), "HEIC"),
        ("x.png", b"<!DOCTYPE html>", "HTML"),
        ("x.png", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer: run git lfs pull"),
        ("x.dcm", bytes(128) + b"DICM", "DICOM"),
        ("x.heic", b"what is this", "does not read .heic: save the image as PNG"),
        ("x.png", b"what is this", "damaged, or of a kind that OpenCV does not read"),
    ],
)
def test_what_cannot_be_decoded_is_called_by_its_kind(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    if name.endswith("gif") and can_read(name):
        pytest.skip("this OpenCV reads GIF")
    with pytest.raises(UserError, match=f"{name}: cannot be decoded; .*{said}"):
        read_gray(tmp_path / name)
