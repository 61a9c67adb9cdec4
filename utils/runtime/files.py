"""Files that are written completely or not at all, and file names that stay in their folder."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import shutil
import stat
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from utils.runtime.errors import UserError, of_system

# The temporary files of a killed process: names that `tempfile` makes from the prefix and suffix below.
_LEFTOVER = re.compile(r"\..*\.[a-z0-9_]{8}\.tmp(\.[^.]*)?")
# A file that was not modified for this long is no longer being written.
_IDLE_SECONDS = 3600.0
MAX_NAME = 255  # bytes, on all common file systems
# Their files are devices and links to open files, not places for results.
_SYSTEM = ("/dev", "/proc", "/sys")


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
    require_writable(path)
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


def write_text(path: Path | str, text: str) -> None:
    """Write a text as UTF-8, completely or not at all. Bytes of file names that are not UTF-8 are written as escapes.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_csv(path: Path | str, rows: Iterable[Iterable[object]]) -> None:
    """Write a table as CSV, as `write_text` does."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


@contextmanager
def naming(path: Path | str, problem: str = "cannot be written") -> Iterator[None]:
    """Turn an `OSError` of the body, which writes `path`, into a `UserError` with the file's name and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(of_system(error, path, problem)) from error


def require_writable(path: Path) -> None:
    """Raise `UserError` if the file `path` cannot be written. Long work starts after this, nothing is made here.

    A full disk does not show before. Devices, pipes and files of the system are no outputs: a file would replace them.
    """
    with naming(path):
        try:
            mode = path.stat().st_mode  # raises for names that are too long
        except (FileNotFoundError, NotADirectoryError):
            mode = stat.S_IFREG
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, "")
        folder = Path(os.path.realpath(path.parent))
        if any(folder.is_relative_to(place) for place in _SYSTEM) and not folder.is_relative_to("/dev/shm"):
            raise OSError(errno.EPERM, "")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path}: is no regular file, so it cannot be replaced; name another output")
        _require_folder(folder)
        if len(os.fsencode(path.name)) > MAX_NAME:
            raise OSError(errno.ENAMETOOLONG, "")


def is_file(path: Path | str) -> bool:
    """Whether `path` is a file.

    Raises:
        OSError: that cannot be found out, for instance because a folder above may not be opened. `Path.is_file` says
            False there, from Python 3.14 on, and the user would look for a file that is there.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path | str) -> bool:
    """Whether `path` is a folder; errors as for `is_file`."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path | str) -> int:
    try:
        return Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0


def require_readable(path: Path, problem: str) -> None:
    """Raise `UserError` if `path` is not a file that may be read; if there is none, its line ends with `problem`."""
    with naming(path, "cannot be read"):
        if not is_file(path):
            raise UserError(f"{path}: {problem}")
        path.open("rb").close()


@cache
def _require_folder(folder: Path) -> None:
    """Raise `OSError` unless files can be made in `folder`, or it can be made with the folders above it."""
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        return _require_folder(folder.parent)
    if not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, "")
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise OSError(errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES, "")


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
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise UserError(f"{where}: {name!r} holds a control character, or a byte that is not UTF-8; rename it")
    if name in ("", ".", "..") or "/" in name or os.sep in name:
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
    """Raise `UserError` if an output cannot be written, or names an input or another output.

    Also through links, `..`, or another case: names are compared by the file that they lead to, where it exists. Call
    it before anything is written.
    """
    files: dict[tuple[int, int], Path] = {}
    for path in inputs:
        with suppress(OSError, ValueError):  # no such file, or a name that none can have
            files[_identity(path)] = path
    places: dict[str, Path] = {}
    for path in outputs:
        require_writable(path)
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


def expanded(text: str) -> Path:
    """`text` as a path; `~` becomes the home folder.

    Raises:
        UserError: no home folder is known.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no HOME, and the system does not know the user
        raise UserError(f"{text}: {str(error).rstrip('.').lower()}; set HOME, or name the complete path") from error


def umask() -> int:
    """The umask of this process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
