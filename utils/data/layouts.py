"""Data sets as their authors publish them: a table of layouts says which files make a pair.

Also any two folders of images under the same names, and the options by which scripts choose between all of these and
the layout of VLFDataset (`utils.data.pairs`).
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.data.pairs import IMAGE_SUFFIXES, ImageFolder, Pair, find_pairs, read_list, stem
from utils.data.tasks import TASKS
from utils.runtime.errors import UserError
from utils.runtime.files import is_leftover, require_inside

SPLITS = Path(__file__).resolve().parent / "splits"
NAMES_SHOWN = 5
DEFAULT_TASK, DEFAULT_DATASET = "IVF", "MSRS"


@dataclass(frozen=True)
class Layout:
    """How a data set lies in its folder.

    `a` and `b` are regular expressions for the paths of images A and B without their suffixes, from the folder on.
    `{name}` in them is the part that the two paths of a pair share, `{mode}` the folder train or test of data sets
    that come split. An empty `dataset` is a layout of many data sets, which go by their folder's name. `test_list` is
    a file of utils/splits that names the official test pairs.
    """

    dataset: str
    task: str
    a: str
    b: str
    test_list: str | None = None


# The first layouts are the more particular ones: images that one of them explains are not offered to the next.
LAYOUTS = (
    Layout("MSRS", "IVF", "{mode}/ir/{name}", "{mode}/vi/{name}"),
    # Its test list is that of CDDFuse (Zhao et al., CVPR 2023).
    Layout("RoadScene", "IVF", "cropinfrared/{name}", "crop_LR_visible/{name}", "RoadScene_test.txt"),
    Layout("M3FD", "IVF", "Ir/{name}", "Vis/{name}"),
    # A folder a scene, its files named in half a dozen ways: the 55 scenes in long-wave infrared, not the sequences.
    Layout(
        "TNO",
        "IVF",
        r"{name}/(?i:(?:[a-z0-9_]*_)?(?:lw)?ir(?:[0-9_-][^/]*)?|2_fk_ge_[0-9_]+)",
        r"{name}/(?i:(?!ir)(?:[a-z0-9_]*_)?vis(?:[0-9_-][^/]*)?|1_fk_ge_[0-9_]+|bunker_r)",
    ),
    # A popular selection of TNO: IR1.png and VIS1.png, all in one folder.
    Layout("TNO", "IVF", "(?i:ir)[_-]?{name}", "(?i:vis)[_-]?{name}"),
    Layout("Lytro", "MFF", "{name}-A", "{name}-B"),
    Layout("Harvard", "MIF", "MRI/{name}", "(?:CT|PET|SPECT)/{name}"),
    Layout("", "IVF", "(?:{mode}/)?(?i:ir|infrared|thermal)/{name}", "(?:{mode}/)?(?i:vi|vis|visible)/{name}"),
    *(
        Layout("", task, *(f"(?:{{mode}}/)?(?i:{folder})/{{name}}" for folder in TASKS[task].folders))
        for task in ("MIF", "MEF", "MFF")
    ),
)


@dataclass(frozen=True)
class Selection:
    """The pairs that a script shall work on, and `found`: what was found where, in lines for a person."""

    task: str
    dataset: str
    pairs: list[Pair]
    found: str


def add_source_options(parser: argparse.ArgumentParser, title: str = "where the images are") -> None:
    """The options that `find_source` takes, but for task, dataset and mode, under a title of their own."""
    add = parser.add_argument_group(title).add_argument
    add("--root", type=Path, default=Path("VLFDataset"), help="folder that holds Image, Text and TextFeature")
    add("--raw", type=Path, metavar="DIR", help="a data set as it was downloaded instead; its layout is detected")
    add("--dir_a", type=Path, metavar="DIR", help="or any two folders: images A (IR, MRI, over-exposed, near focus)")
    add("--dir_b", type=Path, metavar="DIR", help="and images B, under the same names")
    add("--list", type=Path, metavar="FILE", help="with these: the pairs to take, one name a line")


def find_source(args: argparse.Namespace, mode: str) -> Selection:
    """The pairs that the options of a script name.

    Args:
        args: `add_source_options`, and task and dataset, either of which may be None: what the layout says, or else
            infrared-visible and MSRS.
        mode: 'train' or 'test'.

    Raises:
        UserError: options that do not go together, folders, lists or images that are missing.
    """
    if (args.dir_a is None) != (args.dir_b is None) or (args.raw and args.dir_a):
        raise UserError("images: either --raw, or both --dir_a and --dir_b, or neither")
    if args.raw:
        return find_raw(args.raw, mode, args.root, args.task, args.dataset, args.list)
    if args.dir_a:
        return find_folders(args.dir_a, args.dir_b, mode, args.root, args.task, args.dataset, args.list)
    if args.list:
        raise UserError("--list: goes with --raw or --dir_a and --dir_b; VLFDataset has lists of its own")
    task, dataset = args.task or DEFAULT_TASK, args.dataset or DEFAULT_DATASET
    pairs = find_pairs(args.root, task, dataset, mode)
    return Selection(task, dataset, pairs, f"{args.root / 'Image' / task / dataset}: {len(pairs)} pairs of {mode}.txt")


def find_raw(
    folder: Path,
    mode: str,
    root: Path,
    task: str | None = None,
    dataset: str | None = None,
    list_path: Path | None = None,
) -> Selection:
    """The pairs of a data set as it was downloaded, in alphabetical order; its layout is detected.

    Which of them: those of `list_path`, else of the data set's own folders train and test, else of a <mode>.txt in
    its folder, else the official test pairs (train: all others), else all in both modes. Paragraphs and features are
    those of Text/ and TextFeature/ beside the images, else of `root`.

    Args:
        folder: what was downloaded, or a folder around it.
        mode: 'train' or 'test'.
        root: VLFDataset, where texts and features are looked for (and new ones belong) that are not beside the images.
        task: must be the layout's, where given.
        dataset: the name to use instead of the layout's; chooses where `folder` holds several data sets.
        list_path: the names of the pairs to take.

    Raises:
        UserError: no layout fits, several do, two images claim one place, or there is no pair for `mode`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; a data set as it was downloaded was expected")
    paths = sorted(_images(folder))
    found = _detected(folder, paths, task, dataset)
    layout = found.layout
    title = dataset or layout.dataset or folder.resolve().name

    split_by_folders = {key.mode for key in found.a} - {None}
    keys = [key for key in found.a if key in found.b and key.mode in (mode, None)]
    if not keys:
        raise UserError(f"{folder}: {title} has no folder {mode} with pairs; it has {', '.join(split_by_folders)}")
    names = dict(zip(_names(keys), keys, strict=True))
    if split_by_folders and not list_path:
        chosen, how = list(names), f"the folder {mode}"
    else:
        chosen, how = _split(names, folder, mode, list_path, layout.test_list)

    pairs = []
    for name in chosen:
        key = names[name]
        image_a, image_b = (require_inside(_only(side[key], name), folder) for side in (found.a, found.b))
        pairs.append(pair_of(name, image_a, image_b, (folder / key.prefix, folder), root, layout.task, title))
    first = pairs[0]
    example = f"A {first.image_a.relative_to(folder)}, B {first.image_b.relative_to(folder)}"
    alone = len(set(found.a) ^ set(found.b))
    lines = [f"{folder}: {title}, {TASKS[layout.task].title}: {example}, ...", *_counts(pairs, mode, how, alone)]
    return Selection(layout.task, title, pairs, "\n".join(lines))


