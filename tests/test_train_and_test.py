"""train.py and test.py as commands: what they write, how they fail, and the complete job on real pairs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from net.shapes import TEXT_SHAPE
from utils.data.h5 import Sample, write_h5
from utils.data.images import read_gray
from utils.data.provenance import Provenance
from utils.evaluation.evaluate import mean_row
from utils.evaluation.metrics import evaluate_pair
from utils.training.checkpoint import read_checkpoint, save_checkpoint
from utils.training.correlation import read_correlations
from utils.training.loss_log import read_log

ROOT = Path(__file__).resolve().parents[1]


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def run(script: str, *arguments: object, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(script, *arguments), capture_output=True, text=True, timeout=seconds)


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a command that failed as it should."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.replace("\r", "\n").strip().splitlines()[-1]


TRAINED = Provenance("IVF", "mpnet", "e690")


def samples(count: int, size: tuple[int, int] = (48, 64)) -> list[Sample]:
    rng = np.random.default_rng(0)
    result = []
    for i in range(count):
        a, b = (cv2.GaussianBlur(rng.random(size), (0, 0), 3).astype(np.float32)[None] for _ in "ab")
        # integer gray values, as data_process.py writes them
        a, b = (np.round((x - x.min()) / np.ptp(x) * 255) / np.float32(255) for x in (a, b))
        text = rng.standard_normal(TEXT_SHAPE).astype(np.float32)
        result.append(Sample(f"p.{i}", a.astype(np.float32), b.astype(np.float32), text))
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A folder with an H5 file of five pairs, and the folder of a run of two epochs on it."""
    folder = tmp_path_factory.mktemp("trained")
    write_h5(folder / "x_train.h5", samples(5), TRAINED)
    done = run(
        *("train.py", "--dataset_path", folder / "x_train.h5", "--exp_root", folder / "exp"),
        *("--numepochs", 2, "--lr", 1e-4, "--step_size", 1, "--device", "cpu", "--seed", 3),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("device: cpu")
    (path,) = (folder / "exp").glob("*/*")
    return folder, path


def test_a_run_leaves_what_the_official_one_leaves(trained):
    _, path = trained
    start = path.name
    assert path.parent.name == f"{start}_epochs_2_lr_0.0001_stepsize_1_bs_2_gradweight_20_gamma_0.6"
    assert (path / "code" / "train.py").read_bytes() == (ROOT / "train.py").read_bytes()
    assert (path / "code" / "net" / "Film.py").is_file()
    assert sorted(p.name for p in (path / "model").iterdir()) == ["ckpt_1.pkl", "ckpt_2.pkl"]
    pictures = list((path / "pic_fusion").glob("ckpt_*/*.png"))
    # two batches of two, in each of two epochs; A | B | fused
    assert len(pictures) == 8
    assert cv2.imread(str(pictures[0]), cv2.IMREAD_UNCHANGED).shape == (48, 3 * 64)
    assert json.loads((path / "param.json").read_text())["lr"] == 1e-4
    assert list(path.glob("events.out.tfevents.*"))
    assert cv2.imread(str(path / "loss.png")) is not None
    rows = read_correlations(path / "correlation.csv")
    assert list(rows) == [1, 2]
    assert all(-1 <= value <= 1 for row in rows.values() for value in row)


def test_the_log_has_the_official_form(trained):
    _, path = trained
    lines = (path / "log.txt").read_text().splitlines()
    # five pairs make two batches of two; the fifth is dropped
    assert [line.split(" [loss:")[0] for line in lines[:-1]] == [
        f"[Epoch {epoch}/2] [Batch {batch}/2]" for epoch in (1, 2) for batch in (0, 1)
    ]
    assert lines[-1].startswith("total_time: ")
    assert all(line.loss == line.loss_in_grad for line in read_log(path / "log.txt"))


def test_a_checkpoint_holds_the_training(trained):
    _, path = trained
    state = read_checkpoint(path / "model" / "ckpt_2.pkl")
    assert set(state) >= {"model", "optimizer", "schedule", "epoch", "step"}
    assert (state["epoch"], state["step"]) == (2, 4)
    assert state["data"] == {"task": "IVF", "text_encoder": "mpnet", "encoder_digest": "e690"}
    assert len(state["model"]) == 189
    assert state["optimizer"]["lr"] == pytest.approx(1e-4 * 0.6**2)


def test_a_copied_checkpoint_goes_on_in_a_new_run(trained, tmp_path):
    """Outside its run's folder, too, a checkpoint contains the options that determine the losses."""
    folder, whole = trained
    copy = tmp_path / "mine.pkl"
    copy.write_bytes((whole / "model" / "ckpt_1.pkl").read_bytes())
    assert "--lr 0.5:" in failure(run("train.py", "--resume", copy, "--lr", 0.5))
    write_h5(tmp_path / "other.h5", samples(3))
    other = run("train.py", "--resume", copy, "--dataset_path", tmp_path / "other.h5", "--exp_root", tmp_path / "exp")
    assert "made 2 steps in 1 epochs, but" in failure(other)
    assert not (tmp_path / "exp").exists()
    resumed = run("train.py", "--resume", copy, "--exp_root", tmp_path / "exp")
    assert resumed.returncode == 0, resumed.stderr
    assert "a new one is made" in resumed.stdout
    (second,) = (tmp_path / "exp").glob("*/*")
    without_time = [[(s.epoch, s.batch, s.loss, s.lplssim_a) for s in read_log(p / "log.txt")] for p in (whole, second)]
    assert without_time[1] == without_time[0][2:]
    models = [read_checkpoint(path / "model" / "ckpt_2.pkl")["model"] for path in (whole, second)]
    assert all((models[0][name] == models[1][name]).all() for name in models[0])


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_fused_images_and_the_table(trained, suffix):
    folder, path = trained
    write_h5(folder / "Set_test.h5", samples(2))
    checkpoint = path / "model" / "ckpt_2.pkl"
    if suffix == "pth":
        torch = pytest.importorskip("torch")
        model = read_checkpoint(checkpoint)["model"]
        checkpoint = folder / "film.pth"
        torch.save({"model": {f"module.{k}": torch.tensor(v) for k, v in model.items()}, "epoch": 2}, checkpoint)
    out = folder / f"out_{suffix}"
    done = run(
        *("test.py", "--dataset", "Set", "--ckpt_path", checkpoint, "--h5_dir", folder, "--out_dir", out),
        "--contact_sheet",
        "--report",
    )
    assert done.returncode == 0, done.stderr
    images = sorted((out / "Set" / "Gray").iterdir())
    assert [p.name for p in images] == ["p.0.png", "p.1.png"]
    for image in images:
        pixels = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
        assert pixels.shape == (48, 64)
        # stretched to its own minimum and maximum
        assert (pixels.min(), pixels.max()) == (0, 255)
    table = done.stdout[done.stdout.index("=" * 80) :].splitlines()
    assert table[1] == "The test result of Set:"
    assert table[2].split() == ["EN", "SD", "SF", "AG", "VIFF", "Qabf"]
    # the means over the 8-bit images that were written
    means = mean_row(
        {
            sample.name: evaluate_pair(
                read_gray(out / "Set" / "Gray" / f"{sample.name}.png"),
                *(np.rint(image[0] * 255) for image in (sample.image_a, sample.image_b)),
            )
            for sample in samples(2)
        }
    )
    assert table[3].split() == ["FILM", *(f"{means[metric]:.2f}" for metric in table[2].split())]
    assert "images/s" in done.stdout
    assert (out / "Set" / "contact_sheet.png").is_file()
    assert (out / "Set" / "report.html").is_file()


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated"), ("SIGHUP", 129, "interrupted")],
)
def test_a_signal_ends_cleanly(trained, number, code, word):
    """After the current step the run writes a checkpoint that can be resumed, and exits without a traceback."""
    folder, _ = trained
    arguments = ("--dataset_path", folder / "x_train.h5", "--exp_root", folder / number, "--numepochs", 1000)
    out, err = folder / f"{number}.out", folder / f"{number}.err"  # after SIGHUP, only files are written to
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(command("train.py", *arguments), stdout=stdout, stderr=stderr)
    deadline = time.time() + 120
    while not list((folder / number).glob("*/*/pic_fusion/ckpt_1/*.png")):
        assert time.time() < deadline, "the run did not start"
        time.sleep(0.2)
    process.send_signal(signal.Signals[number])
    assert process.wait(120) == code, err.read_text()
    assert "Traceback" not in err.read_text()
    assert err.read_text().strip().endswith(word)
    (checkpoint,) = (
        Path(line.split(": ")[1]) for line in out.read_text().splitlines() if line.startswith("checkpoint: ")
    )
    (log,) = (folder / number).glob("*/*/log.txt")
    assert read_checkpoint(checkpoint)["step"] == len(read_log(log))


