"""Command lines: exit codes, the format of --help, and shared option types and options."""

from __future__ import annotations

import argparse
import math
import signal
import traceback
from collections.abc import Callable, Sequence

from utils.runtime import processes
from utils.runtime.errors import EXIT_BUG, EXIT_USAGE, OPTIONAL, Stopped, UserError, missing


def run_command(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run the `main` of a script and return its exit code.

    0 on success; 2, after one line on stderr, for a `UserError` or a missing `OPTIONAL` package; 130 for Ctrl-C, 143
    for SIGTERM. Any other exception is a bug and keeps its traceback. If one of several processes fails, it ends the
    others. Scripts end with ``sys.exit(run_command(main))``.
    """
    processes.silence_others()
    try:
        main(argv)
    except UserError as error:
        # It may contain file names from untrusted data: escape line breaks and terminal control characters.
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
        return processes.leave(EXIT_USAGE, f"error: {line}")
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        return processes.leave(EXIT_USAGE, f"error: {missing(error.name)}")
    except KeyboardInterrupt as stop:
        number = stop.signal if isinstance(stop, Stopped) else signal.SIGINT
        word = "terminated" if number == signal.SIGTERM else "interrupted"
        return processes.leave(128 + number, word, by_agreement=True)
    except Exception:
        if processes.count() == 1:
            raise
        return processes.leave(EXIT_BUG, traceback.format_exc())
    return 0


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows the default of each option that has one, except of flags."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, []) and action.default is not False
        return super()._get_help_string(action) if shown else action.help


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


def stage(text: str) -> str:
    """``EPOCH:WEIGHT``: the weight (at least 0) that applies from this epoch (at least 1)."""
    epoch, weight = text.split(":")
    positive_int(epoch)
    not_negative(weight)
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
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to compute; auto: a working GPU, else the CPU; a line says why",
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="on a GPU, compute matrix products in TF32 (10-bit mantissa): faster, but outside the README's tolerances",
    )
