"""Exported weights: read back by the program that each kind is for, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from net.shapes import TEXT_SHAPE
from tests.golden.rule import text_feature, weight
from tools.export import ONNX_INPUTS, export, main
from utils.runtime.errors import UserError
from utils.training.checkpoint import read_checkpoint, read_weights

torch = pytest.importorskip("torch")

from tools.torch_film import TwinNet  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in TwinNet().state_dict().items()}
    return {name: weight(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "ckpt_3.pkl"
    model = {name: torch.from_numpy(value) for name, value in weights.items()}
    torch.save({"model": model, "epoch": 3, "text_encoder": "bert", "optimizer": {"lr": 1e-5}}, path)
    return path


def test_pth_loads_into_the_official_network(weights, checkpoint, tmp_path):
    path = export(checkpoint, "pth", tmp_path / "film.pth")
    content = torch.load(path, weights_only=True)
    assert content["epoch"] == 3
    # The official scripts wrap the network in DataParallel.
    net = torch.nn.DataParallel(TwinNet())
    net.load_state_dict(content["model"], strict=True)
    assert all(np.array_equal(net.module.state_dict()[name].numpy(), value) for name, value in weights.items())


def test_safetensors_are_read_here_and_by_the_library(weights, checkpoint, tmp_path):
    from safetensors import safe_open

    path = export(checkpoint, "safetensors", tmp_path / "film.safetensors")
    read = read_weights(path)
    assert all(np.array_equal(read[name], value) for name, value in weights.items())
    assert read_checkpoint(path)["text_encoder"] == "bert"
    with safe_open(path, framework="np") as file:
        assert sorted(file.keys()) == sorted(weights)
        assert file.metadata() == {"network": "FILM", "epoch": "3", "text_encoder": "bert"}


def test_safetensors_need_neither_torch_nor_jittor(checkpoint, tmp_path):
    code = f"""
import sys
sys.modules |= dict.fromkeys(("torch", "jittor", "jittor_utils"))  # an import of these raises
from tools.export import main
main([{str(checkpoint)!r}, "--to", "safetensors", "-o", {str(tmp_path / "x.safetensors")!r}])
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    assert len(read_weights(tmp_path / "x.safetensors")) == 189


@pytest.mark.parametrize("kind", ["pth", "onnx"])
def test_without_torch_one_line_says_so(checkpoint, tmp_path, kind):
    code = """
import importlib.abc, sys
class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())
from tools.export import main
from utils.runtime.cli import run_command
sys.exit(run_command(main))
"""
    arguments = (checkpoint, "--to", kind, "-o", tmp_path / "film")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch: not installed")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_file_is_written_beside_the_weights_and_replaces_none(checkpoint, tmp_path, capsys):
    source = tmp_path / "x.pkl"
    source.write_bytes(checkpoint.read_bytes())
    main([str(source), "--to", "safetensors"])
    assert "x.safetensors: 8.3 MB" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"x.safetensors: exists already"):
        main([str(source), "--to", "safetensors"])
    (tmp_path / "link.safetensors").symlink_to(source)
    with pytest.raises(UserError, match=r"link.safetensors: exists already"):
        main([str(source), "--to", "safetensors", "-o", str(tmp_path / "link.safetensors")])
    assert source.read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize("kind", ["pth", "onnx"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv2.weight"), "does not fit the network: .*conv2.weight"),
        (lambda w: w.pop("text_process.conv.weight"), "does not fit the network: .*text_process.conv.weight"),
        (lambda w: w.update({"conv2.bias": np.ones(2, np.float32)}), "does not fit the network: .*conv2.bias"),
        (lambda w: w.update({"conv2.bias": np.full(1, np.nan, np.float32)}), "conv2.bias is not finite"),
        (lambda w: w.update({"text_process.conv.weight": np.ones((7, 768, 1), np.float32)}), "does not fit"),
    ],
)
def test_weights_of_another_network_are_refused(weights, tmp_path, kind, change, message):
    changed = dict(weights)
    change(changed)
    source = tmp_path / "x.pkl"
    torch.save({name: torch.from_numpy(value) for name, value in changed.items()}, source)
    with pytest.raises(UserError, match=f"x.pkl: {message}"):
        export(source, kind, tmp_path / "film")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pkl"]


@pytest.mark.slow
def test_onnx_runtime_agrees_with_jittor_at_any_size(weights, checkpoint, tmp_path):
    """Half a minute. One size is odd, one is portrait, and at 80 rows ONNX's Resize would take other pixels."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from net.Film import Net
    from utils.runtime.jittor_env import jt
    from utils.training.checkpoint import load_weights

    path = export(checkpoint, "onnx", tmp_path / "film.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {x.name: x.shape for x in session.get_inputs()} == {
        "image_a": [1, 1, "height", "width"],
        "image_b": [1, 1, "height", "width"],
        "text": [1, *TEXT_SHAPE],
    }
    assert session.get_modelmeta().custom_metadata_map["text_encoder"] == "bert"
    net = Net()
    load_weights(net, checkpoint)
    rng = np.random.default_rng(0)
    for size in ((75, 93), (112, 64), (80, 111)):
        inputs = (*rng.random((2, 1, 1, *size), dtype=np.float32), text_feature())
        (fused,) = session.run(["fused"], dict(zip(ONNX_INPUTS, inputs, strict=True)))
        with jt.no_grad():
            expected = net(*map(jt.array, inputs)).numpy()
        assert np.abs(fused - expected).max() < 1e-5, size