@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_help_is_a_manual(script):
    started = time.perf_counter()
    done = run(script, "--help")
    assert done.returncode == 0
    assert "--device" in done.stdout
    # --help does not start Jittor
    assert time.perf_counter() - started < 5


def test_wrong_input_of_train_is_one_line(trained, tmp_path):
    folder, path = trained
    assert "gone.h5: no such H5 file" in failure(run("train.py", "--dataset_path", tmp_path / "gone.h5"))
    data = ("--dataset_path", folder / "x_train.h5", "--exp_root", tmp_path / "exp")
    assert "5 pairs are fewer than a batch of 6" in failure(run("train.py", *data, "--batch_size", 6))
    assert "gone.pkl: no such checkpoint" in failure(run("train.py", *data, "--pretrain", tmp_path / "gone.pkl"))
    weights = read_checkpoint(path / "model" / "ckpt_1.pkl")["model"]
    weights.pop("conv1.bias")
    save_checkpoint(tmp_path / "lacking.pkl", {"model": weights})
    assert "lacking.pkl: does not fit the network: conv1.bias is missing" in failure(
        run("train.py", *data, "--pretrain", tmp_path / "lacking.pkl")
    )
    assert "--lr" in failure(run("train.py", *data, "--lr", -1))
    assert "image2text_dim 8: must equal mid_channel, 32" in failure(run("train.py", *data, "--i2t_dim", 8))
    assert "hidden_dim 100: must divide 3538944" in failure(run("train.py", *data, "--hidden_dim", 100))
    assert not (tmp_path / "exp").exists()


