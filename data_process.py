"""Convert pairs of images and their text features to the H5 file that train.py and test.py read.

python data_process.py --task IVF --dataset MSRS --mode train
python data_process.py --raw downloads/RoadScene --mode test
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.h5 import Sample, constant_image, write_h5
from utils.data.images import read_gray, require_one_size, to_training_size
from utils.data.pairs import MODES, Pair
from utils.data.provenance import Provenance
from utils.data.register import Registrar, add_register_option
from utils.data.sources import add_source_options, find_source
from utils.data.tasks import TASKS
from utils.runtime.cli import HelpFormatter, run_command
from utils.runtime.errors import UserError
from utils.runtime.threads import map_ahead
from utils.text.cache import EncodedText, text_features
from utils.text.captions import CAPTIONERS, Captioner, write_captions
from utils.text.encoder import FAMILIES
from utils.text.features import FeatureFiles

logger = logging.getLogger(__name__)

SIZES = ("small", "original")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write VLFDataset_h5/<dataset>_<mode>.h5 from pairs of images and their text features: from "
        "VLFDataset, from a data set as downloaded, or from any two folders.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    tasks = "; ".join(f"{key}: {task.title} ({', '.join(task.datasets)})" for key, task in TASKS.items())
    add("--task", choices=tuple(TASKS), help=f"{tasks} (default: that of the --raw layout, else IVF)")
    add(
        "--dataset",
        help="name of the data set: its folder in the task's folder (default: that of the layout or folder, else MSRS)",
    )
    add("--mode", choices=MODES, default="train", help="training or test pairs: train.txt or test.txt")
    add(
        "--size",
        choices=SIZES,
        default="small",
        help="small: resize training images (only these) to 288x384, except those of MIF; original: resize none",
    )
    add("--skip_bad", action="store_true", help="name bad pairs and leave them out")
    add("--out", type=Path, default=Path("VLFDataset_h5"), help="folder of the H5 files")
    add_register_option(parser)
    add_source_options(parser)
    add = parser.add_argument_group("text").add_argument
    add(
        "--text_encoder",
        metavar="ENCODER",
        default="auto",
        help=f"the encoder of the paragraphs: {', '.join(FAMILIES)} (blip2: the paper's), or another of width 768, "
        "by its name on the hub or its folder; npy: ready features; auto: npy if any exist, else bert",
    )
    add(
        "--caption",
        metavar="MODEL",
        help="first write drafts of missing paragraphs, from captions of the images, for you to edit: "
        f"{', '.join(CAPTIONERS)}, or another BLIP captioning model, by its name on the hub or its folder",
    )
    return parser


def read_sample(
    pair: Pair, features: FeatureFiles | EncodedText, resize: bool, registrar: Registrar | None = None
) -> Sample:
    """Read the gray images of a pair, scaled to 0..1 and if `resize` resized to 288x384, and its text feature.

    Raises:
        UserError: a file is missing or unreadable, or the two images differ in size before they are resized or cannot
            be registered.
    """
    a, b = read_gray(pair.image_a), read_gray(pair.image_b)
    require_one_size(a, b, pair.image_a, pair.image_b)
    if registrar:
        a, b = registrar.align(pair, a, b)
    if resize:
        a, b = to_training_size(a), to_training_size(b)
    a, b = a / np.float32(255), b / np.float32(255)
    return Sample(pair.name, a[None], b[None], features.feature(pair), (pair.image_a, pair.image_b))


def read_unless_bad(
    pair: Pair,
    features: FeatureFiles | EncodedText,
    resize: bool,
    skip_bad: bool,
    registrar: Registrar | None = None,
) -> Sample | None:
    """`read_sample`, but with `skip_bad` a bad pair becomes None. Bad pairs and constant images are logged.

    Raises:
        UserError: as `read_sample`, unless `skip_bad`.
    """
    try:
        sample = read_sample(pair, features, resize, registrar)
    except UserError as error:
        if not skip_bad:
            raise
        logger.warning("skipped: %s", error)
        return None
    if constant := constant_image(sample):
        logger.warning("%s%s: %s", "skipped: " if skip_bad else "", pair.name, constant)
        return None if skip_bad else sample
    return sample


def good_samples(samples: Iterable[Sample | None], path: Path) -> Iterator[Sample]:
    """The samples that are not None; raises `UserError` if there are none, so that `path` is not written."""
    count = 0
    for sample in samples:
        if sample:
            count += 1
            yield sample
    if not count:
        raise UserError(f"{path}: not written, because no good pair is left")


def data_process(args: argparse.Namespace) -> None:
    """Write the H5 file that the options describe.

    Raises:
        UserError: a list, image, text or feature is missing or bad. No H5 file is written.
    """
    source = find_source(args, args.mode)
    print(source.found)
    resize = args.mode == "train" and args.size == "small" and TASKS[source.task].resized
    if args.caption:
        written = write_captions(source.pairs, source.task, partial(Captioner, args.caption))
        drafts = f" ({written[0]}, ...); these are drafts: edit them, and run this again" if written else ""
        print(f"captions: {len(written)} written{drafts}")
    features = text_features(args.text_encoder, source.pairs)
    print(features.prepare(source.pairs))
    path = args.out / f"{source.dataset}_{args.mode}.h5"
    registrar = Registrar() if args.register else None
    samples = map_ahead(lambda pair: read_unless_bad(pair, features, resize, args.skip_bad, registrar), source.pairs)
    with tqdm(samples, desc=f"{source.dataset} {args.mode}", total=len(source.pairs), unit="pair") as progress:
        count = write_h5(path, good_samples(progress, path), Provenance(source.task, *features.encoder))
    if registrar:
        print(registrar.report())
    if skipped := len(source.pairs) - count:
        print(f"skipped: {skipped} bad pairs, named above")
    size = "288x384" if resize else "their own size"
    print(f"{path}: {count} pairs at {size}, {path.stat().st_size / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> None:
    data_process(get_args_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
