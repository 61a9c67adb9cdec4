"""How a command ends without the packages that only parts of it need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from utils.runtime.cli import run_command

ROOT = Path(__file__).resolve().parents[3]
# What an import of a package that is not installed raises.
WITHOUT_TORCH = "import sys, runpy; sys.modules['torch'] = sys.modules['transformers'] = None; "


def run_without_torch(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT_TORCH + f"sys.argv[1:] = {list(arguments)}; runpy.run_module({module!r}, run_name='__main__')"
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
    done = run_without_torch(script, "--help")
    assert done.returncode == 0, done.stderr


def test_the_twin_without_torch_is_one_line():
    done = run_without_torch("tools.torch_twin", "--log", "x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch: not installed")
    assert done.stderr.count("\n") == 1