def test_wrong_input_of_test_is_one_line(trained, tmp_path):
    folder, _ = trained
    assert "gone_test.h5: no such H5 file" in failure(run("test.py", "--dataset", "gone", "--h5_dir", folder))
    write_h5(folder / "Two_test.h5", samples(1))
    data = ("--dataset", "Two", "--h5_dir", folder, "--out_dir", tmp_path / "out")
    assert "no such checkpoint" in failure(run("test.py", *data, "--ckpt_path", tmp_path / "gone.pth"))
    (tmp_path / "bad.pkl").write_bytes(b"nothing")
    assert "bad.pkl" in failure(run("test.py", *data, "--ckpt_path", tmp_path / "bad.pkl"))
    assert not (tmp_path / "out").exists()


def test_bad_data_stays_small(trained, tmp_path):
    """Bad pairs are left out; a loss that is not finite ends the run, naming the pairs and a checkpoint from before."""
    folder, path = trained
    good = samples(6)
    good[1] = replace(good[1], text=np.full(TEXT_SHAPE, np.nan, np.float32))
    good[2] = replace(good[2], image_a=np.zeros_like(good[2].image_a))
    # each value is finite, but not their sum
    good[4] = replace(good[4], image_a=good[4].image_a * np.float32(3e38))
    write_h5(tmp_path / "Bad_test.h5", good)
    options = ("--exp_root", tmp_path / "exp", "--no_shuffle", "--skip_bad")
    done = run("train.py", "--dataset_path", tmp_path / "Bad_test.h5", *options)
    line = failure(done)
    assert "text/p.1: holds values that are not finite" in done.stderr
    assert "p.2: image A is constant" in done.stderr
    assert "p.4, p.5: the loss is " in line
    (checkpoint,) = (tmp_path / "exp").glob("*/*/model/ckpt_*.pkl")
    assert line.endswith(f"the state before it: {checkpoint}")
    state = read_checkpoint(checkpoint)
    # saved after the batch of p.0 and p.3
    assert (checkpoint.name, state["step"], state["epoch"]) == ("ckpt_0_step_00000001.pkl", 1, 0)
    assert all(np.isfinite(value).all() for value in state["model"].values())

    write_h5(tmp_path / "Bad_test.h5", good[:4])
    weights = ("--ckpt_path", path / "model" / "ckpt_2.pkl")
    done = run("test.py", "--dataset", "Bad", "--h5_dir", tmp_path, "--out_dir", tmp_path, *weights, "--skip_bad")
    assert done.returncode == 0, done.stderr
    assert sorted(image.name for image in (tmp_path / "Bad" / "Gray").iterdir()) == ["p.0.png", "p.3.png"]
    assert "skipped: 2 bad pairs, named above" in done.stdout


