"""Files that are either whole or absent, and names that stay in their folder."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from utils.runtime.errors import UserError

# What a killed process leaves: the name that `tempfile` makes of the prefix and suffix below.
_LEFTOVER = re.compile(r"\..*\.[a-z0-9_]{8}\.tmp(\.[^.]*)?")
# Whoever still writes has touched the file within this time.
_IDLE_SECONDS = 3600.0
_WAYS_OUT = {
    errno.ENOSPC: "; free some space there, then run it again",
    errno.EDQUOT: "; free some of your quota there, then run it again",
    errno.EFBIG: "; lift the limit on the size of files (ulimit -f), then run it again",
}


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, flush it to disk and rename it to `path`.

    If the body raises, the temporary file is removed and whatever stood at `path` before stands there still. If the
    process dies, the temporary file stays: `is_leftover` knows it, and a later process that writes to the folder
    removes it. The temporary name keeps the suffix, because image and plot writers choose their format by it. Missing
    parent folders are made.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_old_leftovers(path.parent)
            # 40 characters are at most 160 bytes: a long name in Chinese still fits the 255 of a file name.
            handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=f".tmp{path.suffix}", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            flush(temporary)
            temporary.chmod(0o666 & ~umask())
            temporary.replace(path)
            temporary = None
            flush(path.parent)
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the body, which writes `path`, into one line that names the file and the way out.

    Raises:
        UserError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        # Not `strerror`: h5py's goes over several lines.
        reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be written ({reason}){_WAYS_OUT.get(error.errno, '')}") from error


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, from the system's memory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is one that a killed process was writing: no data."""
    return _LEFTOVER.fullmatch(name) is not None


def remove_leftovers(folder: Path, idle: float = _IDLE_SECONDS) -> None:
    """Remove what killed processes were writing in `folder`, if nobody has touched it for `idle` seconds."""
    for path in folder.iterdir():
        # Another process may remove it at the same time, or own it.
        with suppress(OSError):
            if is_leftover(path.name) and time.time() - path.stat().st_mtime >= idle:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


# Once a process is enough: to list a folder of thousands of images for each of them would take longer than writing.
_remove_old_leftovers = cache(remove_leftovers)


def require_plain_name(name: str, where: Path | str) -> None:
    """Refuse a name, found in `where`, that is not that of a file in a folder: `../x`, `/x`, `x/y`, control characters.

    Raises:
        UserError: it is none.
    """
    # A NUL ends names, the rest of Cc spoils lists and terminals, Cs is what no encoding can write.
    hidden = any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    if hidden or name in ("", ".", "..") or "/" in name or os.sep in name:
        raise UserError(f"{where}: {name!r} leads out of its folder; plain file names were expected")


def require_inside(path: Path, folder: Path) -> Path:
    """Give `path` back, which was made of `folder` and a name, unless a link at its end leads out of the folder.

    The folder itself, and folders between the two, may be links: whoever made them wanted their files.

    Raises:
        UserError: the file is a link that leads out.
    """
    if path.is_symlink():
        target = path.resolve()
        if not any(target.is_relative_to(home.resolve()) for home in (folder, path.parent)):
            raise UserError(f"{path}: is a link that leads out of its folder; copy the file, or link the whole folder")
    return path


def umask() -> int:
    """The process's umask; there is no way to read it but to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
