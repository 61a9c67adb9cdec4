"""The tables of docs/performance.md, made of files that `tools.benchmark --json` wrote.

    python -m tools.benchmark_table log/benchmark/*.json                              # print them
    python -m tools.benchmark_table log/benchmark/*.json --page docs/performance.md   # replace those in the page

There is one section for each kind of processor: its name, its instruction set, and the one that our kernels were
compiled for. Of several files of one case and kind, the newest is used.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tools import markdown
from tools.benchmark import CASES, OURS
from utils.runtime.cli import path_type, run_command
from utils.runtime.errors import UserError

COMMAND = "python -m tools.benchmark_table log/benchmark/*.json --page docs/performance.md"

SIMD = {"avx512f": "AVX-512", "avx2": "AVX2", "": "no AVX2"}
# contender -> its name, and the package whose version belongs to it
TITLES = {
    OURS: ("this repository", None),
    "onnxruntime": ("ONNX Runtime {}", "onnxruntime"),
    "openvino": ("OpenVINO {}", "openvino"),
    "torch eager": ("PyTorch {}, eager", "torch"),
    "torch eager, tuned allocator": ("PyTorch {}, eager, tuned allocator", "torch"),
    "torch.compile": ("PyTorch {}, torch.compile", "torch"),
}
WHAT = {"inference": "a fused image", "training": "a training step, batch {}"}


def read_record(path: Path) -> dict[str, Any]:
    """A file of `tools.benchmark --json`.

    Raises:
        UserError: it is not one.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        measured = all(each["contenders"].get(OURS, {}).get("seconds") for each in record["sizes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a file of tools.benchmark --json ({error})") from error
    if not measured:
        raise UserError(f"{path}: has no times of {OURS}, which all others are compared with")
    return record


def kind(record: Mapping[str, Any]) -> str:
    """The kind of processor, and how much of it was used."""
    kernels = "" if record["kernels"] == record["simd"] else f", our kernels compiled for {SIMD[record['kernels']]}"
    return f"{record['processor']}, {SIMD[record['simd']]}{kernels}, {record['threads']} threads"


def tables(records: Iterable[Mapping[str, Any]]) -> str:
    """The sections, in the order of the names of the processors."""
    newest: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: record["date"]):
        newest.setdefault(kind(record), {})[record["case"]] = record
    return "\n\n".join(
        "\n\n".join([f"### {title}", *(table(cases[case]) for case in CASES if case in cases)])
        for title, cases in sorted(newest.items())
    )


def table(record: Mapping[str, Any]) -> str:
    """The table of one file: the medians of each size, over ours, and the peak memory; the fastest is first."""
    case, versions = record["case"], record["versions"]
    heads, rows = [WHAT[case].format(CASES[case].batch)], {}
    for each in record["sizes"]:
        heads += ["{}\N{MULTIPLICATION SIGN}{}, s".format(*each["size"]), "relative to ours", "peak GB"]
        ours = median(each["contenders"][OURS]["seconds"])
        for name, result in each["contenders"].items():
            cells = ["-"] * 3
            if "failed" not in result:
                seconds = median(result["seconds"])
                cells = [f"{seconds:.3g}", f"{seconds / ours:.2f}", f"{result['peak'] / 1e9:.1f}"]
            rows.setdefault(name, [_title(name, versions)]).extend(cells)
    measured = [row for row in rows.values() if {*row[1:]} != {"-"}]
    order = sorted(measured, key=lambda row: float(row[2]) if row[2] != "-" else math.inf)
    about = (
        f"Medians of {len(record['sizes'][0]['contenders'][OURS]['seconds'])} interleaved rounds on {record['date']}, "
        f"commit {record['commit']}, Jittor {versions['jittor']}, g++ {versions['compiler']}. Other programs used "
        f"{record['others']:.0%} of the processor."
    )
    return f"{markdown.table(heads, order)}\n\n{about}"


def _title(name: str, versions: Mapping[str, str]) -> str:
    title, package = TITLES[name]
    return title.format(".".join(versions.get(package, "").split("+")[0].split(".")[:2]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark_table", description="Tables of files that tools.benchmark --json wrote."
    )
    parser.add_argument("files", type=path_type, nargs="+", metavar="FILE.json")
    parser.add_argument("--page", type=path_type, help="replace the tables in this page (default: print them)")
    args = parser.parse_args(argv)
    markdown.show(tables(map(read_record, args.files)), args.page, COMMAND)


if __name__ == "__main__":
    sys.exit(run_command(main))
