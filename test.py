"""Fuse the pairs of an H5 file with trained weights, and measure the result.

    python test.py --task IVF --dataset MSRS --ckpt_path models/IVF.pth

The fused images go to test_output/<dataset>/Gray/<name>.png, the metrics table to the screen. --color adds RGB/.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from utils.data.color import write_colored
from utils.data.h5 import H5Dataset, Sample
from utils.data.images import read_bgr, read_gray, stretch_to_uint8, write_png
from utils.data.loader import Loader
from utils.data.pairs import Pair
from utils.data.sources import add_source_options, find_source
from utils.data.tasks import TASKS
from utils.evaluation.inference import checkpoint_path, fuse, load_net
from utils.runtime import collective, processes
from utils.runtime.cli import HelpFormatter, add_device_options
from utils.runtime.errors import UserError, run_command
from utils.runtime.threads import map_ahead

if TYPE_CHECKING:
    from net.Film import Net
    from utils.evaluation.contact_sheet import PageRow


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fuse the test pairs of a data set and print the metrics table.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--task", choices=tuple(TASKS), default="IVF", help="fusion task; chooses the default checkpoint")
    add("--dataset", default="MSRS", help="data set; its pairs are read from <h5_dir>/<dataset>_test.h5")
    add("--ckpt_path", type=Path, help="weights, .pkl or .pth (default: models/<task>.pth)")
    add("--h5_dir", type=Path, default=Path("VLFDataset_h5"), help="folder of the H5 files of data_process.py")
    add("--out_dir", type=Path, default=Path("test_output"), help="folder for the fused images")
    add("--contact_sheet", action="store_true", help="also draw one page of A | B | fused with names and metrics")
    add("--report", action="store_true", help="also write one HTML page that compares A, B and fused, for a browser")
    add("--color", action="store_true", help="also write <out_dir>/<dataset>/RGB/: the fused luma, the sources' chroma")
    add("--skip_bad", action="store_true", help="read all pairs first, and go on without the bad ones, which are named")
    add_device_options(parser)
    add_source_options(parser, "where the coloured images are (for --color)")
    return parser


def fuse_dataset(net: Net, dataset: H5Dataset, folder: Path) -> None:
    """Write the fused image of every pair to `folder`/<name>.png, and say how fast it went.

    The first image is timed apart: kernels are compiled with it. No later image compiles, whatever its size.
    """
    seconds: list[float] = []
    for batch in tqdm(Loader(dataset, 1, shuffle=False, drop_last=False), desc="fuse", unit="image"):
        (name,) = batch.names
        started = time.perf_counter()
        try:
            fused = fuse(net, batch.image_a, batch.image_b, batch.text)
        except UserError as error:
            raise UserError(f"{dataset.path}: {name}: {error}") from error
        seconds.append(time.perf_counter() - started)
        write_png(folder / f"{name}.png", stretch_to_uint8(fused))
    if not seconds:
        return
    where = f" (process 0 of {processes.count()})" if processes.count() > 1 else ""
    print(f"first image, kernels compiled or loaded: {seconds[0]:.2f} s{where}")
    if len(seconds) > 1:
        print(f"the other {len(seconds) - 1}: {1 / fmean(seconds[1:]):.2f} images/s ({fmean(seconds[1:]):.3f} s each)")


def image_files(dataset: H5Dataset, pairs: Sequence[Pair]) -> dict[str, Pair]:
    """The image files of every sample, by name.

    Raises:
        UserError: there are none for one of them.
    """
    files = {pair.name: pair for pair in pairs}
    if missing := [name for name in dataset.names if name not in files]:
        raise UserError(
            f"{dataset.path}: no image files of {missing[0]!r}, whose colours --color needs; name the right ones by "
            "--root, --raw, or --dir_a and --dir_b"
        )
    return {name: files[name] for name in dataset.names}


def colour_dataset(pairs: Mapping[str, Pair], folder: Path) -> Path:
    """Write the fused images of `folder` with the colours of their sources to RGB/ beside it, and return its path."""
    rgb = folder.parent / "RGB"

    def write(name: str) -> bool:
        gray, pair = read_gray(folder / f"{name}.png").astype(np.uint8), pairs[name]
        return write_colored(rgb / f"{name}.png", gray, pair.image_a, pair.image_b)

    gray = len(pairs) - sum(tqdm(map_ahead(write, pairs), desc="colour", total=len(pairs), unit="image"))
    gray, all_pairs = collective.total(np.array([gray, len(pairs)], np.int32)).tolist()
    if gray:
        print(f"no colour in the sources of {gray} of {all_pairs} pairs: their RGB images are gray")
    return rgb


def gray_sources(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The gray source images A and B, (H, W) in 0..255, of a sample in a test H5 file.

    The file holds them at their own size, divided by 255: times 255 and rounded they are what `read_gray` gives.
    """
    a, b = (np.round(image[0].astype(np.float64) * 255) for image in (sample.image_a, sample.image_b))
    return a, b


