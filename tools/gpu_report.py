"""Everything about FILM on a GPU in one command: correct results, speed, memory, and the kernels that take longest.

    python -m tools.gpu_report                       # at most 30 minutes; what was measured by then is in the report
    python -m tools.gpu_report --device cpu --quick  # try the command itself, without a GPU

It needs what `make VENV=.venv-cuda TORCH=torch==2.13.0 demo` installs and an nvcc, and no network. It writes
<out>/report.json, <out>/report.md (one page) and logs; the last line that it prints is the one to send.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tools import gpu_sections as measure
from tools.doctor import GIB, installed, output_of
from tools.gpu_page import line_of, page_of
from tools.sections import LEFT_OUT, ROOT, Result, Row, Section, run_section
from utils.runtime import cores, cuda
from utils.runtime.cli import HelpFormatter, path_type, positive, run_command
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path

PACKAGES = ("jittor", "numpy", "torch", "triton")


def sections(device: str, quick: bool, folder: Path) -> list[Section]:
    """The sections in order: first whether it is right, last what takes longest."""
    tf32 = (False, True) if device == "cuda" else (False,)  # no effect on a CPU
    cases, eager = (measure.INFERENCE, measure.TRAINING), (measure.JITTOR, measure.EAGER)

    def section(name: str, function: Callable[..., Iterator[Row]], budget: float, **options: object) -> Section:
        return Section(name.replace(" ", "-"), function, budget, {"device": device, **options})

    def speed(case: str, contender: str, rounded: bool, budget: float) -> Section:
        name = f"{case}-{contender}{'-TF32' if rounded else ''}"
        options = {"quick": quick, "case": case, "contender": contender, "tf32": rounded}
        return section(name, measure.speed, budget, **options)

    return [
        # On the first start with CUDA, Jittor compiles itself, and a training step is tried.
        section("doctor", measure.doctor, 900),
        section("golden", measure.golden, 180),
        section("images", measure.images, 240, folder=str(folder / "images")),
        section("trajectory", measure.trajectory, 300, folder=str(folder / "trajectory"), quick=quick),
        section("primitives", measure.primitives, 300, quick=quick),
        *(section("golden-TF32", measure.golden, 180, tf32=True) for rounded in tf32 if rounded),
        *(speed(*which, budget=120) for which in product(cases, eager, tf32)),
        *(
            section(f"profile-{case}-{contender}", measure.profile, 90, quick=quick, case=case, contender=contender)
            for case, contender in product(cases, eager)
        ),
        *(speed(case, measure.COMPILED, rounded, budget=240) for rounded, case in product(tf32, cases)),
    ]


def machine() -> dict[str, Any]:
    """What the report was made on; no name of a machine or person."""
    found = cuda.look()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    changed = bool(output_of("git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no").strip())
    commit = output_of("git", "-C", ROOT, "rev-parse", "--short=10", "HEAD").strip() or "unknown"
    smi = output_of("nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader", "--id=0")
    return {
        "gpus": [
            {"name": gpu.name, "gib": round(gpu.memory / GIB, 1), "capability": cuda.text_of(gpu.capability)}
            for gpu in found.gpus
        ],
        "driver": {"cuda": cuda.text_of(found.driver), "nvidia-smi": smi.strip()} if found.driver else None,
        "nvcc": cuda.text_of(found.version) if found.version else None,
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": cores.usable(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
        "commit": commit + (" with changes" if changed else ""),
    }


def write(report: dict[str, Any], folder: Path) -> None:
    """Write report.json and report.md."""
    texts = {"report.json": json.dumps(report, indent=1) + "\n", "report.md": page_of(report)}
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            # The home folder's name is often that of a person.
            temporary.write_text(text.replace(str(Path.home()), "~"), encoding="utf-8")


def make_report(chosen: Sequence[Section], minutes: float, folder: Path, report: dict[str, Any]) -> None:
    """Run the sections for at most this long, and write the report after each of them."""
    started = time.monotonic()
    logs = folder / "logs"
    logs.mkdir()
    for section in chosen:
        print(f"{section.name:34}", end="", flush=True)
        left = minutes * 60 - (time.monotonic() - started)
        if left > 0:
            result = run_section(section, min(section.budget, left), logs)
        else:
            result = Result(LEFT_OUT, note=f"the limit of {minutes:g} minutes was reached")
        print(f"{result.state:9}{result.seconds:6.0f} s  {result.note}".rstrip(), flush=True)
        report["sections"][section.name] = {**vars(result), "options": dict(section.options)}
        report["seconds"] = time.monotonic() - started
        write(report, folder)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_report", description=__doc__.splitlines()[0], formatter_class=HelpFormatter
    )
    names = [section.name for section in sections("cuda", False, Path())]
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the command without a GPU")
    add("--quick", action="store_true", help="small images, one batch size and few steps: to try the command")
    add("--minutes", type=positive, default=30, help="end after this time, with what was measured by then")
    add("--only", nargs="+", choices=names, default=[], metavar="SECTION", help=f"only these: {', '.join(names)}")
    add("--out", type=path_type, help="new folder for the report (default: gpu_report/<time>)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Make the report.

    Raises:
        UserError: there is no GPU that can be used, or the folder exists.
    """
    args = get_args_parser().parse_args(argv)
    if args.device == "cuda" and (problem := cuda.problem(cuda.look())):
        raise UserError(f"{problem}; the report is about a GPU (--device cpu tries the command on the CPU)")
    folder = (args.out or Path("gpu_report") / time.strftime("%y_%m_%d_%H_%M_%S")).resolve()
    if folder.exists():
        raise UserError(f"{folder}: exists; name a new folder with --out")
    about = {"format": 1, "date": time.strftime("%Y-%m-%d"), "device": args.device, "quick": args.quick}
    report = {**about, "machine": machine(), "seconds": 0.0, "sections": {}}
    folder.mkdir(parents=True)
    chosen = [s for s in sections(args.device, args.quick, folder) if not args.only or s.name in args.only]
    make_report(chosen, args.minutes, folder, report)
    print(f"\nthe page: {folder / 'report.md'}\nall numbers: {folder / 'report.json'}\nthe line to send:")
    print(line_of(report))


if __name__ == "__main__":
    sys.exit(run_command(main))
