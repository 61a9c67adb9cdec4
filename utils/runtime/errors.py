"""How a command of this project fails: one line, exit code 2, no traceback."""

from __future__ import annotations

import signal

EXIT_BUG = 1
EXIT_USAGE = 2
# Packages that are imported only if needed, and may be missing.
OPTIONAL = ("torch", "transformers")


class UserError(Exception):
    """An error that the user can fix.

    The message is one line. It names the file or option and what was expected, and is printed after ``error: ``.
    """


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end. The exit code is 128 + the signal's number, as in a shell."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


def missing(package: str) -> str:
    """What to do about an `OPTIONAL` package that is not installed."""
    return (
        f"{package}: not installed; text encoders, the PyTorch twin, .pth and ONNX export need it: "
        f'pip install {package} (CPU build of torch: see "PyTorch" in the README)'
    )
