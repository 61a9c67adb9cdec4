"""Figures look the same whatever the environment says, and take any name."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from utils.runtime.errors import printable
from utils.runtime.figures import new_figure

ROOT = Path(__file__).resolve().parents[3]
DRAW = """
import sys
from pathlib import Path
from utils.runtime.cli import run_command
from utils.runtime.figures import new_figure

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


def test_without_any_folder_for_matplotlib_there_is_one_line(tmp_path):
    # The working folder was deleted, and matplotlib asks where it is.
    (tmp_path / "gone").mkdir()
    code = f"import os; os.chdir({str(tmp_path / 'gone')!r}); os.rmdir({str(tmp_path / 'gone')!r})\n{DRAW}"
    drawn = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.png"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert drawn.returncode == 2
    assert drawn.stderr.startswith("error: matplotlib: cannot be started (")
    assert len(drawn.stderr.splitlines()) == 1


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_names_may_hold_any_characters(suffix, tmp_path):
    with warnings.catch_warnings(), new_figure(tmp_path / f"x{suffix}", 2, 1, 50) as figure:
        warnings.simplefilter("error")
        panel = figure.subplots()
        panel.set_title(printable("$\\frac$ $x \u7ea2\u5916 \udcff\n"))
        panel.plot([1, 2], label="_hidden")
    assert (tmp_path / f"x{suffix}").stat().st_size
