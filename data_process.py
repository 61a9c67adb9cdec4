"""Convert pairs of images and their text features to the H5 file that train.py and test.py read.

python data_process.py --task IVF --dataset MSRS --mode train
python data_process.py --raw downloads/RoadScene --mode test
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.bad_pairs import BadPairs, list_skipped
from utils.data.h5 import Sample, constant_image, require_writable, write_h5
from utils.data.images import to_training_size
from utils.data.pairs import MODES, Pair
from utils.data.provenance import Provenance
from utils.data.reading import PairReader, add_reading_options, pair_reader
from utils.data.sources import add_source_options, find_source
from utils.data.tasks import TASKS
from utils.runtime.cli import HelpFormatter, add_threads_option, name_type, not_empty, path_type, run_command
from utils.runtime.errors import UserError
from utils.runtime.files import require_plain_name, require_separate
from utils.runtime.processes import use_threads
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
        type=name_type,
        help="name of the data set: its folder in the task's folder (default: that of the layout or folder, else MSRS)",
    )
    add("--mode", choices=MODES, default="train", help="training or test pairs: train.txt or test.txt")
    add(
        "--size",
        choices=SIZES,
        default="small",
        help="small: resize training images (only these) to 288x384, except those of MIF; original: resize none",
    )
    add(
        "--skip_bad",
        action="store_true",
        help="name bad pairs, leave them out, and list them in <out>/<dataset>_<mode>_skipped.txt",
    )
    add("--out", type=path_type, default=Path("VLFDataset_h5"), help="folder of the H5 files")
    add_threads_option(parser)
    add_reading_options(parser)
    add_source_options(parser)
    add = parser.add_argument_group("text").add_argument
    add(
        "--text_encoder",
        type=not_empty,
        metavar="ENCODER",
        default="auto",
        help=f"the encoder of the paragraphs: {', '.join(FAMILIES)} (blip2: the paper's), or another of width 768, "
        "by its name on the Hugging Face hub or its folder; npy: ready features; auto: npy if any exist, else bert",
    )
    add(
        "--caption",
        type=not_empty,
        metavar="MODEL",
        help="first write drafts of missing paragraphs, from captions of the images, for you to edit: "
        f"{', '.join(CAPTIONERS)}, or another BLIP captioning model, by its name on the Hugging Face hub or its folder",
    )
    return parser


@dataclass(frozen=True)
class SampleReader:
    """Reads the samples of pairs.

    Attributes:
        images: reads the images, as the options say.
        features: reads or holds the text features.
        to_training: resize both images to 288x384.
    """

    images: PairReader
    features: FeatureFiles | EncodedText
    to_training: bool = False

    def read(self, pair: Pair) -> Sample:
        """The gray images of a pair, scaled to 0..1, and its text feature.

        Raises:
            UserError: as `PairReader.gray`, or the text feature is missing or bad.
        """
        a, b = self.images.gray(pair)
        if self.to_training:
            a, b = to_training_size(a), to_training_size(b)
        a, b = a / np.float32(255), b / np.float32(255)
        return Sample(pair.name, a[None], b[None], self.features.feature(pair), (pair.image_a, pair.image_b))

    def read_unless_bad(self, pair: Pair, bad: BadPairs) -> Sample | None:
        """`read`, but None for a bad pair. A constant image is bad if bad pairs are skipped, else logged.

        Raises:
            UserError: as `read`, if bad pairs are not skipped.
        """
        with bad.guard(pair.name):
            sample = self.read(pair)
            if not (constant := constant_image(sample)):
                return sample
            if not bad.skip:
                logger.warning("%s: %s", pair.name, constant)
                return sample
            bad.add(pair.name, f"{pair.name}: {constant}")
        return None


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
    use_threads(args.threads)
    bad = BadPairs(args.skip_bad)
    source = find_source(args, args.mode, bad)
    print(source.found)
    for pair in source.pairs:
        with bad.guard(pair.name):
            require_plain_name(pair.name, pair.image_a)  # it becomes a name in the H5 file
    pairs = bad.good(source.pairs)
    path = args.out / f"{source.dataset}_{args.mode}.h5"
    skipped_path = path.with_name(f"{path.stem}_skipped.txt")
    inputs = [file for pair in source.pairs for file in (pair.image_a, pair.image_b, pair.text, pair.feature)]
    require_separate([path, skipped_path], [*inputs, *([args.list] if args.list else [])])
    require_writable(path)
    reader = pair_reader(args, pairs, source.task)
    if args.caption:
        written = write_captions(pairs, source.task, partial(Captioner, args.caption), reader.images.bgr, bad)
        pairs = bad.good(pairs)
        drafts = f" ({written[0]}, ...); these are drafts: edit them, and run this again" if written else ""
        print(f"captions: {len(written)} written{drafts}")
    features = text_features(args.text_encoder, pairs)
    if args.skip_bad:
        for pair in pairs:
            with bad.guard(pair.name):
                features.check(pair)
        pairs = bad.good(pairs)
    print(features.prepare(pairs))
    to_training = args.mode == "train" and args.size == "small" and TASKS[source.task].resized
    sample_reader = SampleReader(reader, features, to_training)
    samples = map_ahead(lambda pair: sample_reader.read_unless_bad(pair, bad), pairs)
    with tqdm(samples, desc=f"{source.dataset} {args.mode}", total=len(pairs), unit="pair") as progress:
        count = write_h5(path, good_samples(progress, path), Provenance(source.task, *features.encoder))
    for line in reader.report():
        print(line)
    if args.skip_bad and (line := list_skipped(skipped_path, bad.reasons)):
        print(line)
    size = "288x384" if to_training else "their own size"
    print(f"{path}: {count} pairs at {size}, {path.stat().st_size / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> None:
    data_process(get_args_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
