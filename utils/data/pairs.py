"""The files of a pair, and lists of pairs (film.md, section 4)."""

from __future__ import annotations

import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.data.bad_pairs import BadPairs
from utils.data.images import IMAGE_SUFFIXES, can_read
from utils.data.tasks import TASKS
from utils.runtime.errors import UserError
from utils.runtime.files import is_folder, require_inside, require_plain_name

MODES = ("train", "test")
NAMES_SHOWN = 3


@dataclass(frozen=True)
class Pair:
    """The files of one sample. `name` is its name in the list, without suffix. Text and feature need not exist."""

    name: str
    image_a: Path
    image_b: Path
    text: Path
    feature: Path


def find_pairs(
    root: Path, task: str, dataset: str, mode: str, bad: BadPairs | None = None, follow_links: bool = False
) -> list[Pair]:
    """The pairs of a data set in the layout of VLFDataset, in the order of the list.

    Args:
        root: the folder of Image/, Text/ and TextFeature/.
        task: a key of `TASKS`.
        dataset: the name of a folder of the task.
        mode: 'train' or 'test', the name of the list.
        bad: collects the pairs whose files are missing or lead out of their folder.
        follow_links: links may lead out of their folder.

    Raises:
        UserError: the list is missing or bad, or a pair is bad and not to be skipped.
    """
    base = root / "Image" / task / dataset
    folders = [ImageFolder(base / folder, follow_links) for folder in TASKS[task].folders]
    bad = bad or BadPairs()
    pairs = []
    for listed in plain_names(base / f"{mode}.txt", [folder.folder for folder in folders]):
        with bad.guard(stem(listed)):
            images = [folder.find(listed) for folder in folders]
            pairs.append(pair_of(stem(listed), *images, root, task, dataset, follow_links=follow_links))
    return bad.good(pairs)


def pair_of(
    name: str,
    image_a: Path,
    image_b: Path,
    root: Path,
    task: str,
    dataset: str,
    folders: Iterable[Path] = (),
    follow_links: bool = False,
) -> Pair:
    """A pair with its text and feature: the files in Text/ and TextFeature/ of one of `folders`, else of `root`.

    Raises:
        UserError: a text or feature is a link that leads out of its folder, and not `follow_links`.
    """
    files = []
    for kind, suffix in (("Text", ".txt"), ("TextFeature", ".npy")):
        places = [(folder / kind, folder) for folder in folders] + [(root / kind / task / dataset, root)]
        found = [require_inside(spelled(place / f"{name}{suffix}"), home, follow_links) for place, home in places]
        files.append(next((path for path in found if path.is_file()), found[-1]))
    return Pair(name, image_a, image_b, *files)


def read_list(path: Path) -> list[str]:
    """The file names of a list, one per line; blank lines, a byte-order mark and carriage returns are ignored.

    A name may come with its folder: `./a.png` is `a.png`, and `ir\\a.png` is `ir/a.png`.

    Raises:
        UserError: the list is missing, empty or not UTF-8, or a name is duplicate or leads out of its folder.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such list; expected one image file name per line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a UTF-8 list of file names ({error})") from error
    names = [posixpath.normpath(line.strip().replace("\\", "/")) for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: the list is empty; expected one image file name per line")
    seen: set[str] = set()
    for name in names:
        # Folders below are no way out. All others are left at the start of the name by `normpath`.
        require_plain_name(name if name.startswith(("/", "../")) else name.replace("/", ""), path)
        file = posixpath.join(posixpath.dirname(name), key(name))
        if file in seen:
            raise UserError(f"{path}: duplicate name {name!r}")
        seen.add(file)
    return names


def plain_names(path: Path, folders: Sequence[Path]) -> list[str]:
    """The names of a list, each once, without the folder that may precede them, which is one of `folders`.

    Raises:
        UserError: as `read_list`, or a name is in another folder.
    """
    names: dict[str, str] = {}
    for listed in read_list(path):
        above, name = posixpath.split(listed)
        if not any(ends_with(folder, above) for folder in folders):
            raise UserError(f"{path}: {listed!r} is in none of the folders {', '.join(map(str, folders))}")
        names.setdefault(key(name), name)
    return list(names.values())


def ends_with(folder: Path, end: str) -> bool:
    """Whether the path of a folder ends with the folders `end`, in any case and Unicode form; true if it is empty."""
    path, end = (unicodedata.normalize("NFC", text).casefold() for text in (folder.absolute().as_posix(), end))
    return f"{path}/".endswith(f"/{end}/" if end else "/")


def stem(name: str) -> str:
    """A file name without its image suffix; names may contain other dots."""
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def key(name: str) -> str:
    """What the names of a pair's images have in common: the stem in Unicode NFC (macOS stores accents as NFD)."""
    return unicodedata.normalize("NFC", stem(name))


def spelled(path: Path) -> Path:
    """`path`, or if it does not exist the file whose name is its NFC or NFD form, if that exists."""
    forms = (path.with_name(unicodedata.normalize(form, path.name)) for form in ("NFC", "NFD"))
    return path if path.is_file() else next((form for form in forms if form.is_file()), path)


