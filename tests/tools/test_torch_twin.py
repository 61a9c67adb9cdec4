"""The PyTorch twin against the values of the official code, and its command on a tiny H5."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from scipy.ndimage import correlate

from net.shapes import STAGE_SIZE, TEXT_SHAPE
from utils.data.h5 import H5Dataset
from utils.data.loader import Augmentation, Loader
from utils.runtime.errors import UserError
from utils.training.loss_log import LogLine, read_log

torch = pytest.importorskip("torch")

from tools.torch_film import TwinNet, fusion_loss, lp_ssim_loss  # noqa: E402
from tools.torch_twin import load_weights, save_weights, train_step  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
GOLDEN = SHARED / "golden"
CHECKPOINT = GOLDEN / "official_seed0.pth"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "official_seed0.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def official() -> TwinNet:
    """The twin with the official weights of the golden values."""
    net = TwinNet()
    load_weights(net, CHECKPOINT)
    return net


@pytest.fixture(scope="module")
def net() -> TwinNet:
    torch.manual_seed(0)
    return TwinNet()


def inputs(height: int, width: int, batch: int = 1, tokens: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images A and B in 0..1 and a text, the same at every call."""
    source = torch.Generator().manual_seed(5)
    images = torch.rand(2, batch, 1, height, width, generator=source)
    return images[0], images[1], torch.randn(batch, tokens, TEXT_SHAPE[1], generator=source)


# The network


def test_size_of_the_network(net):
    # film.md, section 1.
    assert len(net.state_dict()) == 189
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_070_235


@needs_golden
def test_names_order_and_initial_values_are_the_official_ones(net):
    """The golden weights are the initial ones of seed 0, except vectors and temperatures, which were changed."""
    state = torch.load(CHECKPOINT, weights_only=True)["model"]
    assert ["module." + name for name in net.state_dict()] == list(state)
    for name, value in net.state_dict().items():
        if value.ndim > 1 and "temperature" not in name:
            assert torch.equal(value, state["module." + name]), name


@pytest.mark.parametrize("size", [(33, 47), (64, 40), (9, 301), (290, 390)])
def test_any_size(net, size):
    with torch.no_grad():
        fused = net(*inputs(*size))
    assert fused.shape == (1, 1, *size)
    assert fused.min() > 0 and fused.max() < 1


def test_samples_of_a_batch_do_not_meet(net):
    a, b, text = inputs(24, 32, batch=2)
    with torch.no_grad():
        together = net(a, b, text)
        alone = net(a[1:], b[1:], text[1:])
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-6)


def test_the_order_of_the_words_does_not_count_but_the_words_do(net):
    """Attention has no positions, and its results are averaged over the words."""
    a, b, text = inputs(24, 32)
    with torch.no_grad():
        fused = net(a, b, text)
        turned = net(a, b, text.flip(1))
        other = net(a, b, text + 1)
    torch.testing.assert_close(fused, turned, rtol=0, atol=1e-6)
    assert (fused - other).abs().max() > 1e-6


def test_a_smaller_inside():
    net = TwinNet(hidden_dim=64, image2text_dim=8)
    assert net.restormerca1.imagef2textfA1["conv"].weight.shape == (8, 32, 1, 1)
    with torch.no_grad():
        assert net(*inputs(20, 30)).shape == (1, 1, 20, 30)


@needs_golden
def test_official_output_of_one_sample(official, golden):
    with torch.no_grad():
        fused = official(*(torch.from_numpy(golden[f"train_{part}"][1:]) for part in "ABT"))
    # The official code is 1e-7 from itself in float64.
    assert np.abs(fused.numpy() - golden["train_out"][1:]).max() < 5e-7


@needs_golden
@pytest.mark.slow
@pytest.mark.parametrize("case", ["test0", "test1"])
def test_official_outputs_at_other_sizes(official, golden, case):
    with torch.no_grad():
        fused = official(*(torch.from_numpy(golden[f"{case}_{part}"]) for part in "ABT"))
    assert np.abs(fused.numpy() - golden[f"{case}_out"]).max() < 5e-7


@needs_golden
@pytest.mark.slow
def test_official_gradients_in_float64(golden):
    """Some minutes, and 17 GB: sample by sample, because the two together do not fit in 24 GB.

    The fusion loss is a mean over the batch, so its gradient is the mean of the samples'.
    """
    net = TwinNet()
    load_weights(net, CHECKPOINT)
    net.double()
    for sample in range(2):
        a, b, text = (torch.from_numpy(golden[f"train_{part}"][sample : sample + 1]).double() for part in "ABT")
        (fusion_loss(a, b, net(a, b, text), grad_weight=20)[0] / 2).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.norm().item() == pytest.approx(float(golden[f"gradnorm64/{name}"]), rel=1e-9), name
        if (stored := golden.get(f"grad64/{name}")) is not None:
            assert np.linalg.norm(parameter.grad.numpy() - stored) < 1e-9 * np.linalg.norm(stored), name


# The losses


