"""How a command of this project fails: one line, exit code 2, no traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

EXIT_USAGE = 2


class UserError(Exception):
    """Something a person can put right.

    The message is one line that names the file (or option) and what was expected of it, so that it reads well behind
    ``error: ``.
    """


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end. Its exit code is 128 and the signal's number, as a shell has it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


def run_command(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run the `main` of a script and return its exit code.

    0 on success; 2, after one line on stderr, for a `UserError`; 130 for Ctrl-C, 143 for SIGTERM. Any other exception
    is a bug of ours and keeps its traceback. Scripts end with ``sys.exit(run_command(main))``.
    """
    try:
        main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt as stop:
        number = stop.signal if isinstance(stop, Stopped) else signal.SIGINT
        print("terminated" if number == signal.SIGTERM else "interrupted", file=sys.stderr)
        return 128 + number
    return 0
