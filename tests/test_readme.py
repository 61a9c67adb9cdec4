"""The pages: links, messages and options in them exist, and the two READMEs say the same."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
READMES = [ENGLISH, CHINESE]
FOLDERS = ("docs", "VLFDataset", "exp", "log", "images", "models", "net/kernels", "tools", "tests/golden", "tests/cuda")
PAGES = [*READMES, *(page for folder in FOLDERS for page in sorted(ROOT.glob(f"{folder}/*.md")))]
# Options of other programs.
FOREIGN = {"--allow-run-as-root", "--bind-to", "--depth", "--extra-index-url", "--hostfile", "--mca", "--no-deps"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text_of(page))


def headings(page: Path) -> list[tuple[int, str]]:
    """Level and text of each heading, in order."""
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", prose(page), re.MULTILINE)]


def anchors(page: Path) -> list[str]:
    """The anchor of each heading, as GitHub makes it."""
    titles = (re.sub(r"[^\w\- ]", "", title.lower()) for _, title in headings(page))
    return [title.replace(" ", "-") for title in titles]


def commands(page: Path) -> list[str]:
    """The code blocks of a page, without comments."""
    blocks = (f"{language}\n{body}" for language, body in FENCE.findall(text_of(page)))
    return [re.sub(r"(?m)(?:^| +)# .*$", "", block) for block in blocks]


def tables(page: Path) -> list[list[list[str]]]:
    """Tables as rows of cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", prose(page), re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", row)[1:-1] for row in block.splitlines()] for block in blocks]


def numbers_and_names(cell: str) -> list[str]:
    """What a cell says in any language: its numbers and its code, sorted."""
    code = re.findall(r"`[^`]+`", cell)
    return sorted([*NUMBER.findall(LINK.sub("", cell)), *code, *LINK.findall(cell)])


@cache
def strings_of(path: Path) -> list[str]:
    """All strings of a module, with `…` for each formatted value."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    filled = [
        "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        for node in nodes
        if isinstance(node, ast.JoinedStr)
    ]
    return plain + filled


SCRIPTS = sorted(ROOT.glob("*.py"))
SHARED = sorted(ROOT.glob("utils/**/*.py"))


def imports_of(path: Path) -> list[Path]:
    """The modules of utils/ that a module imports."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return [ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("utils.")]


def options_of(*scripts: Path) -> set[str]:
    """The options that these scripts, or modules they import, define."""
    modules = {path for script in scripts for path in (script, *imports_of(script)) if path.is_file()}
    return {text for path in modules for text in strings_of(path) if re.fullmatch(r"--[a-z][\w-]*", text)}


# --- the two READMEs


def test_the_readmes_have_the_same_commands():
    assert commands(ENGLISH) == commands(CHINESE)
    assert len(commands(ENGLISH)) >= 4


def test_the_readmes_have_the_same_tables():
    english, chinese = tables(ENGLISH), tables(CHINESE)
    assert [[len(row) for row in table] for table in english] == [[len(row) for row in table] for table in chinese]
    for table, other in zip(english, chinese, strict=True):
        for row, other_row in zip(table, other, strict=True):
            assert [*map(numbers_and_names, row)] == [*map(numbers_and_names, other_row)]
    assert len(english) >= 3


def test_the_readmes_have_the_same_links():
    english, chinese = LINK.findall(text_of(ENGLISH)), LINK.findall(text_of(CHINESE))
    assert english[0] == CHINESE.name and chinese[0] == ENGLISH.name
    assert english[1:] == chinese[1:]


def test_the_readmes_have_the_same_sections():
    assert [level for level, _ in headings(ENGLISH)] == [level for level, _ in headings(CHINESE)]


def test_the_readmes_have_the_same_numbers():
    """Section by section, outside tables and links."""

    def sections(page: Path) -> list[list[str]]:
        parts = re.split(r"^#+ .*$", re.sub(r"(?m)^\|.*$", "", LINK.sub("", prose(page))), flags=re.MULTILINE)
        return [sorted(NUMBER.findall(part)) for part in parts]

    assert sections(ENGLISH) == sections(CHINESE)


# --- facts that several pages state

CARD, RESULTS, PERFORMANCE = ROOT / "models/README.md", ROOT / "docs/results.md", ROOT / "docs/performance.md"


def metrics_in(page: Path, *first: str) -> list[str]:
    """The six metrics in the row of a page's tables whose first cells begin with these texts."""
    rows = [[cell.strip() for cell in row] for table in tables(page) for row in table]
    (found,) = [row for row in rows if all(map(str.startswith, row, first))]
    return [cell for cell in found if re.fullmatch(r"\d+\.\d\d", cell)][:6]


