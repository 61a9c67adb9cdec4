"""Command lines: exit codes, the format of --help, and shared option types and options."""

from __future__ import annotations

import argparse
import errno
import io
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.runtime import cuda, processes, signals
from utils.runtime.errors import EXIT_BUG, EXIT_USAGE, Stopped, UserError, fault, of_system, printable


def run_command(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run the `main` of a script and return its exit code.

    - 0: success.
    - 2: a `fault` of the user, or a full GPU; one line on stderr says what.
    - 128 + its number: a signal that asks to stop (130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP).

    Any other exception is a bug and keeps its traceback. If one of several processes fails, it ends the others. Scripts
    end with ``sys.exit(run_command(main))``.
    """
    secure_streams()
    try:
        processes.silence_others()
        with signals.handling(signals.raise_stopped):
            main(argv)
        sys.stdout.flush()
        raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
        if isinstance(raw, _Stream) and raw.problem:
            raise UserError(of_system(raw.problem, "standard output", "cannot be written"))
    except KeyboardInterrupt as stop:
        number = stop.signal if isinstance(stop, Stopped) else signal.SIGINT
        word = "terminated" if number == signal.SIGTERM else "interrupted"
        return processes.leave(128 + number, word, by_agreement=True)
    except Exception as error:
        if line := fault(error) or cuda.out_of_memory(str(error)):
            # It may contain file names from untrusted data.
            return processes.leave(EXIT_USAGE, f"error: {printable(line)}")
        if processes.count() == 1:
            raise
        return processes.leave(EXIT_BUG, traceback.format_exc())
    return 0


class _Stream(io.FileIO):
    """Standard output or error that never raises: a training must not end because a line could not be shown.

    Nobody may read it any more (``| head``, a closed terminal). Other reasons, such as a full disk, are in `problem`.
    """

    problem: OSError | None = None

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                self.problem = error
            return memoryview(data).nbytes


def secure_streams() -> None:
    """Make it safe to print: with any encoding of the terminal, and whether or not the output is read.

    What cannot be encoded is printed as escapes. A stream that was closed before the start (``>&-``) leads to nowhere.
    Otherwise the next file that is opened, such as an H5 file, would become standard output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets this number
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            buffer = io.BufferedWriter(_Stream(stream.fileno(), "wb", closefd=False))
            lines = stream.line_buffering or stream.write_through
            wrapped = io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=lines)
            setattr(sys, name, wrapped)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows the default of each option that has one, except of flags."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, "", []) and action.default is not False
        return super()._get_help_string(action) if shown else action.help


class RawHelpFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The same, with the line breaks of the description."""


def positive_int(text: str) -> int:
    """An integer greater than 0."""
    return _at_least(int(text), 1)


def positive(text: str) -> float:
    """A finite number greater than 0."""
    value = _at_least(float(text), 0)
    if value == 0:
        raise argparse.ArgumentTypeError("must be greater than 0")
    return value


def not_negative(text: str) -> float:
    """A finite number, at least 0."""
    return _at_least(float(text), 0)


def not_empty(text: str) -> str:
    """A path or name that is not empty; an empty one is mostly a shell variable that is not set."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("holds a NUL, which no path does" if text else "is empty")
    return text


def path_type(text: str) -> Path:
    """A path that is not empty; `Path` reads an empty one as the current folder."""
    return Path(not_empty(text))


def name_type(text: str) -> str:
    """The name of a data set, of which names of files are made."""
    if text in ("", ".", "..") or "/" in text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a plain name, not a path")
    return text


def text_type(text: str) -> str:
    """A text in valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("is not UTF-8") from error
    return text


def _at_least(value: float, least: float) -> float:
    if not math.isfinite(value) or value < least:
        raise argparse.ArgumentTypeError(f"{value}: must be at least {least}")
    return value


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """Add --threads, the argument of `utils.runtime.processes.use_threads`."""
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads that compute on the CPU, in each process (default: one per core that this process may use)",
    )


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add --threads, --device and --tf32; the latter are the arguments of `utils.runtime.jittor_env.use_device`."""
    add_threads_option(parser)
    parser.add_argument(
        "--device",
        choices=cuda.DEVICES,
        default="auto",
        help="where to compute; auto: a working GPU, else the CPU; a line says why",
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="on a GPU, compute matrix products in TF32 (10-bit mantissa): faster, but outside the tolerances of "
        "docs/loss-curves.md",
    )
