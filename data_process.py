"""Turn pairs of images and their text features into the H5 file that train.py and test.py read.

python data_process.py --task IVF --dataset MSRS --mode train
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.datasets import MODES, TASKS, Pair, find_pairs
from utils.errors import UserError, run_command
from utils.h5 import Sample, write_h5
from utils.images import read_gray, to_training_size
from utils.text import FeatureFiles, TextFeatures

SIZES = ("small", "original")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write VLFDataset_h5/<dataset>_<mode>.h5 from the images, lists and text features of VLFDataset.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--task", choices=tuple(TASKS), default="IVF", help="; ".join(f"{key}: {t.title}" for key, t in TASKS.items()))
    add("--dataset", default="MSRS", help="folder of the data set within its task")
    add("--mode", choices=MODES, default="train", help="which list: train.txt or test.txt")
    add(
        "--size",
        choices=SIZES,
        default="small",
        help="small: training images become 288x384 (never those of MIF, nor test images); original: none is resized",
    )
    add("--root", type=Path, default=Path("VLFDataset"), help="folder that holds Image, Text and TextFeature")
    add("--out", type=Path, default=Path("VLFDataset_h5"), help="folder of the H5 files")
    return parser


def read_sample(pair: Pair, features: TextFeatures, resize: bool) -> Sample:
    """Read a pair: gray images divided by 255, at 288x384 if `resize`, and its text feature.

    Raises:
        UserError: a file is missing or unreadable, or the two images differ in size.
    """
    a, b = read_gray(pair.image_a), read_gray(pair.image_b)
    if a.shape != b.shape:
        sizes = " and ".join("x".join(map(str, image.shape)) for image in (a, b))
        raise UserError(f"{pair.image_a}: a pair of different sizes, {sizes}, with {pair.image_b}")
    a, b = a / np.float32(255), b / np.float32(255)
    if resize:
        a, b = to_training_size(a), to_training_size(b)
    return Sample(pair.name, a[None], b[None], features.feature(pair)[0])


def data_process(args: argparse.Namespace) -> None:
    """Write the H5 file that the options ask for.

    Raises:
        UserError: names the list, image or feature that is missing or wrong; no H5 file is left then.
    """
    pairs = find_pairs(args.root, args.task, args.dataset, args.mode)
    resize = args.mode == "train" and args.size == "small" and TASKS[args.task].resized
    features = FeatureFiles()

    def samples() -> Iterator[Sample]:
        for pair in tqdm(pairs, desc=f"{args.dataset} {args.mode}", unit="pair"):
            yield read_sample(pair, features, resize)

    path = args.out / f"{args.dataset}_{args.mode}.h5"
    count = write_h5(path, samples())
    size = "288x384" if resize else "their own size"
    print(f"{path}: {count} pairs at {size}, {path.stat().st_size / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> None:
    data_process(get_args_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
