"""The simulations of tools/make_sample.py on tiny synthetic images, and the data set Sample as it ships."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from net.shapes import TEXT_SHAPE
from tools import make_sample
from tools.make_sample import DATASET, SAMPLE, Exposure, Focus, Infrared
from utils.data.tasks import TASKS
from utils.runtime.cli import run_command

ROOT = Path(__file__).resolve().parents[2] / "VLFDataset"
PAIRS = [pytest.param(pair.task, pair, id=f"{pair.task}-{pair.name}") for pair in SAMPLE]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def checkerboard(height: int, width: int) -> np.ndarray:
    """Squares of 2x2 pixels, 0.2 and 0.8, (h, w, 3)."""
    rows, columns = np.mgrid[:height, :width]
    gray = np.where((rows // 2 + columns // 2) % 2, 0.8, 0.2)
    return np.repeat(gray[..., None], 3, axis=2)


# --- simulations


def test_srgb_curve_and_its_inverse():
    # IEC 61966-2-1: 0.04045 / 12.92 = 0.0031308 joins the two parts; middle gray 0.5 is ((0.5 + 0.055) / 1.055)^2.4.
    values = np.array([0.0, 0.04045, 0.5, 1.0])
    np.testing.assert_allclose(make_sample.to_linear(values), [0.0, 0.0031308, 0.2140411, 1.0], atol=1e-7)
    many = np.linspace(0.0, 1.0, 101)
    np.testing.assert_allclose(make_sample.to_srgb(make_sample.to_linear(many)), many, atol=1e-6)


def test_blur_spreads_a_point_evenly_over_a_disc():
    point = np.zeros((15, 15))
    point[7, 7] = 1.0
    np.testing.assert_array_equal(make_sample.blur(point, 0.0), point)
    spread = make_sample.blur(point, 3.0)
    distance = np.hypot(*(np.mgrid[:15, :15] - 7))
    assert spread.sum() == pytest.approx(1.0)
    assert np.ptp(spread[distance <= 2.5]) == pytest.approx(0.0, abs=1e-12)
    assert spread[distance >= 3.5].max() == 0.0


def test_matte_moves_a_rough_outline_to_the_edge():
    gray = np.full((40, 60), 0.2)
    gray[:, 30:] = 0.8
    rough = np.zeros((40, 60))
    rough[:, 33:] = 1.0  # traced 3 pixels too far to the right
    outline = make_sample.matte(rough, gray) > 0.5
    np.testing.assert_array_equal(outline, gray > 0.5)


def test_matte_keeps_the_mask_away_from_its_outline():
    rough = np.zeros((40, 60))
    rough[:, 30:] = 1.0
    flat = make_sample.matte(rough, np.full((40, 60), 0.5))  # no edges to follow
    np.testing.assert_array_equal(flat[:, :26], 0.0)  # radius 8: a band of 4 on either side
    np.testing.assert_array_equal(flat[:, 34:], 1.0)


def test_focus_keeps_one_layer_and_blurs_the_other():
    image = checkerboard(48, 96)
    mattes = {"thing": np.zeros((48, 96))}
    mattes["thing"][:, :48] = 1.0
    scene = Focus(near=("thing",), plane=(0.0, 1.0), plane_depth=0.0, radius=4.0)
    near, far = scene.shoot(image, mattes, rng())
    left, right = np.s_[:, :36], np.s_[:, 60:]  # far from the border between the layers
    np.testing.assert_allclose(near[left], image[left], atol=1e-6)
    np.testing.assert_allclose(far[right], image[right], atol=1e-6)
    # A disc of radius 4 covers some twelve squares: what is left of a contrast of 0.3 is small.
    assert near[right].std() < 0.06
    assert far[left].std() < 0.06


def test_focus_on_a_receding_plane():
    image = checkerboard(96, 48)
    near, far = Focus(near=(), plane=(0.25, 0.75), plane_depth=1.0, radius=4.0).shoot(image, {}, rng())
    top, bottom = np.s_[:20], np.s_[76:]  # before the first and after the last row of the ramp: depth 0 and 1
    np.testing.assert_allclose(far[top], image[top], atol=1e-6)
    np.testing.assert_allclose(near[bottom], image[bottom], atol=1e-6)
    assert near[top].std() < 0.06
    assert far[bottom].std() < 0.06


def test_exposure_scales_by_stops_clips_and_bends():
    scene = Exposure(over=3.0, under=-2.0, light=(0.5, 0.5, 0.3, 0.0))  # a light of 0 stops changes nothing
    over, under = scene.shoot(np.full((32, 40, 3), 0.5), {}, rng())
    # 0.2140411 * 2^3 > 1: clipped; the curve maps 1 to 1.
    np.testing.assert_allclose(over, 1.0, rtol=1e-12)
    # 0.2140411 / 4 = 0.0535103; as sRGB v; then 0.6 v + 0.4 (3 v^2 - 2 v^3).
    v = 1.055 * 0.0535103 ** (1 / 2.4) - 0.055
    assert under.mean() == pytest.approx(0.6 * v + 0.4 * (3 * v**2 - 2 * v**3), abs=1e-3)
    assert 0.0 < under.std() < 0.02


def test_exposure_light_is_brightest_at_its_centre():
    scene = Exposure(over=0.0, under=-1.0, light=(0.25, 0.5, 0.1, 2.0))
    _, under = scene.shoot(np.full((40, 80, 3), 0.4), {}, rng())
    columns = under.mean(axis=(0, 2))
    assert abs(int(columns.argmax()) - 20) <= 2
    assert columns[20] > columns[70] + 0.1


def test_infrared_levels_noise_and_lamps():
    image = np.full((64, 96, 3), 0.5)
    image[50:60, 80:90] = 1.0
    mattes = {"thing": np.zeros((64, 96))}
    mattes["thing"][20:44, 10:40] = 1.0
    thermal, visible = Infrared((0.2, 0.2), {"thing": 0.9}, texture=0.0, lamps=0.7).shoot(image, mattes, rng())
    assert thermal.shape == (64, 96)
    np.testing.assert_array_equal(visible, image)
    assert thermal[26:38, 16:34].mean() == pytest.approx(0.9, abs=0.01)
    assert thermal[53:57, 83:87].mean() == pytest.approx(0.7, abs=0.02)
    assert thermal[:14, 44:].mean() == pytest.approx(0.2, abs=0.01)
    # Pixel noise 0.01 and column stripes 0.005 are independent: their variances add.
    assert thermal[:14, 44:].std() == pytest.approx(math.hypot(0.01, 0.005), rel=0.2)


# --- features


def write_paragraphs(root: Path) -> None:
    for pair in SAMPLE:
        path = root / "Text" / pair.task / DATASET / f"{pair.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{pair.task} {pair.name}\n")


def test_features_are_those_of_the_paragraphs(tmp_path):
    write_paragraphs(tmp_path)
    paragraphs = make_sample.read_paragraphs(tmp_path)

    def lengths(texts: list[str]) -> list[np.ndarray]:
        return [np.full(TEXT_SHAPE, len(text), np.float32) for text in texts]

    make_sample.write_features(tmp_path, paragraphs, lengths)
    stored = np.load(tmp_path / "TextFeature" / "MEF" / DATASET / "coffee.npy")
    assert stored.shape == (1, 149, 768)
    assert (stored == len("MEF coffee")).all()


@pytest.mark.parametrize("text", [None, b" \n", b"caf\xe9"])
def test_bad_paragraph_is_one_line_and_writes_nothing(tmp_path, capsys, text):
    write_paragraphs(tmp_path)
    path = tmp_path / "Text" / "MFF" / DATASET / "coffee.txt"
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    assert run_command(make_sample.main, ["--root", str(tmp_path), "--encoder", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert str(path) in message
    assert message.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["Text"]


def test_folder_without_an_encoder_is_one_line_and_writes_nothing(tmp_path, capsys):
    pytest.importorskip("torch")  # without it, the line is about that
    write_paragraphs(tmp_path)
    assert run_command(make_sample.main, ["--root", str(tmp_path), "--encoder", str(tmp_path / "none")]) == 2
    message = capsys.readouterr().err
    assert "none: no such folder; expected a text encoder of width 768" in message
    assert message.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["Text"]


# --- the data set as it ships


def stored_image(task: str, folder: str, pair: make_sample.Pair) -> np.ndarray:
    image = cv2.imread(str(ROOT / "Image" / task / DATASET / folder / f"{pair.name}.png"), cv2.IMREAD_UNCHANGED)
    assert image is not None, f"{task} {folder} {pair.name} is missing"
    return image


@pytest.mark.parametrize(("task", "modes"), [("IVF", (4, 2)), ("MEF", (2, 1)), ("MFF", (2, 1))])
def test_lists_name_exactly_the_images(task, modes):
    folder = ROOT / "Image" / task / DATASET
    train, test = ((folder / f"{mode}.txt").read_text().split() for mode in ("train", "test"))
    assert (len(train), len(test)) == modes
    assert len({*train, *test}) == sum(modes)
    for side in TASKS[task].folders:
        assert sorted(path.name for path in (folder / side).iterdir()) == sorted(train + test)
    for kind, suffix in (("Text", ".txt"), ("TextFeature", ".npy")):
        names = [path.name for path in (ROOT / kind / task / DATASET).iterdir()]
        assert sorted(names) == sorted(Path(name).with_suffix(suffix).name for name in train + test)


@pytest.mark.parametrize(("task", "pair"), PAIRS)
def test_images_of_a_pair_fit_and_differ(task, pair):
    first, second = (stored_image(task, folder, pair) for folder in TASKS[task].folders)
    assert first.shape[:2] == second.shape[:2]
    assert all(256 <= side <= 384 for side in first.shape[:2])
    assert first.ndim == (2 if task == "IVF" else 3)  # infrared is gray, all others are in colour
    assert second.ndim == 3
    gray = first if first.ndim == 2 else cv2.cvtColor(first, cv2.COLOR_BGR2GRAY)
    assert cv2.absdiff(gray, cv2.cvtColor(second, cv2.COLOR_BGR2GRAY)).mean() > 1


def test_sizes_vary_and_one_image_is_portrait():
    sizes = {
        stored_image(*param.values[:1], TASKS[param.values[0]].folders[0], param.values[1]).shape for param in PAIRS
    }
    assert len(sizes) > 4
    assert any(shape[0] > shape[1] for shape in sizes)


@pytest.mark.parametrize(("task", "pair"), PAIRS)
def test_paragraph_and_feature(task, pair):
    paragraph = (ROOT / "Text" / task / DATASET / f"{pair.name}.txt").read_text()
    assert 60 <= len(paragraph.split()) <= 120
    assert len(paragraph.strip().splitlines()) == 1
    feature = np.load(ROOT / "TextFeature" / task / DATASET / f"{pair.name}.npy")
    assert feature.shape == (1, 149, 768)
    assert feature.dtype == np.float32
    assert np.isfinite(feature).all()
    assert feature.std() > 0.01


def test_features_differ_between_pairs():
    features = [np.load(path) for path in sorted(ROOT.glob(f"TextFeature/*/{DATASET}/*.npy"))]
    assert len({feature.tobytes() for feature in features}) == len(PAIRS)


def test_sample_is_small():
    assert sum(path.stat().st_size for path in ROOT.glob(f"*/*/{DATASET}/**/*") if path.is_file()) <= 8_000_000


def test_shipped_images_are_what_the_script_makes(tmp_path):
    make_sample.write_images(tmp_path)
    made = sorted(path for path in (tmp_path / "Image").rglob("*") if path.is_file())
    assert len(made) == 2 * len(PAIRS) + 2 * len({pair.task for pair in SAMPLE})
    for path in made:
        shipped = ROOT / path.relative_to(tmp_path)
        if path.suffix == ".txt":
            assert path.read_text() == shipped.read_text()
            continue
        # On one machine the bytes are the same; the arithmetic of another processor may round differently.
        one, other = (cv2.imread(str(image), cv2.IMREAD_UNCHANGED) for image in (path, shipped))
        assert cv2.absdiff(one, other).max() <= 2, path.name


def test_second_run_writes_the_same_bytes():
    pair = SAMPLE[3]
    for one, other in zip(make_sample.simulate(pair, seed=7), make_sample.simulate(pair, seed=7), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (make_sample.simulate(pair, seed=8)[0] != make_sample.simulate(pair, seed=7)[0]).any()
