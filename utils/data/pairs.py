"""The files of a pair, and lists of pairs (film.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.data.tasks import TASKS
from utils.runtime.errors import UserError
from utils.runtime.files import is_leftover, require_inside, require_plain_name

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MODES = ("train", "test")


@dataclass(frozen=True)
class Pair:
    """The files of one sample. `name` is its name in the list, without suffix. Text and feature need not exist."""

    name: str
    image_a: Path
    image_b: Path
    text: Path
    feature: Path


def find_pairs(root: Path, task: str, dataset: str, mode: str) -> list[Pair]:
    """The pairs of a data set in the layout of VLFDataset, in the order of the list.

    Args:
        root: the folder of Image/, Text/ and TextFeature/.
        task: a key of `TASKS`.
        dataset: the name of a folder of the task.
        mode: 'train' or 'test', the name of the list.

    Raises:
        UserError: the list or an image is missing, the list is bad, or a link leads out of its folder.
    """
    base = root / "Image" / task / dataset
    folders = [ImageFolder(base / folder) for folder in TASKS[task].folders]
    return [
        pair_of(stem(listed), *(folder.find(listed) for folder in folders), root, task, dataset)
        for listed in read_list(base / f"{mode}.txt")
    ]


def pair_of(
    name: str, image_a: Path, image_b: Path, root: Path, task: str, dataset: str, folders: Iterable[Path] = ()
) -> Pair:
    """A pair with its text and feature: the files in Text/ and TextFeature/ of one of `folders`, else of `root`.

    Raises:
        UserError: a text or feature is a link that leads out of its folder.
    """
    files = []
    for kind, suffix in (("Text", ".txt"), ("TextFeature", ".npy")):
        own = [require_inside(folder / kind / f"{name}{suffix}", folder) for folder in folders]
        in_root = require_inside(root / kind / task / dataset / f"{name}{suffix}", root)
        files.append(next((path for path in own if path.is_file()), in_root))
    return Pair(name, image_a, image_b, *files)


def read_list(path: Path) -> list[str]:
    """The file names of a list, one per line; blank lines, a byte-order mark and carriage returns are ignored.

    Raises:
        UserError: the list is missing, empty or not UTF-8, or a name is duplicate or not a plain file name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such list; expected one image file name per line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a UTF-8 list of file names ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: the list is empty; expected one image file name per line")
    seen: set[str] = set()
    for name in names:
        require_plain_name(name, path)
        if stem(name) in seen:
            raise UserError(f"{path}: duplicate name {name!r}")
        seen.add(stem(name))
    return names


def stem(name: str) -> str:
    """A file name without its image suffix; names may contain other dots."""
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else name


class ImageFolder:
    """The images of a folder, by file name without suffix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; expected the images of the pairs there")
        self.files: dict[str, list[str]] = {}
        for path in folder.iterdir():
            if path.suffix.lower() in IMAGE_SUFFIXES and not is_leftover(path.name):
                self.files.setdefault(path.stem, []).append(path.name)

    def find(self, listed: str) -> Path:
        """The image that a list names: exactly this file, else the one with another suffix.

        Raises:
            UserError: there is none, there are several, or it is a link that leads out of the folder.
        """
        found = self.files.get(stem(listed), [])
        if listed in found:
            return require_inside(self.folder / listed, self.folder)
        if not found:
            raise UserError(
                f"{self.folder / listed}: no such image, also with any other suffix of {', '.join(IMAGE_SUFFIXES)}"
            )
        if len(found) > 1:
            raise UserError(
                f"{self.folder / listed}: no such image, but several with other suffixes: {', '.join(sorted(found))}"
            )
        return require_inside(self.folder / found[0], self.folder)


def match_folders(dir_a: Path, dir_b: Path) -> dict[str, tuple[Path, Path]]:
    """Images with the same name (ignoring suffixes) in two folders, in alphabetical order.

    Raises:
        UserError: a folder is missing, no name is in both, or several files have the same name.
    """
    a, b = ImageFolder(dir_a), ImageFolder(dir_b)
    names = sorted(set(a.files) & set(b.files))
    if not names:
        raise UserError(f"{dir_a}: no image has a partner of the same name in {dir_b}")
    return {name: (a.find(name), b.find(name)) for name in names}