@needs_golden
def test_official_losses(golden):
    a, b, fused = (torch.from_numpy(golden[name]) for name in ("train_A", "train_B", "train_out"))
    terms = [term.item() for term in fusion_loss(a, b, fused, grad_weight=20)]
    assert terms == pytest.approx([float(golden[name]) for name in ("loss_total", "loss_in", "loss_grad")], rel=1e-6)
    for image, name in ((a, "lplssimA"), (b, "lplssimB")):
        assert [term.item() for term in lp_ssim_loss(image, fused)] == pytest.approx(golden[name].tolist(), rel=1e-6)


def test_losses_by_their_formulas():
    a, b, fused = (image.double() for image in (*inputs(12, 17, batch=2)[:2], inputs(12, 17, batch=2)[0].flip(3)))

    def sobel(image: np.ndarray) -> np.ndarray:
        kx = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        ky = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
        return abs(correlate(image, kx, mode="constant")) + abs(correlate(image, ky, mode="constant"))

    pairs = [tuple(image[sample, 0].numpy() for image in (a, b, fused)) for sample in range(2)]
    intensity = np.mean([abs(np.maximum(x, y) - f) for x, y, f in pairs])
    gradient = np.mean([abs(np.maximum(sobel(x), sobel(y)) - sobel(f)) for x, y, f in pairs])
    terms = [term.item() for term in fusion_loss(a, b, fused, grad_weight=3)]
    assert terms == pytest.approx([intensity + 3 * gradient, intensity, gradient], rel=1e-12)

    # One Gaussian window of 5x5, by its definition.
    squares = np.arange(-2, 3)[:, None] ** 2 + np.arange(-2, 3)[None] ** 2
    window = np.exp(-squares / (2 * 1.5**2))
    window /= window.sum()
    maps = []
    for x, _, f in pairs:
        mean = {name: correlate(image, window, mode="constant") for name, image in
                {"x": x, "f": f, "xx": x * x, "ff": f * f, "xf": x * f}.items()}  # fmt: skip
        c1, c2 = 0.0001, 0.0009
        luminance = (2 * mean["x"] * mean["f"] + c1) / (mean["x"] ** 2 + mean["f"] ** 2 + c1)
        spread = mean["xx"] - mean["x"] ** 2 + mean["ff"] - mean["f"] ** 2
        maps.append(luminance * (2 * (mean["xf"] - mean["x"] * mean["f"]) + c2) / (spread + c2))
    lp = math.sqrt(sum(((x - f) ** 2).sum() for x, _, f in pairs))
    dissimilarity = (1 - np.mean(maps)) * 14  # sqrt(12 * 17) = 14.28
    terms = [term.item() for term in lp_ssim_loss(a, fused)]
    assert terms == pytest.approx([lp + dissimilarity, lp, dissimilarity], rel=1e-12)


# The training


def test_weighted_lp_ssim_is_trained():
    net = TwinNet(hidden_dim=64, image2text_dim=8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    plain = train_step(net, optimizer, *inputs(16, 24))
    without = net.conv2.weight.grad.clone()
    weighted = train_step(net, optimizer, *inputs(16, 24), ssim_weight=0.5)
    assert plain[1:] == pytest.approx(weighted[1:])
    assert plain[0] == plain[1]
    assert weighted[0] == pytest.approx(weighted[1] + 0.5 * (weighted[2] + weighted[3]))
    assert not torch.allclose(net.conv2.weight.grad, without)


def test_checkpoints_come_back_and_fit_or_are_refused(tmp_path, net):
    path = tmp_path / "twin.pth"
    save_weights(net, path, epoch=3, step=12)
    content = torch.load(path, weights_only=True)
    assert (content["epoch"], content["step"]) == (3, 12)
    assert all(name.startswith("module.") for name in content["model"])
    other = TwinNet()
    load_weights(other, path)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())

    content["model"]["module.conv9.weight"] = content["model"].pop("module.conv2.weight")
    torch.save(content, path)
    with pytest.raises(UserError, match=r"twin\.pth: does not fit the network: .*conv2\.weight.*conv9\.weight"):
        load_weights(other, path)


