"""The rooms (tools/architecture.py): which imports which, that tests mirror them, and that figures are up to date."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

from tools import architecture
from tools.architecture import ROOMS, ROOT, imports, modules, room_of


@pytest.fixture(scope="module")
def paths() -> dict[str, Path]:
    return modules()


@pytest.fixture(scope="module")
def inner(paths) -> list[tuple[str, int, str]]:
    """The imports of the project's own modules."""
    return [found for found in imports() if found[2] in paths]


def at(module: str, line: int) -> str:
    return f"{modules()[module].relative_to(ROOT)}:{line}"


def test_every_module_has_a_room(paths):
    assert len(paths) >= 40
    homeless = [str(path) for module, path in paths.items() if room_of(module) not in ROOMS and module != "utils"]
    assert not homeless, f"not in a room: {homeless}"


def test_imports_name_what_exists():
    """Imports use full names, so that the other tests see all of them."""
    relative = [f"{at(*where)} imports {name}" for *where, name in imports() if name.startswith(".")]
    assert not relative
    known, tops = modules(), ("net", "tools", "utils")
    ours = [found for found in imports() if found[2].split(".")[0] in tops]
    gone = [f"{at(*where)} imports {name}" for *where, name in ours if name not in known]
    assert not gone


def test_imports_go_down(inner):
    """From tools and scripts through evaluation, training, text, data and net to runtime, never up."""
    order = list(ROOMS)
    up = [
        f"{at(module, line)}: {room_of(module)} must not import {name}"
        for module, line, name in inner
        if order.index(room_of(name)) > order.index(room_of(module))
    ]
    assert not up


def test_nothing_imports_a_script_or_a_tool(inner):
    """Except tools and tests."""
    found = [
        f"{at(module, line)} imports {name}"
        for module, line, name in inner
        if room_of(name) in ("scripts", "tools") and room_of(module) != "tools"
    ]
    assert not found


def test_one_module_imports_matplotlib():
    """It sees to it that the environment, such as $MPLBACKEND, has no effect."""
    assert {module for module, _, name in imports() if name.split(".")[0] == "matplotlib"} == {"utils.runtime.figures"}


def test_no_circles(inner):
    """Imports in functions count too."""
    graph = {module: {name for source, _, name in inner if source == module} for module, _, _ in inner}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = set(pairwise(reversed(error.args[1])))
        pytest.fail("\n".join(f"{at(*where)} imports {name}" for *where, name in inner if (where[0], name) in circle))


def test_one_module_imports_jittor():
    """Another import would call Jittor's cache after the git branch, and compile everything again. Tests count too."""
    statement = re.compile(r"^\s*(import|from) jittor(_utils)?\b", re.MULTILINE)
    files = [*modules().values(), *(ROOT / "tests").rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in files if statement.search(path.read_text("utf-8"))]
    assert found == ["utils/runtime/jittor_env.py"]


def test_one_module_starts_programs():
    """utils.runtime.programs lets them end with their parent. Others may import constants and errors."""
    starts = re.compile(r"subprocess\.(Popen|run|call|check_\w+|get\w+)\(|os\.(system|popen|fork|exec\w+|spawn\w+)\(")
    found = [name for name, path in modules().items() if starts.search(path.read_text("utf-8"))]
    assert found == ["utils.runtime.programs"]


def test_tests_mirror_the_rooms():
    files = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    assert {Path("utils") / room.removeprefix("utils.") for room in ROOMS if "." in room} <= {f.parent for f in files}
    # tests/cuda is about the whole GPU path.
    assert not [str(file) for file in files if not (ROOT / file.parent).is_dir() and file.parent != Path("cuda")]


@pytest.mark.parametrize("figure", ["architecture", "network"])
def test_figures_are_up_to_date(figure):
    drawn = (ROOT / "docs" / f"{figure}.svg").read_text(encoding="utf-8")
    assert drawn == getattr(architecture, figure)(), f"docs/{figure}.svg is out of date: run `make docs`"
