"""Fuse the pairs of an H5 file with trained weights and compute the metrics.

    python test.py --task IVF --dataset MSRS --ckpt_path models/IVF.pkl

It writes test_output/<dataset>/Gray/<name>.png, with --color also RGB/<name>.png, and prints the metrics table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.data.bad_pairs import list_skipped
from utils.data.h5 import H5Dataset
from utils.data.images import ImageReader, read_bgr, read_gray
from utils.data.reading import add_pseudocolor_option, thermal_files
from utils.data.sources import add_source_options, find_source
from utils.data.tasks import TASKS
from utils.evaluation.evaluate import COLUMNS, Values, correlation_line, mean_row
from utils.evaluation.inference import checkpoint_path, load_net
from utils.evaluation.metrics import TABLE_METRICS, format_table
from utils.evaluation.stream import fuse_dataset, gray_values
from utils.runtime import collective, processes
from utils.runtime.cli import HelpFormatter, add_device_options, name_type, path_type, run_command
from utils.runtime.errors import UserError
from utils.runtime.files import require_separate
from utils.training.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from utils.evaluation.contact_sheet import PageRow


CONTACT_SHEET, REPORT, SKIPPED = "contact_sheet.png", "report.html", "skipped.txt"


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fuse the test pairs of a data set and print the metrics table.", formatter_class=HelpFormatter
    )
    add = parser.add_argument
    add("--task", choices=tuple(TASKS), default="IVF", help="fusion task; selects the default checkpoint")
    add("--dataset", type=name_type, default="MSRS", help="data set; pairs are read from <h5_dir>/<dataset>_test.h5")
    add("--ckpt_path", type=path_type, help="weights, .pkl or .pth (default: models/<task>.pkl)")
    add("--h5_dir", type=path_type, default=Path("VLFDataset_h5"), help="folder with the H5 files of data_process.py")
    add("--out_dir", type=path_type, default=Path("test_output"), help="folder for the fused images")
    add("--contact_sheet", action="store_true", help="also write contact_sheet.png: A | B | fused, names and metrics")
    add("--report", action="store_true", help="also write report.html, to compare A, B and fused in a browser")
    add("--color", action="store_true", help="also write <out_dir>/<dataset>/RGB/: fused luma, chroma of the sources")
    add("--skip_bad", action="store_true", help="check all pairs first; name the bad ones and continue without them")
    add_pseudocolor_option(parser)
    add_device_options(parser)
    add_source_options(parser, "source images for --color (default: the files named in the H5 file)")
    return parser


def color_files(args: argparse.Namespace, dataset: H5Dataset) -> dict[str, tuple[Path, Path]]:
    """The files of images A and B, by sample name, from which --color takes the colours.

    The files named in the H5 file are used if they still exist and no source option is given, else those of
    `find_source`.

    Raises:
        UserError: a sample has no files, or the source options do not fit.
    """
    default = get_args_parser().get_default
    chosen = any(getattr(args, option) != default(option) for option in ("root", "raw", "dir_a", "dir_b", "list"))
    recorded = {} if chosen else {name: dataset.sources(name) for name in dataset.names}
    files = {name: pair for name, pair in recorded.items() if pair and all(path.is_file() for path in pair)}
    if len(files) < len(dataset):
        # Without source options, the error below helps more than one about the default folder.
        with nullcontext() if chosen else suppress(UserError):
            found = find_source(args, "test").pairs
            files = {pair.name: (pair.image_a, pair.image_b) for pair in found} | files
    if missing := [name for name in dataset.names if name not in files]:
        raise UserError(
            f"{dataset.path}: no image files of {missing[0]!r} were found, which --color needs; say where they are "
            "with --root, --raw, or --dir_a and --dir_b"
        )
    return files


def output_files(args: argparse.Namespace, dataset: H5Dataset) -> list[Path]:
    """All files that a run with these options writes."""
    folder = args.out_dir / args.dataset
    kinds = ("Gray", "RGB") if args.color else ("Gray",)
    images = [folder / kind / f"{name}.png" for kind in kinds for name in dataset.names]
    pages = (args.contact_sheet and CONTACT_SHEET, args.report and REPORT, args.skip_bad and SKIPPED)
    return images + [folder / page for page in pages if page]


def input_files(dataset: H5Dataset, files: Mapping[str, tuple[Path, Path]]) -> list[Path]:
    """The H5 file, the images that it was made of, and those in `files`."""
    recorded = (dataset.sources(name) for name in dataset.names)
    return [dataset.path, *(path for pair in (*recorded, *files.values()) if pair for path in pair)]


def gather_values(names: Sequence[str], own: Sequence[Values]) -> dict[str, Values]:
    """The metrics of all images by name, gathered from all processes; `own` are those of this process."""
    rows = np.array([[values[metric] for metric in COLUMNS] for values in own]).reshape(-1, len(COLUMNS))
    rows = collective.gather(rows, len(names)).tolist()
    return {name: dict(zip(COLUMNS, row, strict=True)) for name, row in zip(names, rows, strict=True)}


@dataclass(frozen=True)
class PageRows(Sequence["PageRow"]):
    """The rows of the pages: A, B, the fused image in `gray`, the colour one in `rgb` if any, and the metrics.

    The images of a row are read on access: those of a complete data set may not fit in memory.
    """

    dataset: H5Dataset
    gray: Path
    rgb: Path | None
    values: Mapping[str, Values]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PageRow:
        from utils.evaluation.contact_sheet import PageRow

        sample = self.dataset[index]
        file = f"{sample.name}.png"
        images = {
            "A": gray_values(sample.image_a),
            "B": gray_values(sample.image_b),
            "fused": read_gray(self.gray / file),
        }
        if self.rgb:
            images["colour"] = read_bgr(self.rgb / file)[..., ::-1]
        return PageRow(sample.name, images, {metric: self.values[sample.name][metric] for metric in TABLE_METRICS})


def draw_pages(rows: PageRows, title: str, folder: Path, contact_sheet: bool, report: bool) -> None:
    """Write the requested pages to `folder` and print their paths."""
    if contact_sheet:
        from utils.evaluation.contact_sheet import draw_contact_sheet

        path = folder / CONTACT_SHEET
        draw_contact_sheet(rows, title, path)
        print(f"contact sheet: {path}")
    if report:
        from utils.evaluation.report import write_report

        path = folder / REPORT
        write_report(rows, title, path)
        print(f"report, for a browser: {path}")


def test(args: argparse.Namespace) -> None:
    """Fuse and measure with the options `args`.

    Raises:
        UserError: data or weights are missing or do not fit.
    """
    processes.use_threads(args.threads)
    with H5Dataset(args.h5_dir / f"{args.dataset}_test.h5", args.skip_bad) as dataset:
        files = color_files(args, dataset) if args.color else {}
        path = checkpoint_path(args.ckpt_path, args.task)
        require_separate(output_files(args, dataset), [*input_files(dataset, files), path])
        checkpoint = read_checkpoint(path)  # a bad file is found before Jittor starts
        from utils.runtime.jittor_env import use_device

        print(use_device(args.device, args.tf32))
        if line := processes.describe():
            print(line)
        folder = args.out_dir / args.dataset
        gray, rgb = folder / "Gray", folder / "RGB"
        reader = ImageReader(
            thermal=thermal_files(args.task, (a for a, _ in files.values())), pseudocolor=args.pseudocolor
        )
        read = partial(read_bgr, reader=reader)
        own, colorless = fuse_dataset(load_net(path, checkpoint), dataset.share(), gray, rgb, files, read)
        print(f"fused images: {gray}")
        if args.color:
            if colorless := collective.total(np.array([colorless], np.int32)).item():
                print(f"no colour in the sources of {colorless} of {len(dataset)} pairs: their RGB images are gray")
            print("\n".join([*reader.report(), f"in colour: {rgb}"]))
        values = gather_values(dataset.names, own)
        if not processes.is_main():
            return
        rows = PageRows(dataset, gray, rgb if args.color else None, values)
        draw_pages(rows, f"{args.dataset}, {path.name}", folder, args.contact_sheet, args.report)
        print(format_table(args.dataset, {"FILM": mean_row(values)}))
        print(correlation_line(values))
        if args.skip_bad and (line := list_skipped(folder / SKIPPED, dataset.skipped)):
            print(f"{line}; the averages exclude them")


def main(argv: Sequence[str] | None = None) -> None:
    test(get_args_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
