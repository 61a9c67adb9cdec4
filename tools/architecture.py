"""Draw the figures of docs/ from the code: architecture.svg from its imports, network.svg from `net.Film.Net`.

    make docs        (or: python -m tools.architecture)

tests/test_architecture.py fails if a figure is out of date. It also checks the imports that this module reads.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from html import escape
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# Rooms are groups of modules. A module may import from its own room and the rooms before it. Room -> its colour.
ROOMS = {
    "utils.runtime": "#818b98",
    "net": "#a475f9",
    "utils.data": "#218bff",
    "utils.text": "#2da44e",
    "utils.training": "#bf8700",
    "utils.evaluation": "#e16f24",
    "scripts": "#e5534b",
    "tools": "#339d9b",
}
GREY = "#818b98"
CARDS = ("#ddf4ff", "#dafbe1", "#fff8c5", "#fbefff", "#ffe9d9", "#ffeff7")
STYLE = (
    "text{font:12px sans-serif;fill:#1f2328}.head{font-size:15px;font-weight:bold}.code{font:bold 12px monospace}"
    ".note{font-size:11px;fill:#59636e}.number{text-anchor:end}"
)


class Row(NamedTuple):
    """A row of a panel: a name, a text next to it, a number at the right, notes below, and the fill of its box."""

    name: str
    text: str = ""
    number: str = ""
    notes: tuple[str, ...] = ()
    fill: str = ""


def modules() -> dict[str, Path]:
    """The project's modules by dotted name, without tests. A package has the name of its folder."""
    paths = [*ROOT.glob("*.py"), *(path for top in ("net", "tools", "utils") for path in (ROOT / top).rglob("*.py"))]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(paths)}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports() -> list[tuple[str, int, str]]:
    """(module, line, imported module) of every import in these modules, those in functions included."""
    known, found = modules(), []
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found += [(module, node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                source = "." * node.level + (node.module or "")
                names = [f"{source}.{alias.name}" for alias in node.names]
                found += [(module, node.lineno, name if name in known else source) for name in names]
    return list(dict.fromkeys(found))


def room_of(module: str) -> str:
    """The room of a module: ``utils.data`` of ``utils.data.h5``, ``scripts`` of ``train``."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "utils" else parts[0] if parts[0] in ROOMS else "scripts"


def _summary(doc: str, characters: int, lines: int = 1) -> tuple[str, ...]:
    """The first sentence of a docstring in at most `lines` lines; a longer one is cut at its colon."""
    text = re.split(r"[.;](?:\s|$)", " ".join(doc.replace("`", "").replace("->", "→").split()))[0]
    text = re.sub(r"\([^)]*\)", lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    text = text if len(textwrap.wrap(text, characters)) <= lines else text.split(": ")[0]
    return tuple(textwrap.wrap(text, characters, max_lines=lines, placeholder=" …"))


def _text(x: int, y: int, content: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" class="{style}">{escape(content)}</text>'


def _box(x: int, y: int, width: int, height: int, fill: str, stroke: str = GREY) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{stroke}"/>'


def _panel(x: int, y: int, width: int, rows: list[Row], stroke: str = GREY) -> tuple[list[str], int]:
    """A panel, and the y of its lower edge. The first row is its title."""
    line, indent, parts = y + 24, 190 if width > 600 else 140, []
    for i, (name, text, number, notes, fill) in enumerate(rows):
        if i and fill:
            parts.append(_box(x + 8, line - 15, width - 16, 22 + 15 * len(notes), fill, "#d1d9e0"))
        style = "head" if i == 0 else "code" if text or notes else "note"
        texts = (14, 0, name, style), (indent, 0, text, ""), (width - 14, 0, number, "number")
        texts += tuple((14, 16 + 15 * j, note, "note") for j, note in enumerate(notes))
        parts += [_text(x + dx, line + dy, content, style) for dx, dy, content, style in texts if content]
        line += 17 + 15 * len(notes) + (9 if fill else 4 if notes else 0)
    return [_box(x, y, width, line - 6 - y, rows[0].fill, stroke), *parts], line - 6


def _svg(left: int, width: int, height: int, parts: list[str]) -> str:
    size = f'width="{width}" height="{height}" viewBox="{left} -1 {width} {height}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>', *parts, "</svg>\n"])


def architecture() -> str:
    """The rooms, a line for each module, and an arrow from each room to each room that it imports."""
    paths, parts, edges, y = modules(), [], {}, 0
    docs = {name: ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "" for name, path in paths.items()}
    docs = {name: re.sub(r"\s\([^)]*\)", "", doc) for name, doc in docs.items()} | {"scripts": "The commands."}
    for room in reversed(ROOMS):
        rows = [Row(room.replace(".", "/"), notes=_summary(docs[room], 140), fill="#fff")]
        for module in (module for module in docs if room_of(module) == room != module):
            folder = paths[room].parent if room in paths else ROOT
            rows.append(Row(paths[module].relative_to(folder).as_posix(), *_summary(docs[module], 115)))
        panel, lower = _panel(0, y, 920, rows, ROOMS[room])
        parts += panel
        edges[room], y = (y, lower), lower + 24
    for source, target in sorted({(room_of(module), room_of(name)) for module, _, name in imports() if name in paths}):
        if source != target:
            place, colour = [*ROOMS].index(source), ROOMS[source]
            start, end = edges[source][1] - 12, edges[target][0] + 12 + 8 * (len(ROOMS) - place)
            line = f'd="M0,{start}H{-12 * place}V{end}H-7" fill="none" stroke="{colour}" stroke-width="2"'
            parts.append(f'<path {line}/><path d="M0,{end}l-7,-4v8z" fill="{colour}"/>')
    legend = "An arrow leads from a room to a room that it imports. Imports only go down."
    parts += [_box(0, y, 920, 30, "#fff"), _text(14, y + 20, legend, "note")]
    return _svg(-90, 1012, y + 32, parts)


def _parts(module: Any) -> dict[str, Any]:
    """The modules and parameters of a Jittor module by attribute; one with two names is listed under the first."""
    parameters, found, seen = dict(module.named_parameters()), {}, set()
    for key, value in vars(module).items():
        items = {f"{key}[{i}]": item for i, item in enumerate(value)} if isinstance(value, tuple) else {key: value}
        for name, part in items.items():
            if name in parameters or (hasattr(part, "modules") and id(part) not in seen):
                found[name] = part
                seen |= {id(inner) for inner in getattr(part, "modules", list)()}
    return found


def _used(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(name, attribute) of every ``name.attribute``, in the order in which Python evaluates them."""
    for part in [*node.args, *node.keywords, node.func] if isinstance(node, ast.Call) else ast.iter_child_nodes(node):
        yield from _used(part)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        yield node.value.id, node.attr


def _in_order(module: Any) -> dict[str, Any]:
    """Parts, arguments and operations (None): first what `execute` uses, in that order, then the other parts."""
    parts, rows = _parts(module), {}
    if execute := vars(type(module)).get("execute"):
        rows[", ".join([*inspect.signature(execute).parameters][1:]) + " ↓"] = None
        body = ast.parse(textwrap.dedent(inspect.getsource(execute))).body[0].body
        for owner, name in chain.from_iterable(map(_used, body)):
            if owner == "self":
                rows |= {key: part for key, part in parts.items() if key.split("[")[0] == name}
            elif isinstance(execute.__globals__.get(owner), ModuleType):
                rows[f"{name}()"] = None
    return rows | parts


def network() -> str:
    """A panel for `Net` and each class in it that has several modules: its parts in the order of their use."""
    from net.Film import Net

    cards, todo, lower, panels = {}, [("", Net())], [0, 0, 0], []
    while todo:
        path, module = todo.pop(0)
        parts = {name: part for name, part in _parts(module).items() if hasattr(part, "modules")}
        if len(parts) > 1 and type(module).__name__ not in cards:
            cards[type(module).__name__] = path, module
            todo = [(f"{path}.{name.lstrip('_')}".lstrip("."), part) for name, part in parts.items()] + todo
    fills = dict(zip(cards, CARDS, strict=True))

    def row(name: str, part: Any) -> Row:
        if part is None:
            return Row(name, fill="none")
        kind, tensors = (type(part).__name__, part.parameters()) if hasattr(part, "modules") else ("parameter", [part])
        shapes = " + ".join("\N{MULTIPLICATION SIGN}".join(map(str, tensor.shape)) for tensor in tensors)
        count = f"{sum(tensor.numel() for tensor in tensors):,}"
        return Row(name.lstrip("_"), kind, count, () if kind in fills else (shapes,), fills.get(kind, "#fff"))

    for kind, (path, module) in cards.items():
        column = min(path.count("."), 2)
        notes = (f"shown: {path}",) * bool(path) + _summary(type(module).__doc__, 48, 4)
        title = row("", module)._replace(name=kind, text="", notes=notes)
        rows = [title, *(row(name, part) for name, part in _in_order(module).items())]
        panel, end = _panel(340 * column, lower[column], 320, rows)
        panels += panel
        lower[column] = end + 20
    legend = "Parts are in the order of their use, with shapes and number of parameters. A coloured part has a panel."
    panels += [_box(0, max(lower), 1000, 30, "#fff"), _text(14, max(lower) + 20, legend, "note")]
    return _svg(-1, 1002, max(lower) + 32, panels)


def main() -> None:
    for name, figure in (("architecture", architecture), ("network", network)):
        (ROOT / "docs" / f"{name}.svg").write_text(figure(), encoding="utf-8")


if __name__ == "__main__":
    main()
