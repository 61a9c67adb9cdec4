"""Selects the pairs for a script: of VLFDataset, of a data set as downloaded, or of any two folders."""

from __future__ import annotations

import argparse
import posixpath
from dataclasses import dataclass
from pathlib import Path

from utils.data.bad_pairs import BadPairs
from utils.data.layouts import SPLITS, Candidate, Found, detect
from utils.data.pairs import (
    Pair,
    ends_with,
    find_pairs,
    key,
    left_out,
    match_folders,
    pair_of,
    read_list,
    require_partners,
    stem,
)
from utils.data.tasks import TASKS
from utils.runtime.cli import path_type
from utils.runtime.errors import UserError
from utils.runtime.files import require_inside

NAMES_SHOWN = 5
DEFAULT_TASK, DEFAULT_DATASET = "IVF", "MSRS"


@dataclass(frozen=True)
class Selection:
    """The pairs for a script; `found` describes in a few lines what was found and where."""

    task: str
    dataset: str
    pairs: list[Pair]
    found: str


def add_source_options(parser: argparse.ArgumentParser, title: str = "where the images are") -> None:
    """Add the options that `find_source` reads, except task, dataset and mode, as a group under `title`."""
    add = parser.add_argument_group(title).add_argument
    add("--root", type=path_type, default=Path("VLFDataset"), help="folder of Image/, Text/ and TextFeature/")
    add("--raw", type=path_type, metavar="DIR", help="or a data set as downloaded; its layout is detected")
    add(
        "--dir_a",
        type=path_type,
        metavar="DIR",
        help="or any two folders: images A (IR, MRI, over-exposed, near focus)",
    )
    add("--dir_b", type=path_type, metavar="DIR", help="and images B, with the same names")
    add(
        "--list",
        type=path_type,
        metavar="FILE",
        help="with --raw or --dir_a: a list of the pairs to use, one name or path of an image per line",
    )
    add("--strict", action="store_true", help="with --raw or --dir_a: an image without a partner is an error")
    add_link_option(parser)


def add_link_option(parser: argparse.ArgumentParser) -> None:
    """Add --follow_links."""
    parser.add_argument(
        "--follow_links",
        action="store_true",
        help="read images, texts and features also through links out of their folder, as in the cache of the Hugging "
        "Face hub; only for data that you trust",
    )


def find_source(args: argparse.Namespace, mode: str, bad: BadPairs | None = None) -> Selection:
    """The pairs that the options of a script select.

    The pairs of a downloaded data set, or of two folders, are the first of these that exist:

    - those of --list
    - those of the data set's folder train or test
    - those of <mode>.txt in its folder (of two folders: in the parent of --dir_a)
    - the official test pairs; for training, all others
    - all pairs, in both modes

    Texts and features come from Text/ and TextFeature/ next to the images, else from --root, where new ones are
    written.

    Args:
        args: the options of `add_source_options`, and task and dataset. Where these two are None, the layout decides,
            and two folders are named after the parent of --dir_a. The defaults are IVF and MSRS.
        mode: 'train' or 'test'.
        bad: collects the pairs of which an image is missing, ambiguous, or a link that leads out of its folder (without
            --follow_links).

    Raises:
        UserError: options contradict each other; a folder, list or image is missing; no layout or several layouts fit;
            two images belong to the same side of a pair; or with --strict, an image has no partner.
    """
    bad = bad or BadPairs()
    if (args.dir_a is None) != (args.dir_b is None) or (args.raw and args.dir_a):
        raise UserError("images: either --raw, or both --dir_a and --dir_b, or neither")
    if args.raw:
        found = detect(args.raw, mode, args.task, args.dataset)
    elif args.dir_a:
        found = _two_folders(args, bad)
    elif args.list:
        raise UserError("--list: use it with --raw, or with --dir_a and --dir_b; VLFDataset has its own lists")
    else:
        task, dataset = args.task or DEFAULT_TASK, args.dataset or DEFAULT_DATASET
        pairs = find_pairs(args.root, task, dataset, mode, bad, args.follow_links)
        folder = args.root / "Image" / task / dataset
        return Selection(task, dataset, pairs, f"{folder}: {len(pairs)} pairs of {mode}.txt")

    require_partners(found.alone, args.strict)
    names, how = _choose(found, mode, args.list, bad)
    pairs = []
    for name in names:
        with bad.guard(name):
            a, b, text_folders = found.pairs[name]
            images = [require_inside(_only(paths, name), found.folder, args.follow_links) for paths in (a, b)]
            place = args.root, found.task, found.dataset
            pairs.append(pair_of(name, *images, *place, text_folders, args.follow_links))
    pairs = bad.good(pairs)
    title = f"{args.raw or f'{args.dir_a} and {args.dir_b}'}: {found.dataset}, {TASKS[found.task].title}"
    if args.raw:
        a, b = (path.relative_to(args.raw) for path in (pairs[0].image_a, pairs[0].image_b))
        title += f": A {a}, B {b}, ..."
    texts, features = (sum(getattr(pair, kind).is_file() for pair in pairs) for kind in ("text", "feature"))
    lines = (
        title,
        f"{mode}: {len(pairs)} pairs ({how})" + (f"; {left_out(found.alone)}" if found.alone else ""),
        f"texts: {texts} paragraphs, {features} ready features",
    )
    return Selection(found.task, found.dataset, pairs, "\n".join(lines))


