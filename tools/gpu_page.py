"""The page and the line that tools/gpu_report.py makes of its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from tools import markdown
from tools.gpu_sections import COMPILED, EAGER, INFERENCE, JITTOR, TRAINING
from tools.sections import OK, Row

Report = Mapping[str, Any]
GB = 1e9
TIMES = "\N{MULTIPLICATION SIGN}"


def rows_of(report: Report, kind: str) -> Iterator[tuple[str, Mapping[str, Any], Row]]:
    """(section, its options, row) of every row that has the key `kind`."""
    for name, section in report["sections"].items():
        for row in section["rows"]:
            if kind in row:
                yield name, section["options"], row


def holds(row: Row) -> bool:
    """Whether the value of a check is at most its tolerance, if it has one. None is a value that is not finite."""
    return row["value"] is not None and (row["tolerance"] is None or row["value"] <= row["tolerance"])


def contender_of(options: Mapping[str, Any]) -> str:
    """The name of what a section measured: the framework, and TF32."""
    return options["contender"] + (", TF32" if options.get("tf32") else "")


def speeds(report: Report, case: str) -> dict[int, dict[str, Row]]:
    """The rows of a case by batch size and contender."""
    table: dict[int, dict[str, Row]] = {}
    for _, options, row in rows_of(report, "seconds"):
        if options["case"] == case:
            table.setdefault(row["batch"], {})[contender_of(options)] = row
    return table


def ratio(row: Row, ours: Row) -> str:
    """How many times as long as ours."""
    return f"{row['seconds'] / ours['seconds']:.2f}{TIMES}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, and an empty one."""
    return [*markdown.table(head, rows).splitlines(), ""]


def in_code(text: str) -> str:
    """A text from elsewhere in a cell: it must not end the cell or be read as Markdown."""
    return f"`{text.replace('|', '¦').replace('`', chr(39))}`" if text else ""


def card_of(report: Report) -> str:
    """The name of the GPU, or of the CPU."""
    gpus = report["machine"]["gpus"]
    return gpus[0]["name"] if report["device"] == "cuda" and gpus else report["machine"]["cpu"]


def machine_part(report: Report) -> Iterator[str]:
    """The title, the date and commit, and what the report was made on."""
    machine = report["machine"]
    size = ", small sizes (`--quick`)" if report["quick"] else ""
    what = f"device {report['device']}{size}, {report['seconds'] / 60:.0f} minutes"
    yield from (f"## {card_of(report)}", "")
    yield from (f"`python -m tools.gpu_report` on {report['date']}, commit `{machine['commit']}`, {what}.", "")
    rows = [
        ("GPU", f"{gpu['name']}, {gpu['gib']} GiB, compute capability {gpu['capability']}") for gpu in machine["gpus"]
    ]
    if driver := machine["driver"]:
        smi = f" ({driver['nvidia-smi']})" if driver["nvidia-smi"] else ""
        rows.append(("driver", f"up to CUDA {driver['cuda']}{smi}"))
    if machine["nvcc"]:
        rows.append(("nvcc", machine["nvcc"]))
    rows.append(("CPU", f"{machine['cpu']}, {machine['cores']} cores"))
    packages = (f"{name} {version or 'not installed'}" for name, version in machine["packages"].items())
    rows.append(("software", ", ".join((machine["system"], f"Python {machine['python']}", *packages))))
    yield from table(("machine", ""), rows)


def sections_part(report: Report) -> Iterator[str]:
    """The outcome of each section."""
    yield from ("### Sections", "")
    cells = (
        (name, section["state"], f"{section['seconds']:.0f}", in_code(section["note"]))
        for name, section in report["sections"].items()
    )
    yield from table(("section", "state", "seconds", "note"), cells)


def doctor_part(report: Report) -> Iterator[str]:
    """What the doctor found wrong."""
    if findings := [row for _, _, row in rows_of(report, "advice") if row["state"] != "ok"]:
        yield from ("### Doctor", "")
        yield from table(("", "what", "finding"), ((f["state"], f["name"], in_code(f["text"])) for f in findings))