def evaluate_dataset(dataset: H5Dataset, folder: Path) -> dict[str, dict[str, float]]:
    """The metrics of the fused images in `folder`, by name, over the pairs of `dataset` and no others."""
    from utils.evaluation.evaluate import measure, measure_all

    index = {name: i for i, name in enumerate(dataset.names)}

    def measure_one(name: str) -> dict[str, float]:
        path = folder / f"{name}.png"
        return measure(path, read_gray(path), *gray_sources(dataset[index[name]]))

    return measure_all(dataset.names, measure_one)


def gather_rows(names: Sequence[str], own: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The metrics of all images by name, put together of what each process measured of its share of `names`."""
    from utils.evaluation.metrics import METRICS

    rows = np.array([[row[metric] for metric in METRICS] for row in own.values()]).reshape(-1, len(METRICS))
    whole = collective.gather(rows, len(names)).tolist()
    return {name: dict(zip(METRICS, row, strict=True)) for name, row in zip(names, whole, strict=True)}


@dataclass(frozen=True)
class PageRows(Sequence["PageRow"]):
    """What the pages show of every pair: A, B, the fused image in `folder`, the coloured one in `rgb`, and metrics.

    A row is read when it is asked for: the images of a whole data set may not fit in memory.
    """

    dataset: H5Dataset
    folder: Path
    rgb: Path | None
    values: Mapping[str, Mapping[str, float]]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PageRow:
        from utils.evaluation.contact_sheet import PageRow
        from utils.evaluation.metrics import TABLE_METRICS

        sample = self.dataset[index]
        a, b = gray_sources(sample)
        file = f"{sample.name}.png"
        images = {"A": a, "B": b, "fused": read_gray(self.folder / file)}
        if self.rgb:
            images["colour"] = read_bgr(self.rgb / file)[..., ::-1]
        return PageRow(sample.name, images, {metric: self.values[sample.name][metric] for metric in TABLE_METRICS})


def draw_pages(rows: PageRows, title: str, folder: Path, contact_sheet: bool, report: bool) -> None:
    """Write the pages that are asked for to `folder`, and say where they are."""
    if contact_sheet:
        from utils.evaluation.contact_sheet import draw_contact_sheet

        path = folder / "contact_sheet.png"
        draw_contact_sheet(rows, title, path)
        print(f"contact sheet: {path}")
    if report:
        from utils.evaluation.report import write_report

        path = folder / "report.html"
        write_report(rows, title, path)
        print(f"report, for a browser: {path}")


def test(args: argparse.Namespace) -> None:
    """Fuse and measure as the options say.

    Raises:
        UserError: data or weights that are missing or do not fit.
    """
    with H5Dataset(args.h5_dir / f"{args.dataset}_test.h5", args.skip_bad) as dataset:
        pairs = image_files(dataset, find_source(args, "test").pairs) if args.color else {}
        path = checkpoint_path(args.ckpt_path, args.task)
        from utils.evaluation.evaluate import mean_row
        from utils.evaluation.metrics import format_table
        from utils.runtime.jittor_env import use_device

        print(use_device(args.device, args.tf32))
        if line := processes.describe():
            print(line)
        folder = args.out_dir / args.dataset / "Gray"
        own = dataset.share()
        fuse_dataset(load_net(path), own, folder)
        print(f"fused images: {folder}")
        rgb = colour_dataset({name: pairs[name] for name in own.names}, folder) if args.color else None
        if rgb:
            print(f"in colour: {rgb}")
        values = gather_rows(dataset.names, evaluate_dataset(own, folder))
        if not processes.is_main():
            return
        rows = PageRows(dataset, folder, rgb, values)
        draw_pages(rows, f"{args.dataset}, {path.name}", folder.parent, args.contact_sheet, args.report)
        print(format_table(args.dataset, {"FILM": mean_row(values)}))
        if dataset.skipped:
            print(f"skipped: {len(dataset.skipped)} bad pairs, named above; the averages are without them")


def main(argv: Sequence[str] | None = None) -> None:
    test(get_args_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
