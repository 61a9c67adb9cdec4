"""Layouts of data sets as their authors publish them: a table says which files form a pair."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

from utils.data.pairs import is_data_folder, is_image
from utils.data.tasks import TASKS
from utils.runtime.errors import UserError, of_system
from utils.runtime.files import is_folder

SPLITS = Path(__file__).resolve().parent / "splits"


@dataclass(frozen=True)
class Layout:
    """The arrangement of a data set in its folder.

    `a` and `b` are regular expressions for the paths of images A and B, relative to the folder and without suffix.
    `{name}` is the name of the pair, and `{mode}` the folder train or test of a data set that is already split. A
    layout with an empty `dataset` fits many data sets, which are named after their folder. `test_list` is a file in
    `SPLITS` that lists the official test pairs. `rest` matches images of the data set that are not to be paired.
    """

    dataset: str
    task: str
    a: str
    b: str
    test_list: str | None = None
    rest: str | None = None


def _folders(task: str, a: str, b: str) -> list[Layout]:
    """The layouts of any data set with a folder for each side; train/ and test/ may lie above or in these folders."""
    forms = ("(?:{{mode}}/)?(?i:{side})/{{name}}", "(?i:{side})/{{mode}}/{{name}}")
    return [Layout("", task, form.format(side=a), form.format(side=b)) for form in forms]


# Names of folders. The first ones are preferred: near infrared is image A only if there is no thermal infrared, and
# `color` may hold coloured labels next to `visible`.
INFRARED = ("ir|infrared|thermal|tir|fir|lwir|mwir", "nir|swir")
VISIBLE = ("vi|vis|visible|visual", "rgb|colou?r")

# The most specific layouts come first: images that match one of them are not matched with the later ones.
LAYOUTS = (
    # Its detection/ holds 80 pairs with labels of objects.
    Layout("MSRS", "IVF", "{mode}/ir/{name}", "{mode}/vi/{name}", rest="detection/(?:ir|vi)/{name}"),
    # Its names have six digits. Other data sets with such folders are named after their own folder.
    Layout("LLVIP", "IVF", r"infrared/{mode}/(?=\d{6}$){name}", r"visible/{mode}/(?=\d{6}$){name}"),
    Layout("VIFB", "IVF", "input/IR/{name}", "input/VI/{name}"),
    # Its test list is that of CDDFuse (Zhao et al., CVPR 2023).
    Layout("RoadScene", "IVF", "cropinfrared/{name}", "crop_LR_visible/{name}", "RoadScene_test.txt"),
    Layout("M3FD", "IVF", "Ir/{name}", "Vis/{name}"),
    # One folder per scene, six naming schemes. Matches the 55 scenes in long-wave infrared, not the image sequences.
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
    # A folder per scene, with the images of the name of the scene. _B is the brighter one.
    Layout("MEFB", "MEF", "{name}/(?i:(?P=name)_B)", "{name}/(?i:(?P=name)_A)"),
    *(layout for sides in product(INFRARED, VISIBLE) for layout in _folders("IVF", *sides)),
    *(layout for task in ("MIF", "MEF", "MFF") for layout in _folders(task, *TASKS[task].folders)),
)


class Candidate(NamedTuple):
    """The files that match images A and B of a pair (one each, if names are unique), and the folders whose Text/ and
    TextFeature/ may contain its text and feature."""

    a: list[Path]
    b: list[Path]
    text_folders: tuple[Path, ...]


@dataclass(frozen=True)
class Found:
    """The pairs in a folder, before a list or a split selects some of them.

    Attributes:
        task: a key of `TASKS`.
        dataset: the name of the data set.
        folder: the folder that may contain lists, <mode>.txt.
        pairs: name -> files.
        alone: the images without a partner.
        split: whether the pairs come from a folder train or test.
        test_list: as in `Layout`.
    """

    task: str
    dataset: str
    folder: Path
    pairs: dict[str, Candidate]
    alone: list[str]
    split: bool = False
    test_list: str | None = None


def detect(folder: Path, mode: str, task: str | None = None, dataset: str | None = None) -> Found:
    """Detect the layout of a data set as downloaded, and return its pairs in alphabetical order.

    Args:
        folder: the downloaded folder, or one that contains it.
        mode: 'train' or 'test'; pairs in the folder of the other mode are left out.
        task: if given, only layouts of this task fit.
        dataset: the name to use instead of the layout's; selects one if `folder` holds several data sets.

    Raises:
        UserError: no layout or several layouts fit, or there is no pair for `mode`.
    """
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder; expected a downloaded data set")
    layout, a, b = _fitting(folder, sorted(_images(folder)), task, dataset)
    title = dataset or layout.dataset or folder.resolve().name
    modes = {key.mode for key in a} - {None}
    keys = [key for key in a if key in b and key.mode in (mode, None)]
    if not keys:
        raise UserError(f"{folder}: {title} has no folder {mode} with pairs; it has {', '.join(modes)}")
    candidates = [Candidate(a[key], b[key], (folder / key.prefix, folder)) for key in keys]
    pairs = dict(zip(_names(keys), candidates, strict=True))
    alone = [str(path) for side, other in ((a, b), (b, a)) for key in side if key not in other for path in side[key]]
    return Found(layout.task, title, folder, pairs, alone, bool(modes), layout.test_list)


class _Key(NamedTuple):
    """What both paths of a pair have in common: the folders above the layout, train or test, and the name."""

    prefix: str
    mode: str | None
    name: str


def _images(folder: Path) -> Iterator[Path]:
    """All images in `folder` and its subfolders. Links are followed, except those that form a cycle.

    Raises:
        UserError: a folder may not be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(of_system(error, problem="cannot be read"))

    for parent, children, files in os.walk(folder, followlinks=True, onerror=refuse):
        above = Path(parent).resolve()
        children[:] = [
            child
            for child in children
            if is_data_folder(child) and not above.is_relative_to(Path(parent, child).resolve())
        ]
        yield from (Path(parent, file) for file in files if is_image(file))