def checks_part(report: Report) -> Iterator[str]:
    """The differences from reference values. Those with TF32 have no tolerance."""

    def cells(name: str, row: Row) -> Sequence[str]:
        value = "not finite" if row["value"] is None else f"{row['value']:.2g}"
        allowed = "" if row["tolerance"] is None else f"{row['tolerance']:g}"
        return name, row["what"], value, allowed, "ok" if holds(row) else "**FAILED**"

    if rows := list(rows_of(report, "tolerance")):
        yield from ("### Checks", "")
        yield from table(("section", "what", "difference", "allowed", ""), (cells(name, row) for name, _, row in rows))


def speed_part(report: Report, case: str) -> Iterator[str]:
    """Time and memory of a case, by batch size and contender."""
    by_batch = speeds(report, case)
    if not by_batch:
        return
    names = list(dict.fromkeys(name for rows in by_batch.values() for name in rows))
    size = next(row["size"] for rows in by_batch.values() for row in rows.values())

    def time(row: Row, ours: Row | None) -> str:
        return f"{row['seconds'] * 1e3:.1f}" + ("" if ours in (None, row) else f" ({ratio(row, ours)})")

    def memory(row: Row, _: Row | None) -> str:
        return f"{row['peak'] / GB:.2f}"

    yield from (f"### {case.capitalize()}, {TIMES.join(map(str, size))}", "")
    about = f"Milliseconds of a pass, with the arrays' way to the GPU; in brackets: how many times those of {JITTOR}."
    for text, cell in ((about, time), ("Peak memory in GB:", memory)):
        yield from (text, "")
        cells = (
            (str(batch), *(cell(rows[name], rows.get(JITTOR)) if name in rows else "" for name in names))
            for batch, rows in sorted(by_batch.items())
        )
        yield from table(("batch", *names), cells)


def profile_part(report: Report) -> Iterator[str]:
    """The slowest kernels of each profile."""
    profiles: dict[str, list[Row]] = {}
    for _, options, row in rows_of(report, "kernel"):
        profiles.setdefault(f"{options['case']}, {contender_of(options)}", []).append(row)
    for title, rows in profiles.items():
        yield from (f"### Slowest kernels: {title}", "")
        cells = ((in_code(r["kernel"]), str(r["calls"]), f"{r['ms']:.2f}", f"{r['share']:.0%}") for r in rows)
        yield from table(("kernel", "calls", "ms", "share"), cells)


def page_of(report: Report) -> str:
    """The report as a page in Markdown, to be kept in docs/gpu.md."""
    parts = (
        machine_part(report),
        sections_part(report),
        doctor_part(report),
        checks_part(report),
        *(speed_part(report, case) for case in (INFERENCE, TRAINING)),
        profile_part(report),
    )
    return "\n".join(chain(*parts)).rstrip() + "\n"


def line_of(report: Report) -> str:
    """The report in one line, to be sent."""
    machine, sections = report["machine"], report["sections"]
    driver = f"driver CUDA {machine['driver']['cuda']}, " if machine["driver"] else ""
    checks = [row for _, _, row in rows_of(report, "tolerance") if row["tolerance"] is not None]
    bad = [f"{name} {section['state']}" for name, section in sections.items() if section["state"] != OK]
    parts = [
        f"FILM {machine['commit']} on {card_of(report)}",
        f"{driver}nvcc {machine['nvcc'] or 'none'}",
        f"{sum(map(holds, checks))} of {len(checks)} checks hold",
        f"{len(sections) - len(bad)} of {len(sections)} sections ok" + (f" ({', '.join(bad)})" if bad else ""),
    ]
    for case, batch in ((INFERENCE, 1), (TRAINING, 2)):
        rows = speeds(report, case).get(batch, {})
        if ours := rows.get(JITTOR):
            others = (f"{name} {ratio(rows[name], ours)}" for name in (EAGER, COMPILED) if name in rows)
            times = f"{case} at batch {batch} {ours['seconds'] * 1e3:.1f} ms"
            parts.append(", ".join((times, f"{ours['peak'] / GB:.2f} GB", *others)))
    parts.append(f"{report['seconds'] / 60:.0f} min" + (", quick" if report["quick"] else ""))
    return "; ".join(parts)
