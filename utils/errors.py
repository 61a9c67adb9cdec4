"""How a command of this project fails: one line, exit code 2, no traceback."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

EXIT_BUG = 1
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
    and keeps its traceback. Scripts end with ``sys.exit(run_command(main))``. Among several processes the one that
    fails ends the others.
    """
    from utils import processes  # it needs `UserError`

    processes.silence_others()
    try:
        main(argv)
    except UserError as error:
        return processes.leave(EXIT_USAGE, f"error: {error}")
    except KeyboardInterrupt:
        return processes.leave(EXIT_INTERRUPTED, "interrupted", by_agreement=True)
    except Exception:
        if processes.count() == 1:
            raise
        return processes.leave(EXIT_BUG, traceback.format_exc())
    return 0