def find_folders(
    dir_a: Path,
    dir_b: Path,
    mode: str,
    root: Path,
    task: str | None = None,
    dataset: str | None = None,
    list_path: Path | None = None,
) -> Selection:
    """The pairs of two folders: images of one name, whatever their suffixes, in alphabetical order.

    Which of them: those of `list_path`, else of a <mode>.txt beside `dir_a`, else all in both modes. Paragraphs and
    features as in `find_raw`. The data set goes by the name of the folder that holds `dir_a`.

    Raises:
        UserError: a folder or list is missing, no name is in both, or a name stands for several files.
    """
    images = match_folders(dir_a, dir_b)
    base = dir_a.resolve().parent
    task, dataset = task or DEFAULT_TASK, dataset or base.name
    chosen, how = _split(images, base, mode, list_path)
    pairs = [pair_of(name, *images[name], (base,), root, task, dataset) for name in chosen]
    alone = sum(len(ImageFolder(folder).files) - len(images) for folder in (dir_a, dir_b))
    lines = [f"{dir_a} and {dir_b}: {dataset}, {TASKS[task].title}", *_counts(pairs, mode, how, alone)]
    return Selection(task, dataset, pairs, "\n".join(lines))


def match_folders(dir_a: Path, dir_b: Path) -> dict[str, tuple[Path, Path]]:
    """The images of one name in two folders, whatever their suffixes, in alphabetical order.

    Raises:
        UserError: a folder is missing, no name is in both, or a name stands for several files.
    """
    a, b = ImageFolder(dir_a), ImageFolder(dir_b)
    names = sorted(set(a.files) & set(b.files))
    if not names:
        raise UserError(f"{dir_a}: no image has a partner of the same name in {dir_b}")
    return {name: (a.find(name), b.find(name)) for name in names}


def pair_of(
    name: str, image_a: Path, image_b: Path, beside: Iterable[Path], root: Path, task: str, dataset: str
) -> Pair:
    """A pair with its text and feature: the files in Text/ and TextFeature/ of the folders `beside`, else in `root`.

    Raises:
        UserError: one of them is a link that leads out of these folders.
    """
    files = []
    for kind, suffix in (("Text", ".txt"), ("TextFeature", ".npy")):
        own = [require_inside(folder / kind / f"{name}{suffix}", folder) for folder in beside]
        in_root = require_inside(root / kind / task / dataset / f"{name}{suffix}", root)
        files.append(next((path for path in own if path.is_file()), in_root))
    return Pair(name, image_a, image_b, *files)


@dataclass(frozen=True)
class _Key:
    """What the two paths of a pair share: the folders above the layout's own, train or test, and the name."""

    prefix: str
    mode: str | None
    name: str