class _Fit(NamedTuple):
    """A layout and the images A and B that match it, by key; several images if a name is not unique."""

    layout: Layout
    a: dict[_Key, list[Path]]
    b: dict[_Key, list[Path]]


def _fitting(folder: Path, paths: Iterable[Path], task: str | None, dataset: str | None) -> _Fit:
    """The layout of the images in `folder`."""
    within = {path: unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix()) for path in paths}
    candidates: list[_Fit] = []
    for layout in LAYOUTS:
        fit = _Fit(layout, *(_matches(pattern, within) for pattern in (layout.a, layout.b)))
        # An image that could be paired with several others does not fit the layout.
        paired = [key for key, a in fit.a.items() if len(a) == len(fit.b.get(key, [])) == 1]
        if paired:
            candidates.append(fit)
            taken = {path for key in paired for path in (*fit.a[key], *fit.b[key])} | _rest(fit, within)
            within = {path: text for path, text in within.items() if path not in taken}
    fitting = [fit for fit in candidates if task in (fit.layout.task, None)]
    named = [fit for fit in fitting if fit.layout.dataset == dataset] or fitting
    if not named:
        problem = f"is a data set of {candidates[0].layout.task}, not {task}" if candidates else "no layout fits"
        raise UserError(f"{folder}: {problem}; name the folders of its images with --dir_a and --dir_b")
    if len(named) > 1:
        several = ", ".join(fit.layout.dataset or TASKS[fit.layout.task].title for fit in named)
        options = ", or ".join(_option(fit, named) for fit in named)
        raise UserError(f"{folder}: holds several data sets ({several}); choose one with {options}, or its own --raw")
    return named[0]


def _rest(fit: _Fit, within: dict[Path, str]) -> set[Path]:
    """The images next to those of a layout that belong to the data set but are not to be paired."""
    found = _matches(fit.layout.rest, within) if fit.layout.rest else {}
    prefixes = {key.prefix for key in fit.a}
    return {path for key, paths in found.items() if key.prefix in prefixes for path in paths}


def _option(fit: _Fit, others: Iterable[_Fit]) -> str:
    """The option that chooses one of several data sets."""
    layouts = [other.layout for other in others]
    if fit.layout.dataset and [layout.dataset for layout in layouts].count(fit.layout.dataset) == 1:
        return f"--dataset {fit.layout.dataset}"
    if [layout.task for layout in layouts].count(fit.layout.task) == 1:
        return f"--task {fit.layout.task}"
    a, b = next((fit.a[key][0], fit.b[key][0]) for key in fit.a if key in fit.b)
    return f"--dir_a {a.parent} --dir_b {b.parent}"


def _matches(pattern: str, within: dict[Path, str]) -> dict[_Key, list[Path]]:
    """The images whose path matches the pattern, in the order of `within`."""
    groups = {"{name}": "(?P<name>[^/]+)", "{mode}": "(?P<mode>train|test)"}
    for placeholder, group in groups.items():
        pattern = pattern.replace(placeholder, group)
    # The shortest prefix, so that train/ and test/ are not part of it.
    expression = re.compile(f"(?P<prefix>(?:.*?/)??){pattern}")
    found: dict[_Key, list[Path]] = {}
    for path, text in within.items():
        if match := expression.fullmatch(text):
            parts = match.groupdict()
            found.setdefault(_Key(parts["prefix"], parts.get("mode"), parts["name"]), []).append(path)
    return found


def _names(keys: Iterable[_Key]) -> list[str]:
    """The names of the pairs, prefixed with their folders if names repeat."""
    keys = list(keys)
    if len({key.name for key in keys}) == len(keys):
        return [key.name for key in keys]
    folders = [key.prefix.split("/")[:-1] for key in keys]
    shared = len(os.path.commonprefix(folders))
    return ["_".join([*parts[shared:], key.name]) for parts, key in zip(folders, keys, strict=True)]
