"""The metrics against the official values, against values derived by hand, and against a plain formulation."""

import json
import math
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from tools import plain_metrics
from utils.data.images import read_gray
from utils.evaluation.metrics import (
    METRICS,
    TABLE_METRICS,
    average_gradient,
    correlation,
    entropy,
    evaluate_pair,
    format_table,
    mean_squared_error,
    mutual_information,
    psnr,
    qabf,
    scd,
    spatial_frequency,
    ssim,
    standard_deviation,
    viff,
)

# Relative. The official code computes EN, MI and VIFF in float64, the others at least partly in float32.
TOLERANCES = {
    "EN": 1e-12,
    "SD": 1e-6,
    "SF": 1e-6,
    "AG": 1e-6,
    "MI": 1e-12,
    "SCD": 1e-6,
    "VIFF": 1e-10,
    "Qabf": 1e-6,
    "SSIM": 1e-6,
}


def textured(seed: int, height: int = 60, width: int = 71) -> np.ndarray:
    """A smooth random image of whole values that reach both 0 and 255, with saturated (flat) parts."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width)), (0, 0), 2)
    return np.clip(np.rint(128 + 100 * noise / noise.std()), 0, 255)


@pytest.fixture(scope="module")
def official(shared: Path) -> list[tuple[dict[str, float], dict[str, float]]]:
    """(ours, official) of each image of the calibration table."""
    golden = shared / "golden"
    table = json.loads((golden / "metrics_official.json").read_text())
    pairs = []
    for key, expected in table.items():
        folder, name = (golden / "metrics" / key).parent, Path(key).name
        images = [read_gray(folder / part / f"{name}.png") for part in ("fused", "ir", "vi")]
        pairs.append((evaluate_pair(*images), expected))
    return pairs


@pytest.mark.parametrize("metric", TOLERANCES)
def test_calibration_with_the_official_evaluator(official, metric):
    assert len(official) == 11
    for ours, expected in official:
        assert ours[metric] == pytest.approx(expected[metric], rel=TOLERANCES[metric], abs=0)


class TestByHand:
    def test_entropy_counts_rounded_values(self):
        assert entropy(np.array([[0, 64], [128, 255]])) == pytest.approx(2)  # four equally frequent values: 2 bits
        assert entropy(np.array([[9.6, 10.4], [20, 20]])) == pytest.approx(1)  # 10 10 20 20
        assert entropy(np.full((4, 4), 7)) == 0

    def test_standard_deviation_is_the_population_s(self):
        assert standard_deviation(np.array([[0, 0], [10, 10]])) == pytest.approx(5)

    def test_spatial_frequency(self):
        # Horizontal differences 3 and 3, vertical 4 and 4: sqrt(9 + 16).
        assert spatial_frequency(np.array([[0, 3], [4, 7]])) == pytest.approx(5)

    def test_average_gradient(self):
        # A plane that climbs 3 to the right and 4 downwards has these differences everywhere, the border included.
        y, x = np.mgrid[:5, :6]
        assert average_gradient(3 * x + 4 * y) == pytest.approx(math.sqrt((9 + 16) / 2))
        # Horizontal: one-sided 0, central (8 - 0) / 2, one-sided 8; their mean is 4. Vertical: 0.
        assert average_gradient(np.array([[0, 0, 8], [0, 0, 8]])) == pytest.approx(4 / math.sqrt(2))

    def test_mutual_information_is_in_nats_and_summed(self):
        fused = np.array([[0, 200], [0, 200]])
        same = 255 - fused  # tells which of two equally frequent values the fused image has: ln 2
        independent = np.array([[0, 0], [200, 200]])
        assert mutual_information(fused, same, independent) == pytest.approx(math.log(2))
        assert mutual_information(fused, same, same) == pytest.approx(2 * math.log(2))

    def test_mean_squared_error_and_psnr(self):
        fused = np.array([[100, 50], [50, 60]])
        # (2^2 + 4^2) / 2 = 10; the peak is the fused image's 100: 10 log10(100^2 / 10) = 30 dB.
        assert mean_squared_error(fused, fused + 2, fused - 4) == pytest.approx(10)
        assert psnr(fused, fused + 2, fused - 4) == pytest.approx(30)
        assert psnr(fused, fused, fused) == math.inf

    def test_correlation(self):
        fused = np.array([[0, 10], [50, 100]])
        assert correlation(fused, 2 * fused + 3, fused) == pytest.approx(1)
        assert correlation(fused, 2 * fused + 3, 255 - fused) == pytest.approx(0)

    def test_scd(self):
        image_a, image_b = np.array([[9, 5, 0, 0]] * 2), np.array([[0, 0, 7, 2]] * 2)
        # F - B is A and F - A is B: 1 + 1.
        assert scd(image_a + image_b, image_a, image_b) == pytest.approx(2)

    def test_viff_of_extremes(self):
        image = textured(0)
        flat = np.full_like(image, 90)
        assert viff(image, image, image) == pytest.approx(2)  # everything arrives, of either source
        assert viff(flat, image, image) == 0  # nothing does
        assert viff(255 - image, image, image) == 0  # nor does the negative
        assert viff(image, image, flat) == pytest.approx(2)  # a source without information counts as 1 (0/0)

    def test_qabf_where_gradients_are_equal_takes_the_gradient_as_ratio(self):
        # F = A = B: directions agree (1), and strengths are equal and at least 200, which takes the first sigmoid to
        # its height. With the ratio 1, as one would expect, it would be lower by the factor 1 + exp(-7.5) = 1.00055.
        step = np.full((6, 8), 50)
        step[:, 4:] = 150
        assert qabf(step, step, step) == pytest.approx(0.9994 * 0.9879 / (1 + math.exp(-22 * 0.2)), rel=1e-12)

    def test_qabf_of_a_flat_fused_image_keeps_next_to_nothing(self):
        # Zero padding gives flat images an edge along the border; a black one has none: ratio 0.
        step = np.full((6, 8), 50)
        step[:, 4:] = 150
        assert qabf(np.zeros((6, 8)), step, step) < 0.9994 / (1 + math.exp(7.5))

    def test_ssim_of_constant_images_is_the_luminance_term(self):
        fused, image_a = np.full((9, 9), 50), np.full((9, 9), 100)
        luminance = (2 * 50 * 100 + 2.55**2) / (50**2 + 100**2 + 2.55**2)
        assert ssim(fused, image_a, fused) == pytest.approx(luminance + 1)

    def test_ssim_of_one_window_is_its_sample_statistics(self):
        fused, image_a = textured(1, 7, 7), textured(2, 7, 7)
        (var_f, cov), (_, var_a) = np.cov(fused.ravel(), image_a.ravel())  # divisor 48
        mean_f, mean_a = fused.mean(), image_a.mean()
        c1, c2 = 2.55**2, 7.65**2
        expected = (2 * mean_f * mean_a + c1) / (mean_f**2 + mean_a**2 + c1) * (2 * cov + c2) / (var_f + var_a + c2)
        assert ssim(fused, image_a, fused) == pytest.approx(expected + 1)


def test_ssim_is_scikit_image_s():
    fused, image_a, image_b = textured(1), textured(2), textured(3)
    expected = sum(structural_similarity(source, fused, data_range=255) for source in (image_a, image_b))
    assert ssim(fused, image_a, image_b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(41, 41), (42, 97), (103, 60)])
@pytest.mark.parametrize("fused", ["mean", "one source", "unrelated", "flat"])
def test_equal_to_the_plain_formulation(shape, fused):
    image_a, image_b = textured(1, *shape), textured(2, *shape)
    image_f = {
        "mean": np.rint((image_a + image_b) / 2),
        "one source": image_b,
        "unrelated": textured(3, *shape),
        "flat": np.full(shape, 255.0),
    }[fused]
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = plain_metrics.evaluate_pair(image_f, image_a, image_b)
    ours = evaluate_pair(image_f, image_a, image_b)
    assert list(ours) == list(expected) == list(METRICS)
    assert ours == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


def test_integer_arrays_are_converted():
    images = [textured(seed) for seed in range(3)]
    expected = evaluate_pair(*images)
    for dtype in (np.uint8, np.int32, np.float32):
        assert evaluate_pair(*(image.astype(dtype) for image in images)) == expected
    # In uint8 5 - 9 would be 252.
    assert mean_squared_error(*(np.full((2, 2), value, np.uint8) for value in (9, 5, 9))) == 8


def test_evaluate_pair_is_the_single_metrics_and_leaves_its_images_alone():
    images = [textured(seed) for seed in range(3)]
    copies = [image.copy() for image in images]
    together = evaluate_pair(*images)
    of_fused = (entropy, standard_deviation, spatial_frequency, average_gradient)
    of_pair = (mutual_information, mean_squared_error, correlation, psnr, scd, viff, qabf, ssim)
    alone = [metric(images[0]) for metric in of_fused] + [metric(*images) for metric in of_pair]
    assert list(together.values()) == alone
    assert all(isinstance(value, float) for value in alone)
    for image, copy in zip(images, copies, strict=True):
        np.testing.assert_array_equal(image, copy)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda image: image / 255, "0..1"),
        (lambda image: image[:-1], r"image_b: has shape \(59, 71\), but fused has \(60, 71\)"),
        (lambda image: np.where(image == image.max(), np.nan, image), "not finite"),
        (lambda image: np.where(image == image.max(), np.inf, image), "not finite"),
        (lambda image: image * 257, "0..255 expected"),
        (lambda image: image - 1, "0..255 expected"),
        (lambda image: image > 100, "not an array of bool"),
        (lambda image: np.dstack([image] * 3), "gray image"),
    ],
)
def test_traps_are_refused(spoil, message):
    image = textured(0)
    with pytest.raises(ValueError, match=message):
        evaluate_pair(image, image, spoil(image))
    with pytest.raises(ValueError, match=message.replace("image_b", "image_a")):
        scd(image, spoil(image), image)


def test_images_too_small_say_so():
    small = textured(0, 60, 40)
    with pytest.raises(ValueError, match="60x40 is too small for VIFF.*41x41"):
        evaluate_pair(small, small, small)
    tiny = textured(0, 6, 9)
    with pytest.raises(ValueError, match="6x9 is too small for SSIM.*7x7"):
        ssim(tiny, tiny, tiny)
    with pytest.raises(ValueError, match="2x2"):
        spatial_frequency(np.zeros((1, 9)))


def test_black_and_constant_images_give_nan_without_a_warning():
    image, black = textured(0), np.zeros((60, 71))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = evaluate_pair(black, image, image)
    assert math.isnan(values["CC"])
    assert values["EN"] == values["SD"] == values["VIFF"] == 0


def test_table_has_the_official_form():
    film = {"EN": 6.72, "SD": 43.64, "SF": 11.55, "AG": 3.72, "VIFF": 1.06, "Qabf": 0.7, "SSIM": 1.0}
    assert tuple(film)[:6] == TABLE_METRICS
    # film.md, section 5.
    expected = """\
================================================================================
The test result of MSRS:
                 EN      SD      SF      AG     VIFF     Qabf
FILM            6.72    43.64   11.55   3.72    1.06    0.70
================================================================================"""
    assert format_table("MSRS", {"FILM": film}) == expected


def test_table_makes_room_for_long_labels():
    row = dict.fromkeys(TABLE_METRICS, 1.0)
    header, short, long = format_table("X", {"FILM": row, "a label of 21 letters": row}).splitlines()[2:5]
    assert long.startswith("a label of 21 letters  1.00    1.00")
    assert short.index("1.00") == long.index("1.00") == header.index("EN") - 1
