"""data_process.py against the official script's steps, written out here, and which input it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from utils.data.h5 import H5Dataset
from utils.data.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"1.png": (20, 31), "2.jpg": (33, 18), "3.bmp": (16, 16), "4.tif": (12, 40)}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "data_process.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def make_dataset(root: Path, task: str, dataset: str = "Set", mode: str = "train") -> None:
    rng = np.random.default_rng(0)
    base = root / "Image" / task / dataset
    features = root / "TextFeature" / task / dataset
    features.mkdir(parents=True)
    for folder in TASKS[task].folders:
        (base / folder).mkdir(parents=True)
        for name, shape in SHAPES.items():
            cv2.imwrite(str(base / folder / name), rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    for name in SHAPES:
        np.save(features / f"{Path(name).stem}.npy", rng.standard_normal((1, 149, 768)).astype(np.float32))
    (base / f"{mode}.txt").write_text("\n".join(SHAPES) + "\n")


def official_image(path: Path, resize: bool) -> np.ndarray:
    image = cv2.imread(str(path)).astype("float32")
    image = np.round(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    if resize:
        height, width = image.shape
        image = cv2.resize(image, (384, 288)) if height < width else np.transpose(cv2.resize(image, (288, 384)))
    return image[None] / 255.0


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("mode", ["train", "test"])
def test_arrays_equal_the_official_ones_bit_for_bit(tmp_path, task, mode):
    make_dataset(tmp_path / "VLF", task, mode=mode)
    done = run("--task", task, "--dataset", "Set", "--mode", mode, "--root", tmp_path / "VLF", "--out", tmp_path / "h5")
    assert done.returncode == 0, done.stderr
    assert "4 pairs" in done.stdout
    resize = mode == "train" and task != "MIF"
    with h5py.File(tmp_path / "h5" / f"Set_{mode}.h5") as file:
        for group, folder in zip(("imageA", "imageB"), TASKS[task].folders, strict=True):
            for name in SHAPES:
                expected = official_image(tmp_path / "VLF" / "Image" / task / "Set" / folder / name, resize)
                stored = file[group][Path(name).stem]
                assert stored.dtype == np.float32
                np.testing.assert_array_equal(stored[()], expected)
        feature = np.load(tmp_path / "VLF" / "TextFeature" / task / "Set" / "2.npy")
        np.testing.assert_array_equal(file["text"]["2"][()], feature)


def test_real_pairs_equal_the_official_arrays(shared, golden, tmp_path):
    """Two RoadScene pairs, landscape, from JPEG files; the first is also the first golden input."""
    names = ["FLIR_00006", "FLIR_00018"]
    base, features = tmp_path / "Image" / "IVF" / "RoadScene", tmp_path / "TextFeature" / "IVF" / "RoadScene"
    base.mkdir(parents=True)
    features.parent.mkdir(parents=True)
    sources = {
        "IR": shared / "data" / "RoadScene" / "cropinfrared",
        "VI": shared / "data" / "RoadScene" / "crop_LR_visible",
    }
    for folder, source in sources.items():
        (base / folder).symlink_to(source)
    features.symlink_to(shared / "golden" / "features" / "RoadScene")
    (base / "train.txt").write_text("\n".join(f"{name}.png" for name in names))
    assert run("--dataset", "RoadScene", "--root", tmp_path, "--out", tmp_path).returncode == 0
    with h5py.File(tmp_path / "RoadScene_train.h5") as file:
        assert list(file["imageA"]) == names
        for group, source in zip(("imageA", "imageB"), sources.values(), strict=True):
            expected = official_image(source / f"{names[1]}.jpg", resize=True)
            np.testing.assert_array_equal(file[group][names[1]][()], expected)
            np.testing.assert_array_equal(file[group][names[0]][()], golden[f"train_{group[-1]}"][0])


def test_original_size_on_request(tmp_path):
    make_dataset(tmp_path, "IVF")
    assert run("--dataset", "Set", "--size", "original", "--root", tmp_path, "--out", tmp_path).returncode == 0
    with h5py.File(tmp_path / "Set_train.h5") as file:
        assert file["imageA"]["2"].shape == (1, 33, 18)


def test_all_kinds_of_image_files_are_read_as_officially(tmp_path):
    """16 bits, alpha and gray files, under names with dots, spaces and Chinese characters."""
    rng = np.random.default_rng(0)
    files = {
        "gray.png": rng.integers(0, 256, (9, 11), dtype=np.uint8),
        "gray 16.png": rng.integers(0, 65536, (9, 11), dtype=np.uint16),
        "colour.16.tif": rng.integers(0, 65536, (9, 11, 3), dtype=np.uint16),
        "alpha.png": rng.integers(0, 256, (9, 11, 4), dtype=np.uint8),
        "alpha.16.png": rng.integers(0, 65536, (9, 11, 4), dtype=np.uint16),
        "红外 1.5.jpg": rng.integers(0, 256, (9, 11), dtype=np.uint8),
    }
    for folder in ("ir", "vi"):
        (tmp_path / "Mine" / folder).mkdir(parents=True)
        for name, image in files.items():
            cv2.imwrite(str(tmp_path / "Mine" / folder / name), image)
    features = tmp_path / "Mine" / "TextFeature"
    features.mkdir()
    for name in files:
        np.save(features / f"{Path(name).stem}.npy", np.zeros((1, 149, 768), np.float32))
    done = run("--raw", tmp_path / "Mine", "--mode", "test", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "Mine_test.h5") as file:
        for name in files:
            expected = official_image(tmp_path / "Mine" / "ir" / name, resize=False)
            np.testing.assert_array_equal(file["imageA"][Path(name).stem][()], expected)
        # of 16 bits, the upper 8 are used
        expected = np.floor(files["gray 16.png"] / 256) / np.float32(255)
        np.testing.assert_allclose(file["imageA"]["gray 16"][0], expected, atol=1.01 / 255)


@pytest.mark.parametrize("given", ["raw", "folders"])
def test_a_downloaded_data_set(tmp_path, given):
    """The task follows from the layout, which is printed; medical pairs are not resized for training."""
    folder = tmp_path / "MRI_CT"
    rng = np.random.default_rng(0)
    for side in ("MRI", "CT"):
        (folder / side).mkdir(parents=True)
        for name in ("3.png", "4.png"):
            cv2.imwrite(str(folder / side / name), rng.integers(0, 256, (16, 20), dtype=np.uint8))
    (folder / "TextFeature").mkdir()
    for name in ("3", "4"):
        np.save(folder / "TextFeature" / f"{name}.npy", np.zeros((1, 149, 768), np.float32))
    (tmp_path / "some.txt").write_text("4.png\n")
    sources = {
        "raw": ("--raw", folder),
        "folders": ("--dir_a", folder / "MRI", "--dir_b", folder / "CT", "--task", "MIF", "--dataset", "Harvard"),
    }
    options = (*sources[given], "--list", tmp_path / "some.txt", "--out", tmp_path, "--root", tmp_path / "VLF")
    done = run(*options)
    assert done.returncode == 0, done.stderr
    assert "Harvard, medical" in done.stdout
    assert "texts: 0 paragraphs, 1 ready features" in done.stdout
    with h5py.File(tmp_path / "Harvard_train.h5") as file:
        assert list(file["imageA"]) == ["4"]
        for group, side in (("imageA", "MRI"), ("imageB", "CT")):
            expected = official_image(folder / side / "4.png", resize=False)
            np.testing.assert_array_equal(file[group]["4"][()], expected)
    with H5Dataset(tmp_path / "Harvard_train.h5") as dataset:
        assert dataset.sources("4") == (folder / "MRI" / "4.png", folder / "CT" / "4.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dir_a", "x"), "images: either --raw, or both --dir_a and --dir_b, or neither"),
        (("--raw", "x", "--dir_a", "x", "--dir_b", "y"), "images: either --raw, or both --dir_a and --dir_b"),
        (("--list", "x"), "--list: use it with --raw, or with --dir_a and --dir_b"),
        (("--raw", "gone"), "gone: no such folder"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, options, message):
    done = run(*options, "--out", tmp_path)
    assert done.returncode == 2
    assert message in only_line(done.stderr)


def only_line(stderr: str) -> str:
    """The single line that was printed, apart from the progress bar."""
    (line,) = (s for s in stderr.replace("\r", "\n").splitlines() if s.strip() and not s.startswith("Set train:"))
    return line


def drop(path: str):
    return lambda root: (root / path).unlink()


def put(path: str, content: bytes):
    return lambda root: (root / path).write_bytes(content)


def other_size(root: Path) -> None:
    cv2.imwrite(str(root / "Image/IVF/Set/VI/2.jpg"), np.zeros((33, 19, 3), np.uint8))


def other_feature(root: Path) -> None:
    np.save(root / "TextFeature/IVF/Set/3.npy", np.zeros((1, 77, 768), np.float32))


def infinite_feature(root: Path) -> None:
    np.save(root / "TextFeature/IVF/Set/3.npy", np.full((1, 149, 768), np.inf, np.float32))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (drop("Image/IVF/Set/train.txt"), "train.txt: no such list"),
        (put("Image/IVF/Set/train.txt", b""), "train.txt: the list is empty"),
        (drop("Image/IVF/Set/IR/1.png"), "IR/1.png: no such image"),
        (put("Image/IVF/Set/VI/4.tif", b"II*\0broken"), "VI/4.tif: cannot be decoded"),
        (other_size, "IR/2.jpg: a pair of different sizes, 33x18 and 33x19"),
        (drop("TextFeature/IVF/Set/3.npy"), "3.npy: no such text feature"),
        (other_feature, "3.npy: holds float32 of shape (1, 77, 768); expected a float32 .npy of shape (1, 149, 768)"),
        (infinite_feature, "3.npy: holds values that are not finite"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, harm, named):
    make_dataset(tmp_path / "VLF", "IVF")
    harm(tmp_path / "VLF")
    done = run("--dataset", "Set", "--root", tmp_path / "VLF", "--out", tmp_path / "h5")
    assert done.returncode == 2
    error = only_line(done.stderr)
    assert error.startswith("error: ")
    assert named in error
    assert not (tmp_path / "h5").exists() or list((tmp_path / "h5").iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    make_dataset(tmp_path / "VLF", "IVF")
    limit = ["bash", "-c", 'ulimit -f 600; exec "$@"', "-"]  # 600 KiB: the first pair does not fit
    script = [sys.executable, ROOT / "data_process.py", "--dataset", "Set", "--root", tmp_path / "VLF"]
    done = subprocess.run([*limit, *script, "--out", tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Set_train.h5: cannot be written" in only_line(done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["VLF"]


def test_help_is_a_manual():
    done = run("--help")
    assert done.returncode == 0
    assert "VLFDataset" in done.stdout
    assert "infrared-visible" in done.stdout


def test_bad_pairs_are_left_out_on_request(tmp_path):
    """Of four pairs one is truncated, one has a feature with NaN and one is constant."""
    make_dataset(tmp_path, "IVF")
    base, features = tmp_path / "Image" / "IVF" / "Set", tmp_path / "TextFeature" / "IVF" / "Set"
    (base / "IR" / "1.png").write_bytes((base / "IR" / "1.png").read_bytes()[:100])
    np.save(features / "2.npy", np.full((1, 149, 768), np.nan, np.float32))
    cv2.imwrite(str(base / "VI" / "3.bmp"), np.full((16, 16), 7, np.uint8))
    options = ("--dataset", "Set", "--root", tmp_path, "--out", tmp_path)
    done = run(*options)
    assert done.returncode == 2
    assert "1.png: cannot be decoded" in done.stderr
    done = run(*options, "--skip_bad")
    assert done.returncode == 0, done.stderr
    assert "skipped: 3 bad pairs, named above" in done.stdout
    for reason in ("1.png: cannot be decoded", "2.npy: holds values that are not finite", "3: image B is constant"):
        assert reason in done.stderr
    with h5py.File(tmp_path / "Set_train.h5") as file:
        assert list(file["imageA"]) == ["4"]
    (base / "train.txt").write_text("1.png")
    done = run(*options, "--skip_bad")
    assert done.returncode == 2
    assert "Set_train.h5: not written, because no good pair is left" in done.stderr


def test_each_kind_of_bad_pair_is_skipped_and_listed(tmp_path):
    """An image that the list names but that does not exist, a missing feature, and a pair of two sizes."""
    make_dataset(tmp_path, "IVF")
    (tmp_path / "Image/IVF/Set/VI/1.png").unlink()
    (tmp_path / "TextFeature/IVF/Set/2.npy").unlink()
    cv2.imwrite(str(tmp_path / "Image/IVF/Set/VI/4.tif"), np.full((24, 80), [[*range(80)]], np.uint8))
    options = ("--dataset", "Set", "--root", tmp_path, "--out", tmp_path, "--skip_bad")
    done = run(*options)
    assert done.returncode == 0, done.stderr
    listed = tmp_path / "Set_train_skipped.txt"
    assert f"skipped: 3 bad pairs, named above, listed in {listed}" in done.stdout
    reasons = dict(line.split("\t") for line in listed.read_text().splitlines())
    assert {name: reason.partition(": ")[2][:21] for name, reason in reasons.items()} == {
        "1": "no such image, also w",
        "2": "no such text feature;",
        "4": "a pair of different s",
    }
    with H5Dataset(tmp_path / "Set_train.h5") as dataset:
        assert dataset.names == ["3"]
    # The smaller image of 4 can be resized; the list is written again.
    done = run(*options, "--resize", "--size", "original")
    assert done.returncode == 0, done.stderr
    assert [line[:2] for line in listed.read_text().splitlines()] == ["1\t", "2\t"]
    with H5Dataset(tmp_path / "Set_train.h5") as dataset:
        assert dataset.names == ["3", "4"]
        assert dataset[1].image_a.shape == dataset[1].image_b.shape == (1, 24, 80)


def test_a_text_that_cannot_be_read_is_skipped(tmp_path):
    """Texts are checked before an encoder is asked for, so no encoder is needed to see that none is left."""
    make_dataset(tmp_path, "IVF")
    for number, content in enumerate((b"\xff", b" ", b"\xe9t\xe9"), 1):
        path = tmp_path / f"Text/IVF/Set/{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    done = run("--dataset", "Set", "--root", tmp_path, "--out", tmp_path, "--text_encoder", "bert", "--skip_bad")
    assert done.returncode == 2
    for reason in ("1.txt: is not UTF-8", "2.txt: is empty", "3.txt: is not UTF-8", "4.txt: no such text"):
        assert reason in done.stderr
    assert "error: no good pair is left of 4" in done.stderr


def test_temperatures_are_stretched(tmp_path):
    """Kelvin * 100 in A, 0.1 degrees with a sign in B; one range for each side over both pairs."""
    for name, kelvin, degrees in (("1", (29000, 30000), (-100, 50)), ("2", (30000, 31000), (0, 100))):
        for folder, values, dtype in (("a", kelvin, np.uint16), ("b", degrees, np.int16)):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{name}.tif"), np.array([values], dtype))
        (tmp_path / "TextFeature").mkdir(exist_ok=True)
        np.save(tmp_path / "TextFeature" / f"{name}.npy", np.ones((1, 149, 768), np.float32))
    folders = ("--dir_a", tmp_path / "a", "--dir_b", tmp_path / "b", "--dataset", "T", "--mode", "test")
    done = run(*folders, "--out", tmp_path)
    assert done.returncode == 2
    assert "b/1.tif: holds int16 (values with a sign), which do not fit 8 bits; --stretch" in done.stderr
    done = run(*folders, "--out", tmp_path, "--stretch")
    assert done.returncode == 0, done.stderr
    assert "image A: the values 29000..31000 of 2 images become 0..255" in done.stdout
    assert "image B: the values -100..100 of 2 images become 0..255" in done.stdout
    with H5Dataset(tmp_path / "T_test.h5") as dataset:
        found = [np.round(image * 255).ravel().tolist() for s in dataset for image in (s.image_a, s.image_b)]
    assert found == [[0, 128], [0, 191], [128, 255], [128, 255]]  # 127.5 to even, 0.75 * 255 = 191.25
    done = run(*folders, "--out", tmp_path, "--percentiles", "0", "100")
    assert done.returncode == 0, done.stderr
    with H5Dataset(tmp_path / "T_test.h5") as dataset:
        assert all(np.array_equal(image, [[[0, 1]]]) for s in dataset for image in (s.image_a, s.image_b))
    assert "lower one first" in run(*folders, "--percentiles", "9", "1").stderr


def test_the_h5_file_may_not_replace_an_input(tmp_path):
    make_dataset(tmp_path, "IVF")
    image = tmp_path / "Image/IVF/Set/IR/1.png"
    before = image.read_bytes()
    for link in (Path.symlink_to, Path.hardlink_to):
        link(tmp_path / "Set_train.h5", image)
        done = run("--dataset", "Set", "--root", tmp_path, "--out", tmp_path)
        assert done.returncode == 2
        assert f"Set_train.h5: would overwrite an input (the same file as {image})" in only_line(done.stderr)
        assert (tmp_path / "Set_train.h5").samefile(image)
        (tmp_path / "Set_train.h5").unlink()
    assert image.read_bytes() == before


def test_pairs_are_registered_and_those_that_do_not_fit_are_skipped(tmp_path):
    """B of the first pair shows the scene 5 pixels to the right; the second pair shows two scenes.

    5 of 128 columns are lost, and no row; 1.5 pixels of error are allowed on each side.
    """
    rng = np.random.default_rng(0)
    scenes = [cv2.GaussianBlur(rng.integers(0, 256, (96, 128)).astype(np.uint8), (0, 0), 3) for _ in range(3)]
    scenes = [cv2.normalize(scene, None, 0, 255, cv2.NORM_MINMAX) for scene in scenes]
    for name, a, b in (("1", scenes[0], np.roll(scenes[0], 5, 1)), ("2", *scenes[1:])):
        for folder, image in (("a", a), ("b", b), ("TextFeature", None)):
            (tmp_path / folder).mkdir(exist_ok=True)
            if image is not None:
                cv2.imwrite(str(tmp_path / folder / f"{name}.png"), image)
        np.save(tmp_path / "TextFeature" / f"{name}.npy", np.ones((1, 149, 768), np.float32))
    options = ("--dir_a", tmp_path / "a", "--dir_b", tmp_path / "b", "--dataset", "R", "--mode", "test")
    done = run(*options, "--out", tmp_path, "--register")
    assert done.returncode == 2
    assert "a/2.png: cannot be registered with" in done.stderr
    done = run(*options, "--out", tmp_path, "--register", "--skip_bad")
    assert done.returncode == 0, done.stderr
    assert "registered: 1 of 1 pairs moved by up to" in done.stdout
    with H5Dataset(tmp_path / "R_test.h5") as dataset:
        assert dataset.names == ["1"]
        (height, width), shape_b = dataset[0].image_a.shape[1:], dataset[0].image_b.shape[1:]
        assert (height, width) == shape_b
        assert 93 <= height <= 96 and 120 <= width <= 126
    assert (tmp_path / "R_test_skipped.txt").read_text().startswith("2\t")


def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path):
    """The work would end at a missing feature here."""
    make_dataset(tmp_path, "IVF")
    (tmp_path / "TextFeature/IVF/Set/3.npy").unlink()
    (tmp_path / "h5/Set_train.h5").mkdir(parents=True)
    (tmp_path / "file").write_text("in the way")
    for out, problem in (("h5", "cannot be written (Is a directory)"), ("file", "cannot be written")):
        done = run("--dataset", "Set", "--root", tmp_path, "--out", tmp_path / out)
        assert done.returncode == 2
        assert f"{out}/Set_train.h5: {problem}" in only_line(done.stderr)
