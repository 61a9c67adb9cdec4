"""How a command of this project fails: one line, exit code 2, no traceback."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Sequence

EXIT_BUG = 1
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
    is a bug of ours and keeps its traceback. Among several processes the one that fails ends the others. Scripts end
    with ``sys.exit(run_command(main))``.
    """
    from utils.runtime import processes  # it needs `UserError`

    processes.silence_others()
    try:
        main(argv)
    except UserError as error:
        # Names of strangers' files are in it; none shall break the line or steer the terminal.
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
        return processes.leave(EXIT_USAGE, f"error: {line}")
    except KeyboardInterrupt as stop:
        number = stop.signal if isinstance(stop, Stopped) else signal.SIGINT
        word = "terminated" if number == signal.SIGTERM else "interrupted"
        return processes.leave(128 + number, word, by_agreement=True)
    except Exception:
        if processes.count() == 1:
            raise
        return processes.leave(EXIT_BUG, traceback.format_exc())
    return 0
