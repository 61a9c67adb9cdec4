"""Fuse a pair of your own images, or two folders of them, with trained weights.

    python fuse.py ir.png vi.png -o fused.png --text "A man walks past a parked car at night, ..."
    python fuse.py infrared/ visible/ -o fused/ --color
    python fuse.py ir.mp4 vi.mp4 -o fused.mp4
    python fuse.py over.png middle.png under.png --task MEF -o fused.png

A is the infrared, MRI, over-exposed or near-focus image; B the visible, CT/PET/SPECT, under-exposed or far-focus one.

--text, --text_file or --text_feature apply to all pairs. Without them the text of a pair is Text/<name>.txt or
TextFeature/<name>.npy next to the images, else a neutral sentence, whose feature ships with the weights; the output
says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.color import write_colored
from utils.data.images import read_bgr, read_gray, require_one_size, to_one_size, write_png
from utils.data.pairs import Pair, match_folders, pair_of
from utils.data.provenance import Provenance
from utils.data.register import Registrar, add_register_option
from utils.data.tasks import TASKS
from utils.evaluation.inference import checkpoint_path, fuse, fuse_unstretched, load_net
from utils.evaluation.stacks import find_stacks
from utils.evaluation.video import find_films
from utils.runtime.cli import add_device_options, run_command
from utils.runtime.errors import OPTIONAL, UserError, missing
from utils.runtime.threads import map_ahead
from utils.text.cache import EncodedText, text_features
from utils.text.features import FeatureFiles, read_paragraph
from utils.training.checkpoint import read_checkpoint


@dataclass(frozen=True)
class Job:
    """A pair and its output files."""

    pair: Pair
    gray: Path
    rgb: Path


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("a", type=Path, metavar="A", help="image A, a folder of images, or a film")
    add("b", type=Path, nargs="?", metavar="B", help="image B, a folder of images with the same names, or a film")
    add(
        "more",
        type=Path,
        nargs="*",
        metavar="C",
        help="more images of a stack (--task MEF or MFF); A alone: a folder or TIFF of a stack, or a folder of stacks",
    )
    add(
        *("-o", "--out"),
        type=Path,
        help="a .png file (its colour version is <name>_RGB.png); for two folders, a folder for Gray/ and RGB/ "
        "(default: <name of A>_fused.png; fused/)",
    )
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", help="an English paragraph that describes both images")
    text.add_argument("--text_file", type=Path, metavar="F", help="a UTF-8 file with this paragraph")
    text.add_argument("--text_feature", type=Path, metavar="F.npy", help="its text feature, float32 (1, 149, 768)")
    add(
        "--text_encoder",
        metavar="ENCODER",
        default="auto",
        help="see data_process.py (default: ready features if any exist, else the encoder that the weights were "
        "trained with, or bert if they do not record it)",
    )
    add("--task", choices=tuple(TASKS), default="IVF", help="of the pairs and the weights (default: IVF)")
    add("--ckpt_path", type=Path, help="weights, .pkl or .pth (default: models/<task>.pkl)")
    add("--color", action="store_true", help="also write a colour image: the fused luma with the chroma of the sources")
    add("--resize", action="store_true", help="resize the smaller image of a pair to the size of the larger")
    add_register_option(parser)
    add_device_options(parser)
    return parser


def find_jobs(a: Path, b: Path, out: Path | None, task: str) -> list[Job]:
    """The pairs of two files or two folders, and their output files.

    Raises:
        UserError: only one is a folder, no names match, or `out` is not a .png file.
    """
    if a.is_dir() != b.is_dir():
        raise UserError(f"{a}, {b}: expected two images or two folders of images, not one of each")

    def pair(name: str, image_a: Path, image_b: Path) -> Pair:
        folder = image_a.parent.resolve()
        dataset, folders = folder.parent.name, (folder.parent, folder)
        return pair_of(name, image_a, image_b, Path("VLFDataset"), task, dataset, folders)

    if a.is_dir():
        out = out or Path("fused")
        return [
            Job(pair(name, *images), out / "Gray" / f"{name}.png", out / "RGB" / f"{name}.png")
            for name, images in match_folders(a, b).items()
        ]
    out = out or Path(f"{a.stem}_fused.png")
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"{out}: expected the name of a .png file")
    return [Job(pair(a.stem, a, b), out, out.with_name(f"{out.stem}_RGB.png"))]


def read_images(pair: Pair, resize: bool, registrar: Registrar | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The gray images of a pair, float32 (H, W) in 0..1.

    Raises:
        UserError: an image cannot be read, or the sizes differ and `resize` is not set, or they cannot be registered.
    """
    a, b = read_gray(pair.image_a), read_gray(pair.image_b)
    if resize:
        a, b = to_one_size(a, b)
    require_one_size(a, b, pair.image_a, pair.image_b, "; --resize resizes the smaller one")
    if registrar:
        a, b = registrar.align(pair, a, b)
    return a / np.float32(255), b / np.float32(255)