@dataclass(frozen=True)
class _Found:
    """The images A and B of a layout by what they share; more than one where a name is not unique."""

    layout: Layout
    a: dict[_Key, list[Path]]
    b: dict[_Key, list[Path]]


def _images(folder: Path) -> Iterator[Path]:
    """All images in `folder` and below, also behind links, but not round in circles of links."""
    for parent, children, files in os.walk(folder, followlinks=True):
        above = Path(parent).resolve()
        children[:] = [child for child in children if not above.is_relative_to(Path(parent, child).resolve())]
        images = (file for file in files if Path(file).suffix.lower() in IMAGE_SUFFIXES and not is_leftover(file))
        yield from (Path(parent, file) for file in images)


def _detected(folder: Path, paths: Iterable[Path], task: str | None, dataset: str | None) -> _Found:
    """The layout in which the images of `folder` lie."""
    within = {path: path.relative_to(folder).with_suffix("").as_posix() for path in paths}
    candidates: list[_Found] = []
    explained: set[Path] = set()
    for layout in LAYOUTS:
        found = _Found(layout, *(_matches(pattern, within) for pattern in (layout.a, layout.b)))
        # An image that would go with several others speaks against the layout.
        paired = {a[0] for key, a in found.a.items() if len(a) == len(found.b.get(key, [])) == 1}
        if paired - explained:
            candidates.append(found)
            explained |= paired
    fitting = [found for found in candidates if task in (found.layout.task, None)]
    named = [found for found in fitting if found.layout.dataset == dataset] or fitting
    if not named:
        problem = f"is a data set of {candidates[0].layout.task}, not {task}" if candidates else "no layout fits"
        raise UserError(f"{folder}: {problem}; name the folders of its images by --dir_a and --dir_b")
    if len(named) > 1:
        several = ", ".join(found.layout.dataset or TASKS[found.layout.task].title for found in named)
        raise UserError(f"{folder}: holds several data sets ({several}); name one of them by its own folder")
    return named[0]


def _matches(pattern: str, within: dict[Path, str]) -> dict[_Key, list[Path]]:
    """The images whose path the pattern fits, in the order of `within`."""
    groups = {"{name}": "(?P<name>[^/]+)", "{mode}": "(?P<mode>train|test)"}
    for placeholder, group in groups.items():
        pattern = pattern.replace(placeholder, group)
    expression = re.compile(f"(?P<prefix>(?:.*?/)?){pattern}")
    found: dict[_Key, list[Path]] = {}
    for path, text in within.items():
        if match := expression.fullmatch(text):
            parts = match.groupdict()
            found.setdefault(_Key(parts["prefix"], parts.get("mode"), parts["name"]), []).append(path)
    return found


def _names(keys: Iterable[_Key]) -> list[str]:
    """The names of the pairs; with the folders that tell them apart, where one name stands in several folders."""
    keys = list(keys)
    if len({key.name for key in keys}) == len(keys):
        return [key.name for key in keys]
    folders = [key.prefix.split("/")[:-1] for key in keys]
    shared = len(os.path.commonprefix(folders))
    return ["_".join([*parts[shared:], key.name]) for parts, key in zip(folders, keys, strict=True)]


def _split(
    names: Iterable[str], folder: Path, mode: str, list_path: Path | None, test_list: str | None = None
) -> tuple[list[str], str]:
    """The names to take for `mode`, and how that was decided."""
    own_list = folder / f"{mode}.txt"
    if list_path is None and own_list.is_file():
        list_path = own_list
    if list_path:
        listed, known = [stem(name) for name in read_list(list_path)], set(names)
        if missing := [name for name in listed if name not in known]:
            shown = ", ".join(missing[:NAMES_SHOWN])
            raise UserError(f"{list_path}: {len(missing)} of {len(listed)} names have no pair in {folder}: {shown}")
        return listed, str(list_path)
    if test_list:
        tested = {stem(name) for name in read_list(SPLITS / test_list)}
        chosen = [name for name in names if (name in tested) == (mode == "test")]
        if not chosen:
            raise UserError(f"{folder}: holds none of the official {mode} pairs; choose pairs by --list")
        return chosen, f"the {len(tested)} official test pairs" + (" left out" if mode == "train" else "")
    return list(names), "no split is known: all pairs, in both modes; --list chooses"


def _only(paths: list[Path], name: str) -> Path:
    if len(paths) > 1:
        both = " and ".join(map(str, paths[:2]))
        raise UserError(f"{both}: both would be the same image of pair {name!r}; keep one of them")
    return paths[0]


def _counts(pairs: list[Pair], mode: str, how: str, alone: int) -> list[str]:
    """How many pairs there are for `mode` and why, how many images had no partner, and what text there is."""
    texts, features = (sum(getattr(pair, kind).is_file() for pair in pairs) for kind in ("text", "feature"))
    return [
        f"{mode}: {len(pairs)} pairs ({how})" + (f"; {alone} images without a partner left out" if alone else ""),
        f"texts: {texts} paragraphs, {features} ready features",
    ]
