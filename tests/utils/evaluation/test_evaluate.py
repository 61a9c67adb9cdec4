import csv
import json
import math

import cv2
import numpy as np
import pytest

from utils.evaluation.evaluate import (
    COLUMNS,
    PUBLISHED,
    correlation_line,
    evaluate_files,
    evaluate_method,
    find_fused,
    find_sources,
    mean_row,
    measure,
    published_rows,
    write_csv,
    write_json,
)
from utils.evaluation.metrics import TABLE_METRICS, evaluate_pair
from utils.runtime.errors import UserError
from utils.training.correlation import correlate

NAMES = ("b", "a.1", "c")  # not in alphabetical order, and one with a dot


def image(seed: int, height: int = 48, width: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Folders A and B, three pairs, a fused folder with one image too many, and a list."""
    for k, name in enumerate(NAMES):
        for folder, suffix in (("A", "png"), ("B", "bmp"), ("fused", "png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{name}.{suffix}"), image(10 * k + ord(folder[0])))
    cv2.imwrite(str(tmp_path / "fused" / "extra.png"), image(99))
    (tmp_path / "test.txt").write_text("c.jpg\nb.jpg\n")
    return tmp_path


def row(**values: float) -> dict[str, float]:
    return dict.fromkeys(COLUMNS, 1.0) | values


def test_sources_follow_the_list(folders):
    sources = find_sources(folders / "A", folders / "B", folders / "test.txt")
    assert list(sources.items()) == [
        ("c", (folders / "A/c.png", folders / "B/c.bmp")),
        ("b", (folders / "A/b.png", folders / "B/b.bmp")),
    ]
    (folders / "test.txt").write_text("./c.jpg\nA/b.jpg\nB/b.jpg\n")
    assert list(find_sources(folders / "A", folders / "B", folders / "test.txt")) == ["c", "b"]
    assert list(find_sources(folders / "A", folders / "B")) == ["a.1", "b", "c"]


def test_a_missing_source_is_named(folders):
    (folders / "B/c.bmp").unlink()
    with pytest.raises(UserError, match=r"B/c\.jpg"):
        find_sources(folders / "A", folders / "B", folders / "test.txt")
    (folders / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no image"):
        find_sources(folders / "empty", folders / "B")


def test_extra_images_are_named_and_left_out(folders, caplog):
    found = find_fused(folders / "fused", NAMES)
    assert found == {name: folders / "fused" / f"{name}.png" for name in NAMES}
    assert "1 images not in the list, left out: extra" in caplog.text


def test_missing_images_are_named(folders):
    with pytest.raises(UserError, match="fused: 2 of 3 fused images are missing: x, y;"):
        find_fused(folders / "fused", ["x", "b", "y"])
    with pytest.raises(UserError, match="12 of 12 fused images are missing: 0, 1, 2, 3, 4, 5, 6, 7 and 4 more;"):
        find_fused(folders / "fused", map(str, range(12)))


def test_files_are_evaluated_over_the_list_only(folders):
    sources = find_sources(folders / "A", folders / "B", folders / "test.txt")
    values = evaluate_files(find_fused(folders / "fused", sources), sources)
    images = {name: [image(10 * k + ord(folder[0])) for folder in ("fused", "A", "B")] for k, name in enumerate(NAMES)}
    assert list(values) == ["c", "b"]
    for name in values:
        assert values[name] == pytest.approx(evaluate_pair(*images[name]) | correlate(*images[name])._asdict())


def test_errors_name_the_file(folders):
    cv2.imwrite(str(folders / "fused/b.png"), image(1, 48, 51))
    sources = find_sources(folders / "A", folders / "B")
    with pytest.raises(UserError, match=r"fused/b\.png: image_a: has shape \(48, 50\), but fused has \(48, 51\)"):
        evaluate_files(find_fused(folders / "fused", sources), sources)
    small = image(1, 40, 90)
    with pytest.raises(UserError, match="here: 40x90 is too small for VIFF"):
        measure("here", small, small, small)


def test_means(caplog):
    mean = mean_row({"x": row(EN=1.0, SCD=math.nan), "y": row(EN=4.0)})
    assert list(mean) == list(COLUMNS)
    assert mean["EN"] == 2.5
    assert math.isnan(mean["SCD"])
    assert "SCD is not defined for x" in caplog.text
    assert "SD is not" not in caplog.text


def test_published_rows():
    # The row of the example table in film.md, section 5.
    film = {"EN": 6.72, "SD": 43.64, "SF": 11.55, "AG": 3.72, "VIFF": 1.06, "Qabf": 0.70}
    assert published_rows("MSRS") == {"FILM published": film}
    datasets = json.loads(PUBLISHED.read_text())["datasets"]
    assert list(datasets) == ["MSRS", "RoadScene", "M3FD", "Harvard", "SICE", "MEFB", "RealMFF", "Lytro"]
    assert all(list(published_rows(name)["FILM published"]) == list(TABLE_METRICS) for name in datasets)
    with pytest.raises(UserError, match="no published values for 'TNO'; available: MSRS"):
        published_rows("TNO")


def test_csv_and_json_hold_every_image_in_full_precision(tmp_path):
    methods = {
        "FILM": {"x": row(EN=1 / 3, corr_max=0.5), "y": row(PSNR=math.inf)},
        "other": {"x": row(CC=math.nan), "y": row()},
    }
    write_csv(tmp_path / "values.csv", methods)
    lines = list(csv.DictReader((tmp_path / "values.csv").open()))
    assert [(line["method"], line["name"]) for line in lines] == [
        ("FILM", "x"),
        ("FILM", "y"),
        ("other", "x"),
        ("other", "y"),
    ]
    assert float(lines[0]["EN"]) == 1 / 3
    assert float(lines[1]["PSNR"]) == math.inf
    assert [float(line["corr_max"]) for line in lines] == [0.5, 1, 1, 1]

    write_json(tmp_path / "values.json", "MSRS", methods, {"FILM": row(EN=2 / 3), "other": row()})
    content = json.loads((tmp_path / "values.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    assert content["dataset"] == "MSRS"
    assert content["methods"]["FILM"]["mean"]["EN"] == 2 / 3
    assert content["methods"]["FILM"]["images"] == {"x": row(EN=1 / 3, corr_max=0.5), "y": row() | {"PSNR": None}}
    assert content["methods"]["other"]["images"]["x"]["CC"] is None
    assert content["methods"]["FILM"]["least"] == {"corr_max": 0.5, "corr_a": 1, "corr_b": 1}


def test_the_correlation_line_names_the_least():
    values = {"x": row(corr_max=0.9, corr_a=0.2), "y": row(corr_max=0.5, corr_a=0.4, corr_b=-1.0)}
    line = correlation_line(values)
    assert "max(A, B): 0.700 on average, 0.500 at least (y); with A 0.300, with B 0.000" in line


def test_measured_images_have_their_correlation(folders):
    sources = find_sources(folders / "A", folders / "B")
    values = evaluate_method(np.maximum, sources, "max")
    assert all(list(row) == list(COLUMNS) and row["corr_max"] == pytest.approx(1) for row in values.values())
