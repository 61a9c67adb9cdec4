"""The bad pairs that --skip_bad leaves out: named when they are found, counted and listed at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from utils.runtime.errors import UserError, fault, printable
from utils.runtime.files import naming, write_text

logger = logging.getLogger(__name__)


class Named(Protocol):
    """Anything with a name, such as a `Pair`, whose module imports this one."""

    @property
    def name(self) -> str: ...


AnyPair = TypeVar("AnyPair", bound=Named)


class BadPairs:
    """Collects the bad pairs, with `skip`; without, the first one is an error.

    Attributes:
        reasons: name -> why the pair is bad.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.reasons: dict[str, str] = {}

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Run the body, which reads files of the pair `name`; with `skip`, its error only makes the pair bad."""
        try:
            yield
        except (UserError, OSError) as error:
            reason = fault(error)
            if not self.skip or reason is None:
                raise
            self.add(name, reason)

    def add(self, name: str, reason: str) -> None:
        """Log and keep a bad pair."""
        logger.warning("skipped: %s", reason)
        self.reasons[name] = reason

    def good(self, pairs: Sequence[AnyPair]) -> list[AnyPair]:
        """The pairs that are not bad.

        Raises:
            UserError: there are none.
        """
        good = [pair for pair in pairs if pair.name not in self.reasons]
        if self.reasons and not good:
            raise UserError(f"no good pair is left of {len(self.reasons)}; the lines above name the reasons")
        return good


def list_skipped(path: Path, reasons: Mapping[str, str]) -> str:
    """Write the names and reasons of bad pairs to `path`, a line each, or remove the list of an earlier run.

    Returns:
        A line that counts them; empty if there are none.

    Raises:
        UserError: the list cannot be written.
    """
    if not reasons:
        with naming(path):
            path.unlink(missing_ok=True)
        return ""
    write_text(path, "".join(f"{printable(name)}\t{printable(reason)}\n" for name, reason in sorted(reasons.items())))
    return f"skipped: {len(reasons)} bad pairs, named above, listed in {path}"