def test_the_metrics_are_the_same_on_all_pages():
    ours = "FILM, weights that ship"
    assert metrics_in(ENGLISH, "RoadScene", "ours") == metrics_in(CARD, "RoadScene") == metrics_in(RESULTS, ours)
    assert metrics_in(ENGLISH, "MSRS", "ours") == metrics_in(CARD, "MSRS") == metrics_in(RESULTS, "MSRS", ours)
    for dataset in ("M3FD", "TNO"):
        assert metrics_in(CARD, dataset) == metrics_in(RESULTS, dataset, ours)
    assert metrics_in(ENGLISH, "MSRS", "paper") == metrics_in(RESULTS, "MSRS", "FILM, paper")
    assert metrics_in(ENGLISH, "RoadScene", "paper") == metrics_in(RESULTS, "FILM, paper")
    assert metrics_in(ENGLISH, "RoadScene", "CDDFuse") == metrics_in(RESULTS, "CDDFuse, its authors' images")


def test_the_speed_in_the_readme_is_that_of_the_tables():
    """With AVX-512, rounded to the digits that the README shows."""
    (line,) = re.findall(r"^- \*\*CPU with AVX-512.*", text_of(ENGLISH), re.MULTILINE)
    (section,) = re.findall(
        r"^### [^\n]* AVX-512, 2 threads\n(.*?)^(?:#|<!)", text_of(PERFORMANCE), re.MULTILINE | re.DOTALL
    )
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in section.splitlines() if row.startswith("|")]
    step = next(index for index, row in enumerate(rows) if row[0].startswith("a training step"))

    def measured(of: list[list[str]], name: str, column: int) -> str:
        return next(row[column] for row in of if re.fullmatch(name, re.sub(r" \d[\d.]*", "", row[0])))

    others = ("ONNX Runtime", "OpenVINO", "PyTorch, torch.compile", "PyTorch, eager")
    exact = [measured(rows[:step], "this repository", 1), *(measured(rows[:step], name, 2) for name in others)]
    exact += [measured(rows[step:], "this repository", column) for column in (1, 3)]
    exact += [measured(rows[step:], "PyTorch, eager", 2)]
    shown = re.findall(r"([\d.]+)(?:\N{MULTIPLICATION SIGN}[,)]| s | GB)", line)
    for text, value in zip(shown, exact, strict=True):
        digits = len(text.partition(".")[2])
        assert abs(float(text) - float(value)) <= 0.5 * 10**-digits + 1e-9, (text, value)


# --- links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_relative_link_and_anchor_exists(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.name)
def test_each_page_is_in_both_contents(page):
    for readme in READMES:
        assert f"docs/{page.name}" in LINK.findall(text_of(readme))


def test_each_tool_is_in_the_list_of_tools():
    names = {path.stem if path.suffix == ".py" else path.name for path in (ROOT / "tools").glob("*.*")}
    listed = re.findall(r"^\| `([^`]+)` \|", text_of(ROOT / "tools" / "README.md"), re.MULTILINE)
    parts = {"gpu_sections", "gpu_page", "sections"}  # of gpu_report
    assert sorted([*listed, *parts]) == sorted(names - {"__init__", "README.md"})


# --- messages

TROUBLES = text_of(ROOT / "docs" / "troubleshooting.md").split("## Messages")[1].split("\n## ")[0]
MESSAGES = re.findall(r"^\| `([^`]+)` \|", TROUBLES, re.MULTILINE)


def test_the_table_is_there():
    assert len(MESSAGES) >= 20
    assert len(set(MESSAGES)) == len(MESSAGES)
    assert len(MESSAGES) == TROUBLES.count("\n| ") - 1  # every row but the header names one


@pytest.mark.parametrize("message", MESSAGES)
def test_each_message_is_in_the_code(message):
    assert any(message in text for path in (*SCRIPTS, *SHARED) for text in strings_of(path))


# --- options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_option_named_exists(page):
    known = options_of(*SCRIPTS, *sorted(ROOT.glob("tools/*.py"))) | FOREIGN | {"--help"}
    named = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text_of(page)))
    assert named <= known


def calls(page: Path) -> list[list[str]]:
    """The words after `python` of each command of this project in the code blocks of a page."""
    found = []
    for language, body in FENCE.findall(text_of(page)):
        if language not in ("bash", ""):
            continue
        for line in body.replace("\\\n", " ").splitlines():
            if "python " in line and not line.lstrip().startswith("#"):
                found.append(shlex.split(line.partition("python ")[2], comments=True))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_command_has_the_options_it_is_called_with(page):
    for words in calls(page):
        if words[:2] == ["-m", "pytest"]:
            assert all((ROOT / word).exists() for word in words[2:])
            continue
        if words[0] == "-m":
            words = [words[1].replace(".", "/") + ".py", *words[2:]]
        script = ROOT / words[0]
        assert script.is_file(), words
        assert {word for word in words[1:] if word.startswith("--")} <= options_of(script), words