def features_of(
    pairs: Sequence[Pair], args: argparse.Namespace, weights: Path, trained: Provenance
) -> Callable[[Pair], np.ndarray]:
    """A function that returns the text feature of a pair, float32 (149, 768). Prints the source of the features.

    Args:
        pairs: the pairs to fuse.
        args: the options.
        weights: the checkpoint; <its name>.npy beside it is the feature of the neutral sentence by its encoder.
        trained: what the checkpoint records about its training data.

    Raises:
        UserError: a text or feature is missing or bad, or the encoder is unavailable.
    """
    given = args.text is not None or args.text_file is not None
    if args.text_feature:
        return ready_feature(args.text_feature)
    features = text_features(args.text_encoder, () if given else pairs, trained.text_encoder or "bert")
    if isinstance(features, FeatureFiles):
        if given:
            raise UserError("--text_encoder npy: cannot encode a text; name another encoder, or use --text_feature")
        print(features.prepare(pairs))
        return features.feature

    neutral = TASKS[args.task].neutral
    ready = weights.with_suffix(".npy")
    usable = args.text_encoder == "auto" and not given and trained.text_encoder and ready.is_file()
    described = [pair for pair in pairs if pair.text.is_file()]
    if usable and not described:
        print(f"text: the neutral sentence {neutral!r} ({ready}); --text describes the images")
        return ready_feature(ready)
    texts = {pair.name: neutral for pair in pairs} | {pair.name: read_paragraph(pair.text) for pair in described}
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
    return lambda pair: FeatureFiles().feature(replace(pair, feature=path))


def encode(features: EncodedText, texts: dict[str, str], trained: Provenance) -> str:
    """Encode `texts`, by name; returns a report that says so if the weights were trained with another encoder."""
    report = features.prepare_texts(texts)
    name, digest = features.encoder
    if trained.other_encoder(digest):
        report += f"\nthe weights were trained with another text encoder, {trained.text_encoder}, not {name}"
    return report


def fuse_files(args: argparse.Namespace) -> None:
    """Fuse the pairs that the options select.

    Raises:
        UserError: images, text or weights are missing or do not fit.
    """
    path = checkpoint_path(args.ckpt_path, args.task)
    given = [args.a, *filter(None, [args.b]), *args.more]
    # Stacks and films have a pair, too, and write themselves.
    others = find_films(given, args.out, args.task) or find_stacks(given, args.out, args.task)
    if others and (args.register or args.resize):
        raise UserError(f"{args.a}: --register and --resize are for pairs of images, not for stacks and films")
    jobs = [] if others else find_jobs(args.a, args.b, args.out, args.task)
    registrar = Registrar() if args.register else None
    if len(jobs) == 1:
        # Fail early: downloading a text encoder may take minutes.
        read_images(jobs[0].pair, args.resize, registrar)
    checkpoint = read_checkpoint(path)
    trained = Provenance.read(checkpoint.get("data"))
    if trained.task in TASKS and trained.task != args.task:
        raise UserError(f"{path}: was trained for {trained.task}, not {args.task}; --task {trained.task} uses it")
    feature = features_of([job.pair for job in others or jobs], args, path, trained)

    from utils.runtime.jittor_env import use_device

    print(use_device(args.device, args.tf32))
    net = load_net(path, checkpoint)
    for other in others:
        text = feature(other.pair)[None]
        written = other.write(
            lambda a, b, text=text: fuse_unstretched(net, a[None, None], b[None, None], text), args.color
        )
        print("fused: " + " and ".join(map(str, written)))
    if others:
        return
    images = map_ahead(lambda job: read_images(job.pair, args.resize, registrar), jobs)
    gray_only = 0
    for job, (a, b) in zip(tqdm(jobs, desc="fuse", unit="pair", disable=len(jobs) == 1), images, strict=True):
        fused = fuse(net, a[None, None], b[None, None], feature(job.pair)[None])
        write_png(job.gray, fused)
        if args.color:
            read = registrar.reading(job.pair, read_bgr) if registrar else read_bgr
            gray_only += not write_colored(job.rgb, fused, job.pair.image_a, job.pair.image_b, args.resize, read)

    if registrar:
        print(registrar.report())
    if gray_only:
        print(f"no colour in the sources of {gray_only} of {len(jobs)} pairs: their RGB images are gray")
    written = [jobs[0].gray, jobs[0].rgb] if len(jobs) == 1 else [jobs[0].gray.parent, jobs[0].rgb.parent]
    print("fused: " + " and ".join(map(str, written[: 2 if args.color else 1])))


def main(argv: Sequence[str] | None = None) -> None:
    # Intermixed: the images may stand before and after the options.
    fuse_files(get_args_parser().parse_intermixed_args(argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
