"""Files that are either whole or absent, and names that stay in their folder."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import UserError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, flush it to disk and rename it to `path`.

    If the body raises, the temporary file is removed and whatever stood at `path` before stands there still. The
    temporary name keeps the suffix, because image and plot writers choose their format by it. Missing parent folders
    are made.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:80]}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()


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


def _umask() -> int:
    """The process's umask; there is no way to read it but to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
