"""Measure folders of fused images, of this or any other method, against their sources.

    python -m tools.evaluate --dir_a IR --dir_b VI --list test.txt --fused FILM=out/Gray Other=other/RoadScene
    python -m tools.evaluate --task IVF --dataset MSRS --fused FILM=test_output/MSRS/Gray --published

prints the table in the official form, one row per method. The averages are over the listed images only: a missing
fused image is an error, one that is not listed is left out; both are named. The table has six metrics. --csv and --json
get all twelve and the correlations with max(A, B), A and B, for each image. --baselines adds simple methods.
--differences compares the fused images of the first two methods pixel by pixel.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

if not __package__:  # run as `python tools/evaluate.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.data.images import read_gray
from utils.data.pairs import MODES, find_pairs
from utils.data.sources import add_link_option
from utils.data.tasks import TASKS
from utils.evaluation.baselines import BASELINES
from utils.evaluation.contact_sheet import PageRow, difference_panel, draw_contact_sheet
from utils.evaluation.evaluate import (
    correlation_line,
    differences,
    evaluate_files,
    evaluate_method,
    find_fused,
    find_sources,
    mean_row,
    published_rows,
    write_csv,
    write_json,
)
from utils.evaluation.metrics import format_table
from utils.runtime.cli import RawHelpFormatter, path_type, run_command
from utils.runtime.errors import UserError
from utils.runtime.files import require_separate
from utils.training.loss_curves import SUFFIXES

PAIRS_DRAWN = 4


def method_folder(text: str) -> tuple[str, Path]:
    """Read NAME=DIR."""
    name, equals, folder = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"NAME=DIR expected, not {text!r}")
    return name, path_type(folder)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate", description=__doc__, formatter_class=RawHelpFormatter
    )
    about = "a method's name for the table, and its folder of fused images"
    parser.add_argument("--fused", type=method_folder, nargs="+", default=[], metavar="NAME=DIR", help=about)
    about = "also measure the mean of A and B, their maximum, and a Laplacian pyramid"
    parser.add_argument("--baselines", action="store_true", help=about)
    folders = parser.add_argument_group("sources in any two folders")
    folders.add_argument(
        "--dir_a", type=path_type, metavar="DIR", help="images A: infrared, MRI, over-exposed, near focus"
    )
    folders.add_argument("--dir_b", type=path_type, metavar="DIR", help="images B, with the same names")
    about = "the names to average over, one per line (default: all images of dir_a)"
    folders.add_argument("--list", type=path_type, metavar="FILE", help=about)
    folders.add_argument("--strict", action="store_true", help="an image of dir_b without a partner is an error")
    layout = parser.add_argument_group("or sources in the layout of VLFDataset/")
    layout.add_argument("--task", choices=tuple(TASKS), default="IVF", help="fusion task")
    layout.add_argument("--dataset", help="data set; with --dir_a only the table's title (default: its parent folder)")
    layout.add_argument("--mode", choices=MODES, default="test", help="which of its lists")
    root = Path("VLFDataset")
    layout.add_argument("--root", type=path_type, default=root, metavar="DIR", help="the folder")
    add_link_option(parser)
    output = parser.add_argument_group("output")
    about = "add the row that FILM's authors published for this data set (default: the evaluated one)"
    output.add_argument("--published", nargs="?", const="", metavar="DATASET", help=about)
    output.add_argument("--csv", type=path_type, metavar="FILE", help="write all metrics of each image here")
    output.add_argument("--json", type=path_type, metavar="FILE", help="write them and the averages here, as JSON")
    about = "compare the images of the first two methods, and draw the pairs that differ most here"
    output.add_argument("--differences", type=path_type, metavar="FILE.png", help=about)
    return parser


def sources_of(args: argparse.Namespace) -> tuple[str, dict[str, tuple[Path, Path]]]:
    """The title of the table, and the files of A and B by name.

    Raises:
        UserError: the options contradict each other, or sources are missing.
    """
    if args.dir_a and args.dir_b:
        sources = find_sources(args.dir_a, args.dir_b, args.list, args.strict, args.follow_links)
        return args.dataset or args.dir_a.resolve().parent.name, sources
    if args.dir_a or args.dir_b or args.list or not args.dataset:
        raise UserError("sources: either --dir_a and --dir_b (and --list), or --dataset (and --task, --mode, --root)")
    pairs = find_pairs(args.root, args.task, args.dataset, args.mode, follow_links=args.follow_links)
    return args.dataset, {pair.name: (pair.image_a, pair.image_b) for pair in pairs}


def evaluate(args: argparse.Namespace) -> None:
    """Measure, write and print as the options say.

    Raises:
        UserError: options, sources or fused images are missing or do not match.
    """
    if not args.fused and not args.baselines:
        raise UserError("nothing to measure: expected --fused NAME=DIR, --baselines, or both")
    dataset, sources = sources_of(args)
    if args.differences and len(args.fused) < 2:
        raise UserError("--differences compares two methods; name both: --fused NAME=DIR NAME=DIR")
    if args.differences and args.differences.suffix.lower() not in SUFFIXES:
        raise UserError(f"{args.differences}: expected a {' or '.join(SUFFIXES)} file")
    # Find typing errors before the long computation.
    rows = published_rows(args.published or dataset) if args.published is not None else {}
    names = [name for name, _ in args.fused] + (list(BASELINES) if args.baselines else [])
    if len(set(names)) < len(names):
        raise UserError("--fused: two methods of one name; each row of the table needs a different name")
    fused = {method: find_fused(folder, sources, args.follow_links) for method, folder in args.fused}
    inputs = [path for pair in sources.values() for path in pair]
    inputs += [path for files in fused.values() for path in files.values()]
    outputs = [path for path in (args.csv, args.json, args.differences) if path]
    require_separate(outputs, [*inputs, *([args.list] if args.list else [])])

    methods = {method: evaluate_files(files, sources, method) for method, files in fused.items()}
    if args.baselines:
        methods |= {name: evaluate_method(method, sources, name) for name, method in BASELINES.items()}
    means = {method: mean_row(values) for method, values in methods.items()}
    if args.csv:
        write_csv(args.csv, methods)
    if args.json:
        write_json(args.json, dataset, methods, means)
    print(format_table(dataset, means | rows))
    for method, values in methods.items():
        print(f"{method}: {correlation_line(values)}")
    if args.differences:
        print(compare_first_two(fused, sources, args.differences))


def compare_first_two(
    fused: Mapping[str, Mapping[str, Path]], sources: Mapping[str, tuple[Path, Path]], picture: Path
) -> str:
    """Draw the pairs whose images by the first two methods differ most to `picture`; return the differences as a line.

    Args:
        fused: the fused image of every name, by method.
        sources: the files of A and B by name.

    Raises:
        UserError: two images of a pair differ in size, or `picture` cannot be written.
    """
    first, second = list(fused)[:2]
    gaps = differences(fused[first], fused[second])
    rows = []
    for name in sorted(gaps, key=lambda name: -gaps[name].mean)[:PAIRS_DRAWN]:
        files = {"A": sources[name][0], "B": sources[name][1], first: fused[first][name], second: fused[second][name]}
        images = {title: read_gray(path) for title, path in files.items()}
        title, panel = difference_panel(np.abs(images[first] - images[second]), "difference")
        images[title] = panel
        rows.append(PageRow(name, images, {"mean difference": gaps[name].mean}))
    draw_contact_sheet(rows, f"{first} and {second}", picture)
    worst = max(gaps, key=lambda name: gaps[name].largest)
    return (
        f"{second} differs from {first} by {fmean(gap.mean for gap in gaps.values()):.3f} gray levels on average, "
        f"by {gaps[worst].largest} at most ({worst}); pictures: {picture}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    evaluate(get_args_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
