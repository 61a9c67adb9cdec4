import csv
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import cv2
import numpy as np
import pytest

from tools.evaluate import main
from utils.evaluation.metrics import METRICS, evaluate_pair
from utils.runtime.cli import run_command
from utils.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("x", "y", "z")


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (45, 44), np.uint8)


@pytest.fixture
def data(tmp_path):
    """A data set Toy in the layout of VLFDataset, whose list names x and y but not z; two methods, `good` and `bad`."""
    base = tmp_path / "VLFDataset/Image/IVF/Toy"
    for k, folder in enumerate((base / "IR", base / "VI", tmp_path / "good", tmp_path / "bad")):
        folder.mkdir(parents=True)
        for j, name in enumerate(NAMES):
            cv2.imwrite(str(folder / f"{name}.png"), image(10 * k + j))
    (base / "test.txt").write_text("x.png\ny.png\n")
    return tmp_path


def expected(method: int, metric: str) -> float:
    """The mean over x and y of `good` (2) or `bad` (3)."""
    return fmean(evaluate_pair(image(10 * method + j), image(j), image(10 + j))[metric] for j in range(2))


def by_layout(data: Path, *more: str) -> list[str]:
    fused = ["--fused", f"Good={data / 'good'}", f"Bad={data / 'bad'}"]
    return [*fused, "--dataset", "Toy", "--root", str(data / "VLFDataset"), *more]


def by_folders(data: Path, *more: str) -> list[str]:
    base = data / "VLFDataset/Image/IVF/Toy"
    return ["--fused", f"Good={data / 'good'}", "--dir_a", str(base / "IR"), "--dir_b", str(base / "VI"), *more]


def test_differences_of_two_methods(data, capsys):
    picture = data / "differences.png"
    for name, (one, other) in {"x": (10, 13), "y": (200, 200)}.items():
        for folder, first_pixel in (("good", one), ("bad", other)):
            changed = image(0)
            changed[0, 0] = first_pixel
            cv2.imwrite(str(data / folder / f"{name}.png"), changed)
    main(by_layout(data, "--differences", str(picture)))
    line = capsys.readouterr().out.splitlines()[-1]
    mean = 3 / image(0).size / 2  # one pixel of one of two images differs by 3
    assert line == f"Bad differs from Good by {mean:.3f} gray levels on average, by 3 at most (x); pictures: {picture}"
    assert cv2.imread(str(picture)) is not None


def test_differences_need_two_methods(data):
    with pytest.raises(UserError, match="--differences compares two methods"):
        main(by_folders(data, "--differences", str(data / "differences.png")))
    assert not (data / "differences.png").exists()


def test_table_of_several_methods(data, capsys):
    main(by_layout(data))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[5] == "=" * 80
    for line, label in zip(lines[6:], ("Good", "Bad"), strict=True):
        assert line.startswith(f"{label}: correlation of the fused image with max(A, B): ")
    assert lines[1] == "The test result of Toy:"
    assert lines[2].split() == ["EN", "SD", "SF", "AG", "VIFF", "Qabf"]
    for line, label, method in ((lines[3], "Good", 2), (lines[4], "Bad", 3)):
        assert line.split() == [label, *(f"{expected(method, metric):.2f}" for metric in lines[2].split())]


def test_csv_and_json(data):
    main(by_layout(data, "--csv", str(data / "out/values.csv"), "--json", str(data / "out/values.json")))
    lines = list(csv.DictReader((data / "out/values.csv").open()))
    assert [(line["method"], line["name"]) for line in lines] == [
        ("Good", "x"),
        ("Good", "y"),
        ("Bad", "x"),
        ("Bad", "y"),
    ]
    content = json.loads((data / "out/values.json").read_text())
    for metric in METRICS:
        assert content["methods"]["Bad"]["mean"][metric] == pytest.approx(expected(3, metric))
        assert fmean(float(line[metric]) for line in lines[2:]) == pytest.approx(expected(3, metric))


def test_folders_with_and_without_a_list(data, capsys, caplog):
    listed = by_folders(data, "--list", str(data / "VLFDataset/Image/IVF/Toy/test.txt"), "--dataset", "Mine")
    main(listed)
    table = capsys.readouterr().out
    assert "The test result of Mine:" in table
    assert f"{expected(2, 'SD'):.2f}" in table
    assert "good: 1 images not in the list, left out: z" in caplog.text
    caplog.clear()
    main(by_folders(data))  # all three
    assert "The test result of Toy:" in capsys.readouterr().out
    assert not caplog.text


def test_links_are_followed_on_request(data, capsys):
    """The sources, and the images of a method, as links to files elsewhere."""
    for folder in (data / "good", data / "VLFDataset/Image/IVF/Toy/IR"):
        for path in sorted(folder.iterdir()):
            target = data / "blobs" / f"{folder.name}{path.name}"
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
            path.symlink_to(target)
    for arguments in (by_layout(data), by_folders(data)):
        with pytest.raises(UserError, match="is a link that leads out of its folder"):
            main(arguments)
        capsys.readouterr()
        main([*arguments, "--follow_links"])
        assert "The test result of" in capsys.readouterr().out


def test_published_row_is_marked(data, capsys):
    main(by_layout(data, "--published", "RoadScene"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[5] == "FILM published  7.43    49.26   17.33   6.59    0.69    0.62"
    with pytest.raises(UserError, match="no published values for 'Toy'"):
        main(by_layout(data, "--published"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "Toy", "--dir_a", "A"], "either --dir_a and --dir_b"),
        (["--dataset", "Toy", "--list", "test.txt"], "either --dir_a and --dir_b"),
        ([], "either --dir_a and --dir_b"),
        (["--dataset", "None"], "None"),
    ],
)
def test_sources_that_are_not_there(data, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["--fused", f"Good={data / 'good'}", "--root", str(data / "VLFDataset"), *arguments])


def test_a_missing_fused_image_is_named_and_nothing_is_written(data, capsys):
    (data / "bad/y.png").unlink()
    out = data / "values.csv"
    assert run_command(main, by_layout(data, "--csv", str(out))) == 2
    assert capsys.readouterr().err.count("bad: 1 of 2 fused images are missing: y;") == 1
    assert not out.exists()


def test_names_of_methods(data, capsys):
    with pytest.raises(UserError, match="two methods of one name"):
        main(["--fused", "X=a", "X=b", *by_layout(data)[3:]])
    with pytest.raises(SystemExit):
        main(["--fused", "only_a_folder", "--dataset", "Toy"])
    assert "NAME=DIR expected" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["-m", "tools.evaluate"], ["tools/evaluate.py"]])
def test_runs_as_module_and_as_script(data, command):
    result = subprocess.run([sys.executable, *command, *by_layout(data)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"Good            {expected(2, 'EN'):.2f}" in result.stdout


def test_baselines_alone_or_nothing(data, capsys):
    layout = ["--dataset", "Toy", "--root", str(data / "VLFDataset")]
    main([*layout, "--baselines"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["mean", "maximum", "Laplacian"]
    assert lines[-2].startswith(
        "maximum: correlation of the fused image with max(A, B): 1.000 on average, 1.000 at least"
    )
    with pytest.raises(UserError, match="two methods of one name"):
        main([*layout, "--baselines", "--fused", f"mean={data / 'good'}"])
    assert run_command(main, layout) == 2
    assert "nothing to measure: expected --fused NAME=DIR, --baselines, or both" in capsys.readouterr().err