def _two_folders(args: argparse.Namespace, bad: BadPairs) -> Found:
    """The pairs of two folders: images with the same name. The data set is named after the parent of --dir_a."""
    matches = match_folders(args.dir_a, args.dir_b, bad=bad, follow_links=args.follow_links)
    base = args.dir_a.resolve().parent
    pairs = {name: Candidate([a], [b], (base,)) for name, (a, b) in matches.pairs.items()}
    return Found(args.task or DEFAULT_TASK, args.dataset or base.name, base, pairs, matches.alone)


def _choose(found: Found, mode: str, list_path: Path | None, bad: BadPairs) -> tuple[list[str], str]:
    """The names of the pairs for `mode`, and how they were selected."""
    names, own_list = list(found.pairs), found.folder / f"{mode}.txt"
    if not list_path and found.split:
        return names, f"the folder {mode}"
    if not list_path and own_list.is_file():
        list_path = own_list
    if list_path:
        listed = _listed_pairs(list_path, found)
        if missing := [name for name, pair in listed.items() if pair is None]:
            shown = ", ".join(missing[:NAMES_SHOWN])
            problem = f"{list_path}: {len(missing)} of {len(listed)} names have no pair in {found.folder}: {shown}"
            if not bad.skip:
                raise UserError(problem)
            for name in set(missing) - set(bad.reasons):
                bad.add(name, f"{list_path}: {name!r} has no pair in {found.folder}")
        return list(dict.fromkeys(pair for pair in listed.values() if pair is not None)), str(list_path)
    if found.test_list:
        tested = {stem(name) for name in read_list(SPLITS / found.test_list)}
        chosen = [name for name in names if (name in tested) == (mode == "test")]
        if not chosen:
            raise UserError(f"{found.folder}: holds none of the official {mode} pairs; select pairs with --list")
        return chosen, f"the {len(tested)} official test pairs" + (" left out" if mode == "train" else "")
    return names, "no split is known: all pairs, in both modes; --list selects some"


def _listed_pairs(path: Path, found: Found) -> dict[str, str | None]:
    """The entries of a list, and the pair of each: the one of this name, else the one with an image of this path.

    A path may be any end of the image's path. An entry without a pair maps to None; its suffix is left out.

    Raises:
        UserError: as `read_list`, or an entry fits several pairs.
    """
    known = {key(name): name for name in found.pairs}
    files: dict[str, list[tuple[Path, str]]] = {}
    for name, candidate in found.pairs.items():
        for image in (*candidate.a, *candidate.b):
            files.setdefault(key(image.name), []).append((image.parent, name))
    listed: dict[str, str | None] = {}
    for entry in read_list(path):
        above, file = posixpath.split(entry)
        fitting = {name for folder, name in files.get(key(file), ()) if ends_with(folder, above)}
        if not above and key(file) in known:
            fitting = {known[key(file)]}
        if len(fitting) > 1:
            raise UserError(
                f"{path}: {entry!r} is an image of several pairs: {', '.join(sorted(fitting)[:NAMES_SHOWN])}"
            )
        listed[entry if above else stem(entry)] = next(iter(fitting), None)
    return listed


def _only(paths: list[Path], name: str) -> Path:
    if len(paths) > 1:
        both = " and ".join(map(str, paths[:2]))
        raise UserError(f"{both}: two files for one image of pair {name!r}; keep one of them")
    return paths[0]
