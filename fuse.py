"""Fuse a pair of your own images, or two folders of them, with trained weights.

    python fuse.py ir.png vi.png -o fused.png --text "A man walks past a parked car at night, ..."
    python fuse.py infrared/ visible/ -o fused/ --color
    python fuse.py ir.mp4 vi.mp4 -o fused.mp4
    python fuse.py over.png middle.png under.png --task MEF -o fused.png

A is the infrared, MRI, over-exposed or near-focus image; B the visible, CT/PET/SPECT, under-exposed or far-focus one.

--text, --text_file or --text_feature apply to all pairs. Without them, the text of a pair is Text/<name>.txt or
TextFeature/<name>.npy next to the images. If there is neither, a neutral sentence is used, and a line says so; its
feature ships with the weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from utils.data.bad_pairs import BadPairs, list_skipped
from utils.data.color import write_colored
from utils.data.images import ImageReader, write_png
from utils.data.pairs import Pair, left_out, match_folders, pair_of
from utils.data.provenance import Provenance
from utils.data.reading import add_reading_options, pair_reader
from utils.data.sources import add_link_option
from utils.data.tasks import TASKS
from utils.evaluation.inference import Job, checkpoint_path, fuse, fuse_unstretched, load_net
from utils.evaluation.stacks import Stack, find_stacks
from utils.evaluation.video import Video, find_videos
from utils.runtime.cli import RawHelpFormatter, add_device_options, not_empty, path_type, run_command, text_type
from utils.runtime.errors import OPTIONAL, UserError, missing
from utils.runtime.files import is_folder, require_readable, require_separate
from utils.runtime.processes import use_threads
from utils.runtime.threads import map_ahead
from utils.text.cache import EncodedText, text_features
from utils.text.features import FeatureFiles, read_paragraph
from utils.training.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from net.Film import Net

# Options that stacks and videos do not have.
PAIRS_ONLY = ("register", "resize", "skip_bad", "strict", "stretch", "percentiles", "pseudocolor")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawHelpFormatter)
    add = parser.add_argument
    add("a", type=path_type, metavar="A", help="image A, a folder of images, or a video")
    add("b", type=path_type, nargs="?", metavar="B", help="image B, a folder of images with the same names, or a video")
    add(
        "more",
        type=path_type,
        nargs="*",
        metavar="C",
        help="more images of a stack (--task MEF or MFF); A alone: a folder or TIFF of a stack, or a folder of stacks",
    )
    add(
        *("-o", "--out"),
        type=path_type,
        help="a .png file (its colour version is <name>_RGB.png); for two folders, a folder for Gray/ and RGB/ "
        "(default: <name of A>_fused.png; fused/)",
    )
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", type=text_type, help="an English paragraph that describes both images")
    text.add_argument("--text_file", type=path_type, metavar="F", help="a UTF-8 file with this paragraph")
    text.add_argument("--text_feature", type=path_type, metavar="F.npy", help="its text feature, float32 (1, 149, 768)")
    add(
        "--text_encoder",
        type=not_empty,
        metavar="ENCODER",
        default="auto",
        help="as for data_process.py, but auto: ready features if any exist, else the encoder that the weights were "
        "trained with, or bert if they do not record it",
    )
    add("--task", choices=tuple(TASKS), default="IVF", help="task of the pairs and the weights")
    add("--ckpt_path", type=path_type, help="weights, .pkl or .pth (default: models/<task>.pkl)")
    add("--color", action="store_true", help="also write a colour image: the fused luma with the chroma of the sources")
    add("--skip_bad", action="store_true", help="name bad pairs, leave them out, and list them in <out>/skipped.txt")
    add("--strict", action="store_true", help="an image of a folder without a partner is an error")
    add_reading_options(parser)
    add_link_option(parser)
    add_device_options(parser)
    return parser


def find_jobs(
    a: Path, b: Path, out: Path | None, task: str, strict: bool, bad: BadPairs, follow_links: bool = False
) -> list[Job]:
    """The pairs of two files or two folders, and their output files. Images without a partner are named.

    Raises:
        UserError: only one is a folder, no names match, `out` is not a .png file, a pair is bad and not to be skipped,
            or with `strict` an image has no partner.
    """
    if is_folder(a) != is_folder(b):
        raise UserError(f"{a}, {b}: expected two images or two folders of images, not one of each")

    def pair(name: str, image_a: Path, image_b: Path) -> Pair:
        folder = image_a.parent.resolve()
        dataset, folders = folder.parent.name, (folder.parent, folder)
        return pair_of(name, image_a, image_b, Path("VLFDataset"), task, dataset, folders, follow_links)

    if a.is_dir():
        out = out or Path("fused")
        matches = match_folders(a, b, strict, bad, follow_links)
        if matches.alone:
            print(left_out(matches.alone))
        jobs = []
        for name, images in matches.pairs.items():
            with bad.guard(name):
                jobs.append(Job(pair(name, *images), out / "Gray" / f"{name}.png", out / "RGB" / f"{name}.png"))
        return jobs
    out = out or Path(f"{a.stem}_fused.png")
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"{out}: expected the name of a .png file")
    return [Job(pair(a.stem, a, b), out, out.with_name(f"{out.stem}_RGB.png"))]


def features_of(
    pairs: Sequence[Pair], args: argparse.Namespace, bad: BadPairs, weights: Path, trained: Provenance
) -> Callable[[Pair], np.ndarray]:
    """A function that returns the text feature of a pair, float32 (149, 768). Prints the source of the features.

    Args:
        pairs: the pairs to fuse.
        args: the options.
        bad: collects the pairs whose text or feature cannot be read.
        weights: the checkpoint; <its name>.npy next to it is the feature of the neutral sentence by its encoder.
        trained: what the checkpoint records about its training data.

    Raises:
        UserError: a text or feature is missing or bad and its pair not to be skipped, or the encoder is unavailable.
    """
    given = args.text is not None or args.text_file is not None
    if args.text_feature:
        return ready_feature(args.text_feature)
    features = text_features(args.text_encoder, () if given else pairs, trained.text_encoder or "bert")
    if isinstance(features, FeatureFiles):
        if given:
            raise UserError("--text_encoder npy: cannot encode a text; name another encoder, or use --text_feature")
        for pair in pairs if bad.skip else ():
            with bad.guard(pair.name):
                features.check(pair)
        print(features.prepare(bad.good(pairs)))
        return features.feature

    neutral = TASKS[args.task].neutral
    ready = weights.with_suffix(".npy")
    usable = args.text_encoder == "auto" and not given and trained.text_encoder and ready.is_file()
    described = [pair for pair in pairs if pair.text.is_file()]
    if usable and not described:
        print(f"text: the neutral sentence {neutral!r} ({ready}); --text describes the images")
        return ready_feature(ready)
    texts = {}
    for pair in pairs:
        with bad.guard(pair.name):
            texts[pair.name] = read_paragraph(pair.text) if pair.text.is_file() and not given else neutral
    pairs = bad.good(pairs)
    if given:
        text = read_paragraph(args.text_file) if args.text_file else args.text.strip()
        if not text:
            raise UserError("--text: is empty; expected an English paragraph about the pair")
        texts = {pair.name: text for pair in pairs}
    elif without := len(pairs) - len(described):
        print(f"no text for {without} of {len(pairs)} pairs: the neutral sentence {neutral!r} is used")
        print("to describe them: --text, --text_file, or Text/<name>.txt next to the images")
    try:
        print(encode(features, texts, trained))
    except (UserError, ModuleNotFoundError) as error:
        if not usable or getattr(error, "name", None) not in (None, *OPTIONAL):
            raise
        reason = missing(error.name) if isinstance(error, ModuleNotFoundError) else error
        print(f"no text encoder ({reason}): the neutral sentence {neutral!r} is used for all pairs ({ready})")
        return ready_feature(ready)
    return lambda pair: features.feature_of(pair.name)


def ready_feature(path: Path) -> Callable[[Pair], np.ndarray]:
    """A function that returns the feature in the file `path` for every pair."""
    feature = FeatureFiles().feature(Pair("", path, path, path, path))
    return lambda pair: feature


def encode(features: EncodedText, texts: dict[str, str], trained: Provenance) -> str:
    """Encode `texts`, by name; returns a report that says so if the weights were trained with another encoder."""
    report = features.prepare_texts(texts)
    name, digest = features.encoder
    if trained.other_encoder(digest):
        report += f"\nthe weights were trained with another text encoder, {trained.text_encoder}, not {name}"
    return report


def files_of(
    jobs: Sequence[Job | Video | Stack], args: argparse.Namespace, weights: Path, skipped: Path | None = None
) -> tuple[list[Path], list[Path]]:
    """The output files of all jobs, and the files that are read for them."""
    outputs = [path for job in jobs for path in ([job.gray, job.rgb] if args.color else [job.gray])]
    inputs = [file for job in jobs for file in (*job.paths, job.pair.text, job.pair.feature)]
    options = [path for path in (args.text_file, args.text_feature) if path]
    return [*outputs, *([skipped] if skipped and args.skip_bad else [])], [*inputs, *options, weights]


def read_weights(path: Path, task: str) -> tuple[dict[str, Any], Provenance]:
    """The content of a checkpoint, and what it records about its training data.

    Raises:
        UserError: it cannot be read, or records another task.
    """
    checkpoint = read_checkpoint(path)
    trained = Provenance.read(checkpoint.get("data"))
    if trained.task in TASKS and trained.task != task:
        raise UserError(f"{path}: was trained for {trained.task}, not {task}; --task {trained.task} uses it")
    return checkpoint, trained


def ready_net(args: argparse.Namespace, path: Path, checkpoint: dict[str, Any]) -> Net:
    """The network with the weights of a checkpoint on the device of the options, which is printed."""
    from utils.runtime.jittor_env import use_device

    print(use_device(args.device, args.tf32))
    return load_net(path, checkpoint)


def fuse_others(others: Sequence[Video | Stack], args: argparse.Namespace, path: Path) -> None:
    """Fuse videos or stacks with the weights at `path`.

    Raises:
        UserError: an option is only for pairs, an output is an input, or images, text or weights do not fit.
    """
    default = get_args_parser().get_default
    if refused := [f"--{name}" for name in PAIRS_ONLY if getattr(args, name) != default(name)]:
        raise UserError(f"{', '.join(refused)}: for pairs of images, not for stacks and videos")
    require_separate(*files_of(others, args, path))
    for source in (source for other in others for source in other.paths):
        require_readable(source, "no such image or video")
    checkpoint, trained = read_weights(path, args.task)
    feature = features_of([other.pair for other in others], args, BadPairs(), path, trained)
    net = ready_net(args, path, checkpoint)
    for other in others:
        text = feature(other.pair)[None]
        written = other.write(
            lambda a, b, text=text: fuse_unstretched(net, a[None, None], b[None, None], text), args.color
        )
        print("fused: " + " and ".join(map(str, written)))


def fuse_pairs(args: argparse.Namespace, path: Path) -> None:
    """Fuse two images, or the pairs of two folders, with the weights at `path`.

    Raises:
        UserError: images, text or weights are missing or do not fit.
    """
    bad = BadPairs(args.skip_bad)
    jobs = find_jobs(args.a, args.b, args.out, args.task, args.strict, bad, args.follow_links)
    skipped_path = jobs[0].gray.parent.parent / "skipped.txt" if args.a.is_dir() else None
    require_separate(*files_of(jobs, args, path, skipped_path))
    reader = pair_reader(args, [job.pair for job in jobs], args.task)
    if len(jobs) == 1:
        # Fail early: downloading a text encoder may take minutes.
        reader.gray(jobs[0].pair)
    checkpoint, trained = read_weights(path, args.task)
    feature = features_of([job.pair for job in jobs], args, bad, path, trained)
    jobs = [job for job in jobs if job.pair.name not in bad.reasons]
    net = ready_net(args, path, checkpoint)

    def read(job: Job) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        with bad.guard(job.pair.name):
            return *(image / np.float32(255) for image in reader.gray(job.pair)), feature(job.pair)
        return None

    def fused() -> Iterator[tuple[Job, np.ndarray]]:
        progress = tqdm(jobs, desc="fuse", unit="pair", disable=len(jobs) == 1)
        for job, arrays in zip(progress, map_ahead(read, jobs), strict=True):
            if arrays is not None:
                a, b, text = arrays
                yield job, fuse(net, a[None, None], b[None, None], text[None])

    def write(result: tuple[Job, np.ndarray]) -> bool:
        job, gray = result
        write_png(job.gray, gray)
        if not args.color:
            return True
        pair = job.pair
        return write_colored(job.rgb, gray, pair.image_a, pair.image_b, args.resize, reader.bgr_of(pair))

    gray_only = sum(not colored for colored in map_ahead(write, fused()))
    bad.good([job.pair for job in jobs])
    for line in reader.report():
        print(line)
    if args.skip_bad and skipped_path and (line := list_skipped(skipped_path, bad.reasons)):
        print(line)
    if gray_only:
        print(f"no colour in the sources of {gray_only} of {len(jobs)} pairs: their RGB images are gray")
    written = [jobs[0].gray, jobs[0].rgb] if len(jobs) == 1 else [jobs[0].gray.parent, jobs[0].rgb.parent]
    print("fused: " + " and ".join(map(str, written[: 2 if args.color else 1])))


def fuse_files(args: argparse.Namespace) -> None:
    """Fuse what the arguments name: pairs of images, stacks or videos.

    Raises:
        UserError: as `fuse_pairs` and `fuse_others`.
    """
    use_threads(args.threads)
    path = checkpoint_path(args.ckpt_path, args.task)
    given = [args.a, *filter(None, [args.b]), *args.more]
    reader = ImageReader()
    videos = find_videos(given, args.out, args.task, args.follow_links)
    if others := videos or find_stacks(given, args.out, args.task, reader, args.follow_links):
        fuse_others(others, args, path)
        for line in reader.report():
            print(line)
    else:
        fuse_pairs(args, path)


def main(argv: Sequence[str] | None = None) -> None:
    # Intermixed: the images may come before and after the options.
    fuse_files(get_args_parser().parse_intermixed_args(argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
