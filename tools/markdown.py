"""Markdown tables, and the part of a page that a command makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.runtime.files import atomic_path

END = "<!-- The end of what it makes. -->"


def begin(command: str) -> str:
    """The mark above what a command makes; `END` is the one below."""
    return f"<!-- Made by `{command}`. -->"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of rows of cells, without a final line break."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def replaced(page: str, text: str, command: str) -> str:
    """The page with `text` between the marks of `command`.

    Raises:
        ValueError: it has no such marks.
    """
    before, rest = page.split(begin(command))
    return f"{before}{begin(command)}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def show(text: str, page: Path | None, command: str) -> None:
    """Print `text`, or with a page replace what stands between the marks of `command` in it.

    Raises:
        UserError: the page cannot be written.
        ValueError: it has no such marks.
    """
    if page is None:
        print(text)
        return
    with atomic_path(page) as temporary:
        temporary.write_text(replaced(page.read_text(encoding="utf-8"), text, command), encoding="utf-8")
