"""How a command ends without the packages that only parts of it need."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from utils.runtime.cli import run_command
from utils.runtime.errors import OPTIONAL

ROOT = Path(__file__).resolve().parents[3]


def run_without(packages: Sequence[str], module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module in a process where the import of these packages raises what it raises if they are not installed."""
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({packages!r})); sys.argv[1:] = {arguments!r}; "
    code += f"runpy.run_module({module!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_a_missing_optional_package_is_one_line(capsys, name):
    def main(argv):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    assert run_command(main) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {name}: not installed")
    assert error.count("\n") == 1


def test_another_missing_module_is_a_bug():
    def main(argv):
        raise ModuleNotFoundError("No module named 'x'", name="x")

    with pytest.raises(ModuleNotFoundError):
        run_command(main)


@pytest.mark.parametrize("script", ["train", "fuse", "data_process", "tools.doctor", "tools.evaluate"])
def test_scripts_start_without_torch(script):
    done = run_without(OPTIONAL, script, "--help")
    assert done.returncode == 0, done.stderr


def test_the_twin_without_torch_is_one_line():
    done = run_without(OPTIONAL, "tools.torch_twin", "--log", "x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch: not installed")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("packages", [["torch"], ["transformers", "huggingface_hub"]])
def test_a_text_encoder_without_its_package_is_one_line(tmp_path, packages):
    """The line comes before the encoder is looked for, and it is the only one: no warning of transformers."""
    pytest.importorskip("torch")
    options = ("--dataset", "Sample", "--mode", "test", "--text_encoder", "bert", "--out", str(tmp_path / "h5"))
    done = run_without(packages, "data_process", *options)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {packages[0]}: not installed")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "h5").exists()
