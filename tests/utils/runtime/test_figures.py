"""Figures look the same whatever the environment says, and take any name."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from utils.runtime.figures import new_figure, short

ROOT = Path(__file__).resolve().parents[3]
DRAW = """
import sys
from pathlib import Path
from utils.runtime.cli import run_command
from utils.runtime.figures import new_figure, short

def main(argv):
    with new_figure(Path(sys.argv[1]), 2, 1, 50) as figure:
        figure.suptitle("a title")
        figure.subplots().plot([1, 3, 2])

sys.exit(run_command(main))
"""


def draw(path: Path, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", DRAW, path],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_environment_has_no_effect(tmp_path):
    """A notebook's backend that is not installed, settings of the person, and no place for matplotlib's own files."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: red\nfont.size: 30\n")
    drawn = draw(
        tmp_path / "odd.png",
        tmp_path,
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        MPLCONFIGDIR="/dev/null/x",
        HOME="/dev/null/y",
    )
    assert (drawn.returncode, drawn.stderr) == (0, "")
    with new_figure(tmp_path / "plain.png", 2, 1, 50) as figure:
        figure.suptitle("a title")
        figure.subplots().plot([1, 3, 2])
    assert (tmp_path / "odd.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_damaged_settings_of_matplotlib_are_one_line(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"\xff")
    drawn = draw(tmp_path / "x.png", tmp_path)
    assert drawn.returncode == 2
    assert drawn.stderr.splitlines()[-1].startswith("error: matplotlib: cannot be started (")
    assert "Traceback" not in drawn.stderr


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_names_may_hold_any_characters(suffix, tmp_path):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with new_figure(tmp_path / f"x{suffix}", 4, 3, 50) as figure:
            panel = figure.subplots()
            panel.set_title(short("$\\frac$ $x \u7ea2\u5916 \udcff\n" + 300 * "x"))
            panel.plot([1, 2], label="_hidden")
    assert not seen
    assert (tmp_path / f"x{suffix}").stat().st_size
