"""Run the sections of a report, each in its own process and within a time limit.

A section is a function that yields rows (dictionaries of JSON values). Rows are written as they come: if the function
fails, its process crashes, runs out of memory or takes too long, the rows so far stay, and one line says what happened.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from utils.runtime import programs
from utils.runtime.errors import OPTIONAL, missing

ROOT = Path(__file__).resolve().parents[1]
OK, FAILED, CUT, LEFT_OUT = "ok", "FAILED", "cut", "left out"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        name: shown in the report; also the name of its log file.
        function: yields the rows. It is imported by its name in a new process.
        budget: seconds that it may take.
        options: arguments of `function`, JSON values.
    """

    name: str
    function: Callable[..., Iterator[Row]]
    budget: float
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The outcome of a section; `note` says in one line why it did not end normally."""

    state: str
    seconds: float = 0.0
    rows: Sequence[Row] = ()
    note: str = ""


def run_section(section: Section, limit: float, folder: Path) -> Result:
    """Run a section for at most `limit` seconds.

    Args:
        folder: <name>.log gets what the process prints, <name>.jsonl the rows.
    """
    rows_file, log = folder / f"{section.name}.jsonl", folder / f"{section.name}.log"
    rows_file.touch()
    where = (section.function.__module__, section.function.__qualname__, json.dumps(dict(section.options)))
    started = time.monotonic()
    with log.open("w") as output:
        process = programs.start(
            [sys.executable, "-m", "tools.sections", str(rows_file), *where],
            **{"cwd": ROOT, "stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT},
            start_new_session=True,  # a group of its own, so that the processes that it starts can be ended with it
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
    seconds = time.monotonic() - started
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    errors = [row["error"] for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    if code is None:
        return Result(CUT, seconds, rows, f"ended after {limit:.0f} s, its time limit")
    if code == 0:
        return Result(OK, seconds, rows)
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Result(
        FAILED, seconds, rows, errors[-1] if errors else f"{ended}: {last_line(log.read_text(errors='replace'))}"
    )


def end_group(process: subprocess.Popen) -> None:
    """End a process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(text: str) -> str:
    """The last line with text, without the colours of Jittor's log and what a progress bar wrote over."""
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*m", "", text)) if line.strip()]
    return lines[-1].strip()[:300] if lines else "it printed nothing"


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line. Jittor's say first which operator failed with which inputs."""
    if isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL:
        return missing(error.name)
    lines = re.split(r"\[Reason\]:|Failed reason:", str(error))[-1].strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def write_rows(path: Path, module: str, function: str, options: str) -> int:
    """Be the process of a section: append the rows of the function to `path`, an exception as {"error": line}."""
    with path.open("a") as file:

        def write(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        try:
            for row in getattr(import_module(module), function)(**json.loads(options)):
                write(row)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            write({"error": reason_of(error)})
            return 1
    return 0


if __name__ == "__main__":
    # Without the destructors of CUDA libraries, whose crash would hide that all rows are there.
    code = write_rows(Path(sys.argv[1]), *sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
