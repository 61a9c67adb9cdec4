"""tools/bare_system.sh where it cannot make a system; .ci/run makes one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "dirname", "mkdir", "mktemp", "rm", "sed", "tail", "tr")


@pytest.fixture
def programs(tmp_path) -> Path:
    """A folder used as the complete PATH. Here everyone is root and may mount; there is no apt and no debootstrap."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    run_rest = 'while [ "${1#--}" != "$1" ]; do shift; done; [ "$1" = true ] || exec "$@"'
    for name, text in {"id": "echo 0", "git": "", "unshare": run_rest, "apt-get": ""}.items():
        program(folder, name, text)
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def bare_system(programs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it, and check that it leaves no folder behind."""
    temporary = programs.parent / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        ["bash", ROOT / "tools/bare_system.sh", *arguments],
        env={"PATH": str(programs), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not list(temporary.iterdir())
    return done


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("id", "echo 1000", "needs root"),
        ("debootstrap", None, "apt install debootstrap"),
        ("unshare", "exit 1", "mounting is not allowed"),
    ],
)
def test_what_is_missing_is_one_line(programs, name, text, word):
    program(programs, "debootstrap", "")
    if text is None:
        (programs / name).unlink()
    else:
        program(programs, name, text)
    done = bare_system(programs, "trixie")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert word in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_system_that_cannot_be_made_says_why(programs):
    program(programs, "debootstrap", 'echo "E: cannot reach the mirror for $*"; exit 1')
    done = bare_system(programs, "trixie")
    assert done.returncode == 2
    *_, reason, line = done.stderr.splitlines()
    assert re.match(r"E: .* --variant=minbase --include=g\+\+,make,python3-venv,python3-dev trixie /", reason)
    assert line == "error: debootstrap cannot make a Debian trixie here; the lines above say why"