def write_h5(path: Path, samples: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """An H5 as film.md section 4 has it: images (H,W) in 0..1, text (149,768)."""
    with h5py.File(path, "w") as file:
        for name, (a, b, text) in samples.items():
            file.create_dataset(f"imageA/{name}", data=a[None].astype(np.float32))
            file.create_dataset(f"imageB/{name}", data=b[None].astype(np.float32))
            file.create_dataset(f"text/{name}", data=text[None].astype(np.float32))


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a separate process, because a process keeps the memory that it once had."""
    command = [sys.executable, "-m", "tools.torch_twin", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def losses(lines: list[LogLine]) -> list[tuple[float, ...]]:
    return [(line.loss, line.loss_in_grad, line.lplssim_a, line.lplssim_b) for line in lines]


@pytest.fixture(scope="module")
def tiny_h5(tmp_path_factory) -> Path:
    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("h5") / "tiny.h5"
    write_h5(path, {name: (*rng.random((2, 16, 24)), rng.standard_normal(TEXT_SHAPE)) for name in "abc"})
    return path


def test_command(tmp_path, tiny_h5):
    """Crops of three samples in batches of one; stopped one step before the end of the second epoch."""
    result = train(
        "--dataset_path", tiny_h5, "--log", tmp_path / "log.txt", "--save", tmp_path / "weights.pth",
        "--batch_size", 1, "--numepochs", 2, "--max_steps", 5, "--lr", 1e-3, "--seed", 2,
        "--hidden_dim", 64, "--i2t_dim", 8, "--device", "cpu", "--threads", 1,
        "--crop", 12, 16, "--flip", "--grad_stages", "1:3", "2:5",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = read_log(tmp_path / "log.txt")
    assert [(line.epoch, line.epochs, line.batch, line.batches) for line in lines] == [
        (1, 2, 0, 3), (1, 2, 1, 3), (1, 2, 2, 3), (2, 2, 0, 3), (2, 2, 1, 3),
    ]  # fmt: skip
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].startswith("total_time: ")

    # The first loss by hand: the network of that seed on the sample that the loader of train.py takes first.
    torch.manual_seed(2)
    net = TwinNet(hidden_dim=64, image2text_dim=8)
    with H5Dataset(tiny_h5) as dataset:
        order = {"shuffle": True, "drop_last": True, "seed": 2, "epoch": 0}
        first = next(iter(Loader(dataset, batch_size=1, **order, augmentation=Augmentation((12, 16), flip=True))))
    assert first.names == ("c",)  # so that the order of the file would show
    a, b, text = map(torch.from_numpy, (first.image_a, first.image_b, first.text))
    with torch.no_grad():
        expected = fusion_loss(a, b, net(a, b, text), grad_weight=3)[0].item()
    assert lines[0].loss == pytest.approx(expected, rel=1e-5)

    before = net.conv2.bias.item()
    load_weights(net, tmp_path / "weights.pth")
    # Adam's steps are at most about lr each, and the first is lr.
    assert 0 < abs(net.conv2.bias.item() - before) < 5.5e-3
    assert torch.load(tmp_path / "weights.pth", weights_only=True)["step"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch_size", 4), "3 samples do not fill a batch of 4"),
        (("--pretrain", "gone.pth"), "gone.pth: no such checkpoint"),
        (("--dataset_path", "gone.h5"), "gone.h5: no such H5 file"),
        (("--log", "/proc/log.txt"), "/proc/log.txt: cannot be written"),
        (("--hidden_dim", 100), "--hidden_dim 100: expected a multiple of 8"),
        (("--lr", -1), "must be at least 0"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, tiny_h5, arguments, message):
    result = train("--dataset_path", tiny_h5, "--log", tmp_path / "log.txt", *arguments)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "log.txt").exists()


def training_image(path: Path) -> np.ndarray:
    """A training image as film.md section 4 reads it, longhand: (288,384) in 0..1."""
    gray = np.round(cv2.cvtColor(cv2.imread(str(path)).astype(np.float32), cv2.COLOR_BGR2GRAY)) / 255
    height, width = STAGE_SIZE
    landscape = gray.shape[0] < gray.shape[1]
    return cv2.resize(gray, (width, height)) if landscape else cv2.resize(gray, (height, width)).T


@needs_golden
@pytest.mark.slow
def test_official_trajectory(tmp_path):
    """18 steps of the official loop; five to eight minutes and 19 GB on two cores."""
    golden = json.loads((GOLDEN / "trajectory_official.json").read_text())
    data = SHARED / "data" / "RoadScene"
    samples = {
        name: (
            training_image(data / "cropinfrared" / f"{name}.jpg"),
            training_image(data / "crop_LR_visible" / f"{name}.jpg"),
            np.load(GOLDEN / "features" / "RoadScene" / f"{name}.npy")[0],
        )
        for name in golden["names"]
    }
    write_h5(tmp_path / "pairs.h5", samples)
    result = train(
        "--dataset_path", tmp_path / "pairs.h5", "--log", tmp_path / "log.txt", "--save", tmp_path / "end.pth",
        "--pretrain", CHECKPOINT, "--no_shuffle", "--numepochs", golden["epochs"], "--lr", golden["lr"],
        "--gamma", golden["gamma"], "--step_size", golden["step_size"], "--batch_size", golden["batch_size"],
        "--loss_ssim", golden["loss_ssim"], "--device", "cpu", "--threads", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr

    lines = read_log(tmp_path / "log.txt")
    assert [(line.epoch - 1, line.batch) for line in lines] == [tuple(row[:2]) for row in golden["rows"]]
    # The official code is 6e-6 from itself with another number of threads.
    np.testing.assert_allclose(losses(lines), [row[2:6] for row in golden["rows"]], rtol=3e-5)
    state = torch.load(tmp_path / "end.pth", weights_only=True)["model"]
    norms = {name.removeprefix("module."): value.norm().item() for name, value in state.items()}
    assert norms == pytest.approx(golden["final_param_norm"], rel=1e-4)
