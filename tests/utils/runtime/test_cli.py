"""How commands exit, and option types."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils.runtime import processes
from utils.runtime.cli import run_command
from utils.runtime.errors import Stopped, UserError


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("x.png: gone"), 2, "error: x.png: gone"),
        (UserError("红 外\n\x1b[2J"), 2, "error: 红 外\\n\\x1b[2J"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped(signal.SIGTERM), 143, "terminated"),
    ],
)
def test_commands_fail_in_one_line(error, code, line, capsys):
    def main(argv):
        raise error

    assert run_command(main) == code
    assert capsys.readouterr().err == line + "\n"
    assert run_command(lambda argv: None) == 0


def test_an_error_of_the_system_names_the_file_and_the_way_out(tmp_path, capsys):
    def main(argv):
        (tmp_path / ("x" * 300)).read_bytes()

    assert run_command(main) == 2
    line = capsys.readouterr().err
    assert line == f"error: {tmp_path}/{'x' * 300}: cannot be used (File name too long); choose a shorter name\n"
    with pytest.raises(OSError, match="bug"):  # it names no file
        run_command(lambda argv: (_ for _ in ()).throw(OSError("bug")))


# A command that prints much, then writes a file; its work is done whatever happens to what it prints.
PRINTS = r"""
import sys
from pathlib import Path
from utils.runtime.cli import run_command

def main(argv):
    with Path(sys.argv[1]).open("w") as file:
        for _ in range(5000):
            print("\u7ea2 \udcff", flush=True)
            print("progress", end="\r", file=sys.stderr, flush=True)
        file.write("done")

sys.exit(run_command(main))
"""


def printing(out: Path, redirection: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `PRINTS` in a shell with this redirection; it is to write `out`."""
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" "$2" {redirection}', sys.executable, PRINTS, out],
        cwd=Path(__file__).resolve().parents[3],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("redirection", ["| head -1", "2>&1 | head -1", ">&- 2>&-", "<&- >&-"])
def test_a_command_does_its_work_if_nobody_reads_what_it_prints(redirection, tmp_path):
    done = printing(tmp_path / "x", f"{redirection}; echo ${{PIPESTATUS[0]}} >&2")
    assert (tmp_path / "x").read_text() == "done"
    assert done.stderr.split()[-1] == "0"


def test_a_full_disk_below_standard_output_is_one_line(tmp_path):
    done = printing(tmp_path / "x", "> /dev/full")
    assert (tmp_path / "x").read_text() == "done"
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: standard output: cannot be written (No space left on device); free some space there, then run it again"
    )


def test_what_the_terminal_cannot_show_is_printed_as_escapes(tmp_path):
    done = printing(tmp_path / "x", "| head -1", PYTHONIOENCODING="ascii")
    assert done.stdout == "\\u7ea2 \\udcff\n"


@pytest.mark.parametrize("text", ["", " ", "abc", "-1", "1e3", "\u00b2", "9" * 5000])
def test_odd_numbers_of_processes_have_no_effect(text, monkeypatch):
    for name in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", text)
    assert (processes.count(), processes.rank(), processes.local_count(), processes.local_rank()) == (1, 0, 1, 0)