@pytest.mark.slow
def test_the_chain_on_real_pairs_follows_the_official_run(shared, tmp_path):
    """RoadScene: H5 files of 12 training and 4 test pairs with features, 18 steps, PNGs, table.

    The 18 losses are those that the official code logged, within 1e-4 (relative).
    """
    golden = shared / "golden"
    expected = json.loads((golden / "trajectory_official.json").read_text())
    base, features = tmp_path / "Image" / "IVF" / "RoadScene", tmp_path / "TextFeature" / "IVF" / "RoadScene"
    base.mkdir(parents=True)
    features.parent.mkdir(parents=True)
    (base / "IR").symlink_to(shared / "data" / "RoadScene" / "cropinfrared")
    (base / "VI").symlink_to(shared / "data" / "RoadScene" / "crop_LR_visible")
    features.symlink_to(golden / "features" / "RoadScene")
    names = sorted(path.stem for path in (golden / "features" / "RoadScene").glob("*.npy"))
    lists = {"train": expected["names"], "test": [name for name in names if name not in expected["names"]]}
    for mode, listed in lists.items():
        (base / f"{mode}.txt").write_text("\n".join(f"{name}.jpg" for name in listed))
        done = run("data_process.py", "--dataset", "RoadScene", "--mode", mode, "--root", tmp_path, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
    done = run(
        *("train.py", "--dataset_path", tmp_path / "RoadScene_train.h5", "--exp_root", tmp_path / "exp"),
        *("--pretrain", golden / "official_seed0.pth", "--no_shuffle", "--numepochs", expected["epochs"]),
        *("--batch_size", expected["batch_size"], "--lr", expected["lr"]),
        *("--step_size", expected["step_size"], "--gamma", expected["gamma"]),
        seconds=1800,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "exp").glob("*/*")
    log = read_log(path / "log.txt")
    rows = [dict(zip(expected["columns"], row, strict=True)) for row in expected["rows"]]
    assert len(log) == len(rows) == 18
    for line, row in zip(log, rows, strict=True):
        logged = (line.loss, line.loss_in_grad, line.lplssim_a, line.lplssim_b)
        official = (row["loss"], row["loss_in_grad"], row["lplssimA"], row["lplssimB"])
        assert logged == pytest.approx(official, rel=1e-4), (line.epoch, line.batch)
    model = read_checkpoint(path / "model" / "ckpt_3.pkl")["model"]
    for name, norm in expected["final_param_norm"].items():
        value = model[name.removeprefix("module.")].astype(np.float64)
        assert np.linalg.norm(value) == pytest.approx(norm, rel=1e-4, abs=1e-6), name
    done = run(
        *("test.py", "--dataset", "RoadScene", "--ckpt_path", path / "model" / "ckpt_3.pkl"),
        *("--h5_dir", tmp_path, "--out_dir", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    fused = sorted(p.stem for p in (tmp_path / "out" / "RoadScene" / "Gray").iterdir())
    assert fused == sorted(lists["test"])
    assert "The test result of RoadScene:" in done.stdout


@pytest.mark.parametrize("name", ["FILM_REFERENCE", "FILM_PORTABLE"])
def test_reference_form_is_chosen_by_the_environment(name):
    """By FILM_REFERENCE, and by its earlier name FILM_PORTABLE."""
    code = "from net import ops; print(ops.reference_in_use())"
    for value, expected in (("1", "True"), ("0", "False")):
        environment = os.environ | {name: value}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == expected
