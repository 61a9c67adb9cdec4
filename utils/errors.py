"""How a command of this project fails: one line, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Something a person can put right.

    The message is one line that names the file (or option) and what was expected of it, so that it reads well behind
    ``error: ``.
    """


def run_command(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run the `main` of a script and return its exit code.

    0 on success; 2, after one line on stderr, for a `UserError`; 130 for Ctrl-C. Any other exception is a bug of ours
    and keeps its traceback. Scripts end with ``sys.exit(run_command(main))``.
    """
    try:
        main(argv)
    except UserError as error:
        # Names of strangers' files are in it; none shall break the line or steer the terminal.
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
        print(f"error: {line}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
