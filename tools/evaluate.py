"""Measure folders of fused images, of this or any other method, against their sources.

    python -m tools.evaluate --dir_a IR --dir_b VI --list test.txt --fused FILM=out/Gray Other=other/RoadScene
    python -m tools.evaluate --task IVF --dataset MSRS --fused FILM=test_output/MSRS/Gray --published

prints the table in the official form, a row a method. The averages go over the list and nothing else: a fused image
that is missing is an error, one that the list does not name is left out; both are named. All twelve metrics of each
image go to --csv and --json. Only the six of the table are printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python tools/evaluate.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.data.pairs import MODES, find_pairs
from utils.data.tasks import TASKS
from utils.evaluation.evaluate import (
    evaluate_files,
    find_fused,
    find_sources,
    mean_row,
    published_rows,
    write_csv,
    write_json,
)
from utils.evaluation.metrics import format_table
from utils.runtime.cli import run_command
from utils.runtime.errors import UserError


def method_folder(text: str) -> tuple[str, Path]:
    """Read NAME=DIR."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"NAME=DIR expected, not {text!r}")
    return name, Path(folder)


def get_args_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fused",
        type=method_folder,
        nargs="+",
        required=True,
        metavar="NAME=DIR",
        help="a method's name, as the table shall show it, and its folder of fused images",
    )
    folders = parser.add_argument_group("sources in any two folders")
    folders.add_argument("--dir_a", type=Path, metavar="DIR", help="images A: infrared, MRI, over-exposed, near focus")
    folders.add_argument("--dir_b", type=Path, metavar="DIR", help="images B, under the same names")
    folders.add_argument(
        "--list", type=Path, metavar="FILE", help="the names to average over, one a line (default: all images of dir_a)"
    )
    layout = parser.add_argument_group("or sources in the layout of VLFDataset/")
    layout.add_argument("--task", choices=tuple(TASKS), default="IVF", help="fusion task (default: IVF)")
    layout.add_argument("--dataset", help="data set; beside --dir_a only the table's title (default there: its parent)")
    layout.add_argument("--mode", choices=MODES, default="test", help="which of its lists (default: test)")
    layout.add_argument(
        "--root", type=Path, default=Path("VLFDataset"), metavar="DIR", help="the folder (default: VLFDataset)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--published",
        nargs="?",
        const="",
        metavar="DATASET",
        help="show FILM's row of the paper beneath, of this data set (default: the one evaluated)",
    )
    output.add_argument("--csv", type=Path, metavar="FILE", help="write all metrics of each image here")
    output.add_argument("--json", type=Path, metavar="FILE", help="the same, and the averages, as JSON")
    return parser


def sources_of(args: argparse.Namespace) -> tuple[str, dict[str, tuple[Path, Path]]]:
    """The title of the table, and the files of A and B by name.

    Raises:
        UserError: the options do not go together, or sources are missing.
    """
    if args.dir_a and args.dir_b:
        return args.dataset or args.dir_a.resolve().parent.name, find_sources(args.dir_a, args.dir_b, args.list)
    if args.dir_a or args.dir_b or args.list or not args.dataset:
        raise UserError("sources: either --dir_a and --dir_b (and --list), or --dataset (and --task, --mode, --root)")
    pairs = find_pairs(args.root, args.task, args.dataset, args.mode)
    return args.dataset, {pair.name: (pair.image_a, pair.image_b) for pair in pairs}


def evaluate(args: argparse.Namespace) -> None:
    """Measure, write and print as the options say.

    Raises:
        UserError: options, sources or fused images that are missing or do not fit.
    """
    dataset, sources = sources_of(args)
    # What a person may have mistyped is found before the work begins.
    rows = published_rows(args.published or dataset) if args.published is not None else {}
    if len(dict(args.fused)) < len(args.fused):
        raise UserError("--fused: two methods of one name; each row of the table needs its own")
    fused = {method: find_fused(folder, sources) for method, folder in args.fused}

    methods = {method: evaluate_files(files, sources, method) for method, files in fused.items()}
    means = {method: mean_row(values) for method, values in methods.items()}
    if args.csv:
        write_csv(args.csv, methods)
    if args.json:
        write_json(args.json, dataset, methods, means)
    print(format_table(dataset, means | rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and evaluate."""
    evaluate(get_args_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
