"""Files that are written completely or not at all, and file names that stay in their folder."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from utils.runtime.errors import UserError

# The temporary files of a killed process: names that `tempfile` makes from the prefix and suffix below.
_LEFTOVER = re.compile(r"\..*\.[a-z0-9_]{8}\.tmp(\.[^.]*)?")
# A file that was not modified for this long is no longer being written.
_IDLE_SECONDS = 3600.0
_WAYS_OUT = {
    errno.ENOSPC: "; free some space there, then run it again",
    errno.EDQUOT: "; free some of your quota there, then run it again",
    errno.EFBIG: "; raise the limit on file sizes (ulimit -f), then run it again",
}


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; at the end, flush the file to disk and rename it to `path`.

    If the body raises, the temporary file is removed and an old file at `path` is kept. If the process is killed, the
    temporary file stays: `is_leftover` recognizes it, and a later process that writes to the folder removes it. The
    temporary name keeps the suffix, because image and plot writers choose their format by it. Missing parent folders
    are made.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_old_leftovers(path.parent)
            # 40 characters are at most 160 bytes of UTF-8; a file name can have 255.
            handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=f".tmp{path.suffix}", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            flush(temporary)
            temporary.chmod(0o666 & ~umask())
            temporary.replace(path)
            flush(path.parent)
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the body, which writes `path`, into a `UserError` with the file's name and what to do."""
    try:
        yield
    except OSError as error:
        # Not `error.strerror`: h5py's has several lines.
        reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be written ({reason}){_WAYS_OUT.get(error.errno, '')}") from error


def flush(path: Path) -> None:
    """Write a file, or the entries of a folder, from the system's cache to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_leftover(name: str) -> bool:
    """Whether this is the name of a temporary file that a killed process has left."""
    return _LEFTOVER.fullmatch(name) is not None


def remove_leftovers(folder: Path, idle: float = _IDLE_SECONDS) -> None:
    """Remove temporary files of killed processes from `folder`, if they were not modified for `idle` seconds."""
    for path in folder.iterdir():
        # Another process may remove it at the same time, or another user may own it.
        with suppress(OSError):
            if is_leftover(path.name) and time.time() - path.stat().st_mtime >= idle:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


# Once per process and folder: listing thousands of images for each new one would take longer than writing it.
_remove_old_leftovers = cache(remove_leftovers)


def require_plain_name(name: str, where: Path | str) -> None:
    """Raise `UserError` unless a name, read from `where`, is a plain file name (not `../x`, `/x` or `x/y`)."""
    # Cc: NUL ends a file name, the others break lists and terminals. Cs (surrogates) cannot be encoded.
    hidden = any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    if hidden or name in ("", ".", "..") or "/" in name or os.sep in name:
        raise UserError(f"{where}: {name!r} leads out of its folder; expected a plain file name")


def require_inside(path: Path, folder: Path, follow_links: bool = False) -> Path:
    """Return `path`, made of `folder` and a name; raise `UserError` if the file is a link that leads out of the folder.

    The folder itself, and folders below it, may be links: their owner made them on purpose. With `follow_links`, all
    links may lead anywhere.
    """
    if not follow_links and path.is_symlink():
        target = path.resolve()
        if not any(target.is_relative_to(home.resolve()) for home in (folder, path.parent)):
            raise UserError(
                f"{path}: is a link that leads out of its folder; copy the file, link the complete folder, or use "
                "--follow_links if you trust this data"
            )
    return path


def require_separate(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise `UserError` if an output names an input or another output: through links, `..`, or another case.

    Call it before anything is written. Names are compared by the file that they lead to, where it exists.
    """
    files: dict[tuple[int, int], Path] = {}
    for path in inputs:
        with suppress(OSError, ValueError):  # no such file, or a name that none can have
            files[_identity(path)] = path
    places: dict[str, Path] = {}
    for path in outputs:
        with suppress(OSError):
            if same := files.get(_identity(path)):
                also = "" if same == path else f" (the same file as {same})"
                raise UserError(f"{path}: would overwrite an input{also}; name another output")
        place = os.path.realpath(path)
        place = unicodedata.normalize("NFC", place).casefold() if _ignores_case(path.parent) else place
        if place in places:
            raise UserError(f"{path}: the same file as another output, {places[place]}; name another output")
        places[place] = path


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


@cache
def _ignores_case(folder: Path) -> bool:
    """Whether the file system of `folder`, or of the nearest folder above that exists, ignores case."""
    folder = Path(os.path.realpath(folder))
    for place in (folder, *folder.parents):
        other = place.with_name(place.name.swapcase()) if place.name else place
        if place.exists() and other != place:
            return other.exists() and other.samefile(place)
    return False


def umask() -> int:
    """The umask of this process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
