"""How a command of this project fails: one line, exit code 2, no traceback."""

from __future__ import annotations

import errno
import os
import signal

EXIT_BUG = 1
EXIT_USAGE = 2
# Packages that are imported only if needed, and may be missing.
OPTIONAL = ("torch", "transformers")
# The way out of an error of the system, where its own words do not show it.
_WAYS_OUT = {
    errno.ENOSPC: "free some space there, then run it again",
    errno.EDQUOT: "free some of your quota there, then run it again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), then run it again",
    errno.EACCES: "ask its owner for access, or choose another place",
    errno.EPERM: "ask its owner for access, or choose another place",
    errno.EROFS: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of this path is a file, where a folder is needed",
    errno.EISDIR: "name a file",
    errno.EEXIST: "there is a file, where a folder is needed",
    errno.ELOOP: "the link leads to itself",
}


class UserError(Exception):
    """An error that the user can fix.

    The message is one line. It names the file or option and what was expected, and is printed after ``error: ``.
    """


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end. The exit code is 128 + the signal's number, as in a shell."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


def of_system(error: OSError, path: object = None, problem: str = "cannot be used") -> str:
    """One line about an error of the operating system: the file, the reason, and the way out.

    Args:
        error: the error.
        path: the file (default: that of the error).
        problem: what is the matter with it.
    """
    path = os.fsdecode(error.filename) if path is None else path
    # Not `error.strerror`: h5py's has several lines.
    reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
    way_out = _WAYS_OUT.get(error.errno, "")
    return f"{path}: {problem} ({reason})" + (f"; {way_out}" if way_out else "")


def printable(text: str) -> str:
    """The text in one line: control characters, and bytes of file names that are not UTF-8, become escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_line(error: Exception) -> str:
    """The first line of an error's message, else its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def missing(package: str) -> str:
    """What to do about an `OPTIONAL` package that is not installed."""
    return (
        f"{package}: not installed; text encoders, the PyTorch twin, .pth and ONNX export need it: "
        f'pip install {package} (CPU build of torch: see "PyTorch" in docs/install.md)'
    )


def fault(error: Exception) -> str | None:
    """What the user can do about an error, in one line; None if it is a bug.

    Errors of the operating system that name a file are about the user's files: a folder of another user, a name that
    is too long, a link to itself. A message of our own says more, where it is known what the file is for.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike):
        return of_system(error)
    if isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL:
        return missing(error.name)
    return None
