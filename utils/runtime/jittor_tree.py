"""A copy of the installed Jittor that works with NumPy 2 and Python 3.13 and 3.14; the installed one is not touched.

jittor-1.3.11.patch says what is changed and why. It is applied only if each file to change is the very file that it was
written for (by SHA-256): any other Jittor, such as a later one that works with NumPy 2, is used as it is. The patched
Jittor also works with NumPy 1.

All environments of a user share one copy, so what one of them has compiled is not compiled again for another
with the same Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from utils.runtime.errors import UserError
from utils.runtime.files import expanded, naming

PATCH = Path(__file__).with_name("jittor-1.3.11.patch")
PACKAGES = ("jittor", "jittor_utils")
# Jittor's own tests, examples and caches: never imported, never compiled.
LEFT_OUT = {"test", "demo", "notebook", "__pycache__"}


class Change(NamedTuple):
    """What the patch does to one file, whose SHA-256 it names: (old, new) text for each hunk."""

    sha256: str
    hunks: list[tuple[str, str]]


def prefer_patched(patch: Path = PATCH) -> Path | None:
    """Put a patched copy of the installed Jittor first on the path; return its folder (None: the patch does not apply).

    Raises:
        UserError: the copy cannot be written.
    """
    # Not importlib.util.find_spec, which would return a Jittor that is already imported.
    spec = PathFinder.find_spec("jittor")
    if spec is None or spec.origin is None:
        return None
    installed = Path(spec.origin).parents[1]
    changes = read_patch(patch.read_text(encoding="utf-8"))
    if not applies(changes, installed):
        return None
    parent = cache_folder() / "film"
    with _naming_cache(parent):
        tree = patched_copy(installed, changes, parent)
    sys.path.insert(0, str(tree))
    return tree


def jittor_home() -> Path:
    """The folder below which Jittor has its cache, `.cache/jittor`, found without starting Jittor.

    It is $JITTOR_HOME, else the value that Jittor saved at an earlier start with this variable, else the home folder.
    """
    if home := os.environ.get("JITTOR_HOME"):
        return Path(home)
    own = expanded("~")
    try:
        noted = json.loads((own / ".cache" / "jittor" / "config.json").read_text(encoding="utf-8"))
        return Path(noted["JITTOR_HOME"])
    except (OSError, ValueError, KeyError, TypeError):
        return own


def cache_folder() -> Path:
    """The folder of Jittor's cache."""
    return jittor_home() / ".cache" / "jittor"


def require_cache() -> None:
    """Raise `UserError` if nothing can be written to Jittor's cache, which Jittor needs at every start."""
    folder = cache_folder()
    with _naming_cache(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def _naming_cache(folder: Path) -> Iterator[None]:
    """`naming`, with the way to another cache."""
    try:
        with naming(folder):
            yield
    except UserError as error:
        raise UserError(f"{error}; JITTOR_HOME=DIR puts Jittor's cache into another folder") from error


def read_patch(text: str) -> dict[str, Change]:
    """The changes of a unified diff, by file; each file's SHA-256 follows its name."""
    changes: dict[str, Change] = {}
    for part in re.split(r"^--- ", text, flags=re.MULTILINE)[1:]:
        head, *hunks = re.split(r"^@@.*\n", part.rstrip("\n") + "\n", flags=re.MULTILINE)
        name, digest = head.splitlines()[0].split("\tsha256:")
        lines = [hunk.splitlines(keepends=True) for hunk in hunks]
        changes[name] = Change(
            digest, [tuple("".join(ln[1:] for ln in hunk if ln[0] in side) for side in (" -", " +")) for hunk in lines]
        )
    return changes


def applies(changes: dict[str, Change], installed: Path) -> bool:
    """Whether the files in the folder `installed` are those that the patch was written for."""
    return all(
        (installed / name).is_file() and hashlib.sha256((installed / name).read_bytes()).hexdigest() == change.sha256
        for name, change in changes.items()
    )


def patched_copy(installed: Path, changes: dict[str, Change], parent: Path) -> Path:
    """Return the patched copy of the Jittor in the folder `installed`; make it below `parent` if it is missing.

    The name is a digest of its contents. It is renamed into place when it is complete, so several processes can
    start at the same time.
    """
    contents = {name: (installed / name).read_bytes() for name in _files(installed)}
    for name, change in changes.items():
        for old, new in change.hunks:
            contents[name] = contents[name].replace(old.encode(), new.encode(), 1)
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    tree = parent / digest.hexdigest()[:16]
    if tree.is_dir():
        return tree
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=parent))
    try:
        for name, content in contents.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        os.sync()
        with suppress(OSError):  # another process was faster
            temporary.rename(tree)
        if not tree.is_dir():
            raise FileNotFoundError(f"{tree}: cannot be made")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tree


def _files(installed: Path) -> Iterator[str]:
    """The names of the files that are copied, relative to the folder `installed`, always in the same order."""
    for package in PACKAGES:
        for folder, folders, files in os.walk(installed / package):
            folders[:] = sorted(set(folders) - LEFT_OUT)
            yield from (str(Path(folder, name).relative_to(installed)) for name in sorted(files))