def is_image(name: str) -> bool:
    """Whether this is the name of an image; hidden files, such as macOS's ._x.jpg, are none."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def is_data_folder(name: str) -> bool:
    """Whether a folder of this name may hold data; hidden folders and those of macOS's archives do not."""
    return not name.startswith(".") and name != "__MACOSX"


class ImageFolder:
    """The images of a folder. `files` maps the `key` of names to the names; `kinds` says which other files it holds.

    With `follow_links`, `find` returns also links that lead out of the folder.
    """

    def __init__(self, folder: Path, follow_links: bool = False) -> None:
        self.folder, self.follow_links = folder, follow_links
        if not is_folder(folder):
            raise UserError(f"{folder}: no such folder; expected the images of the pairs there")
        self.files: dict[str, list[str]] = {}
        others = Counter[str]()
        for path in sorted(folder.iterdir()):
            if is_image(path.name):
                self.files.setdefault(key(path.name), []).append(path.name)
            elif not path.name.startswith(".") and path.is_file():
                others[path.suffix.lower() or "no suffix"] += 1
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common(NAMES_SHOWN))
        self.kinds = f", only other files: {kinds}" if kinds else ""

    def find(self, listed: str) -> Path:
        """The image that a list names: exactly this file, else the one with another suffix or another Unicode form.

        If there are several, those that this build of OpenCV does not read do not count.

        Raises:
            UserError: there is none, there are several, or it is a link that leads out of the folder.
        """
        found = self.files.get(key(listed), [])
        if listed in found:
            return require_inside(self.folder / listed, self.folder, self.follow_links)
        if not found:
            folded = key(listed).casefold()
            other = next((names[0] for each, names in self.files.items() if each.casefold() == folded), None)
            hint = f" ({other} differs in case)" if other else ""
            raise UserError(f"{self.folder / listed}: no such image, also with any other suffix of an image{hint}")
        if len(found) > 1:
            found = [name for name in found if can_read(name)] or found
        if len(found) > 1:
            raise UserError(
                f"{self.folder / listed}: no such image, but several with other suffixes: {', '.join(sorted(found))}"
            )
        return require_inside(self.folder / found[0], self.folder, self.follow_links)


@dataclass(frozen=True)
class Matches:
    """The images of two folders: pairs with the same `key`, by name, and those that have no partner.

    Attributes:
        pairs: name -> images A and B, in alphabetical order.
        alone: the images without a partner, each with a remark if only the case differs from another.
    """

    pairs: dict[str, tuple[Path, Path]]
    alone: list[str]


def match_folders(
    dir_a: Path, dir_b: Path, strict: bool = False, bad: BadPairs | None = None, follow_links: bool = False
) -> Matches:
    """Match the images with the same name in two folders: ignoring suffixes, in any Unicode form.

    Args:
        dir_a, dir_b: the folders.
        strict: images without a partner are an error.
        bad: collects the pairs of which several files have the same name, or a link leads out of the folder.
        follow_links: links may lead out of the folder.

    Raises:
        UserError: a folder is missing, no name is in both, a pair is bad and not to be skipped, or with `strict` an
            image has no partner.
    """
    folders = ImageFolder(dir_a, follow_links), ImageFolder(dir_b, follow_links)
    alone = unmatched(*folders)
    names = sorted(set(folders[0].files) & set(folders[1].files))
    if not names:
        empty = [f"{folder.folder} holds no image{folder.kinds}" for folder in folders if not folder.files]
        why = " and ".join(empty) or left_out(alone)
        raise UserError(f"{dir_a}: no image has a partner of the same name in {dir_b}: {why}")
    require_partners(alone, strict)
    bad = bad or BadPairs()
    pairs = {}
    for name in names:
        # A name is spelled as in the first folder.
        listed = stem(folders[0].files[name][0])
        with bad.guard(listed):
            pairs[listed] = folders[0].find(name), folders[1].find(name)
    return Matches(pairs, alone)


def unmatched(a: ImageFolder, b: ImageFolder) -> list[str]:
    """The images of two folders without a partner in the other, each with a remark if only the case differs."""
    alone = []
    for folder, other in ((a, b), (b, a)):
        folded = {name.casefold(): names[0] for name, names in other.files.items()}
        for name in sorted(set(folder.files) - set(other.files)):
            near = folded.get(name.casefold())
            remark = f" (only the case differs from {other.folder / near})" if near else ""
            alone += [f"{folder.folder / file}{remark}" for file in folder.files[name]]
    return alone


def require_partners(alone: Sequence[str], strict: bool) -> None:
    """Raise `UserError` if `strict` and there are images without a partner."""
    if alone and strict:
        raise UserError(f"--strict: {left_out(alone)}")


def left_out(alone: Sequence[str]) -> str:
    """A line that counts the images without a partner and names the first few; empty if there are none."""
    shown = ", ".join(alone[:NAMES_SHOWN]) + (", ..." if alone[NAMES_SHOWN:] else "")
    return f"{len(alone)} images without a partner left out: {shown}" if alone else ""
