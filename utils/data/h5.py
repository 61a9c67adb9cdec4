"""The H5 files that data_process.py writes and train.py and test.py read (film.md, section 4).

Groups ``imageA``, ``imageB`` and ``text`` hold one float32 dataset per sample name: (1, H, W), (1, H, W) and
(1, 149, 768). The official code reads these files, so names, shapes, dtypes and values must not change. It ignores
attributes, which are texts in UTF-8 of fixed length: ``source`` of an image, the absolute path of the image file, and
those of the file, named after the fields of `Provenance`.
"""

from __future__ import annotations

import copy
import errno
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from types import NoneType

import h5py
import numpy as np
from tqdm import tqdm

from utils.data.provenance import UNKNOWN, Provenance
from utils.data.stored import STORED_SHAPE, from_stored, to_stored
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path, is_file, require_plain_name
from utils.runtime.processes import share

logger = logging.getLogger(__name__)

GROUPS = ("imageA", "imageB", "text")
SOURCE = "source"
# What h5py raises for a damaged file, depending on the place of the damage, or for an object that is not an array.
DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, MemoryError)
# Upper bound of the bytes that HDF5 needs for the names of one more sample; the actual size is much smaller.
METADATA = 1 << 20
MAX_PATH = 4096  # bytes (PATH_MAX of Linux)
MAX_PIXELS = 1 << 27  # of an image; a damaged or hostile HDF5 file of a few bytes can claim any number
AGAIN = "run data_process.py again"
# What the system says about a file that need not be damaged; {holder} is the process that has locked it.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
SYSTEM = {
    errno.EAGAIN: "is locked by {holder}, which may be writing to it; wait until it has closed the file, or end it",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "permission denied; ask its owner to let you read it"),
    **dict.fromkeys(NO_LOCKS, "is on a file system without locks; run it again with HDF5_USE_FILE_LOCKING=FALSE"),
}
COMMAND_SHOWN = 60


@dataclass(frozen=True)
class Sample:
    """One pair: images (1, H, W) in 0..1 and the text feature (149, 768), float32.

    `sources` are the image files; `write_h5` stores their paths, and `H5Dataset.sources` reads them.
    """

    name: str
    image_a: np.ndarray
    image_b: np.ndarray
    text: np.ndarray
    sources: tuple[Path, Path] | None = None


def constant_image(sample: Sample) -> str | None:
    """Which image of a sample has the same value everywhere, as a message; None if neither has."""
    for side, image in (("A", sample.image_a), ("B", sample.image_b)):
        if image.min() == image.max():
            return f"image {side} is constant"
    return None


def _problem(path: Path, error: Exception, damage: str) -> UserError:
    """What to say about a file that cannot be read: what the system says, else `damage`."""
    number = getattr(error, "errno", None)
    if not number:
        return UserError(f"{path}: {damage}")
    known = SYSTEM.get(number, f"cannot be read ({os.strerror(number)})")
    return UserError(f"{path}: {known.format(holder=_holder(path))}")


def _holder(path: Path) -> str:
    """The process that has locked a file, if /proc shows it: not one of another machine or container."""
    with suppress(OSError):
        found = path.stat()
        place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # number, kind, ADVISORY, READ or WRITE, process, place, ...
            if fields[5:6] == [place]:
                command = Path("/proc", fields[4], "cmdline").read_text(errors="replace").replace("\0", " ").strip()
                return f"process {fields[4]} ({command[:COMMAND_SHOWN]})"
    return "another process"


class _Discard(Exception):
    """Ends `require_writable` without a file."""


def require_writable(path: Path) -> None:
    """Raise `UserError` if `write_h5` cannot write `path`. Call it before long work, so that this is not lost."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; an H5 file cannot be written there")
    # In the nearest folder that there is: a command that fails later leaves no new one.
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    with suppress(_Discard), atomic_path(folder / path.name) as temporary, _new_h5(temporary, path):
        raise _Discard


def write_h5(path: Path, samples: Iterable[Sample], provenance: Provenance = UNKNOWN) -> int:
    """Write samples one by one, so that memory use stays constant; returns their number.

    Raises:
        UserError: two samples have the same name, or the file cannot be written; then no file is left.
    """
    count = 0
    with atomic_path(path) as temporary, _new_h5(temporary, path) as file:
        for name, text in asdict(provenance).items():
            _store_text(file, name, text)
        groups = [file.create_group(name) for name in GROUPS]
        for sample in samples:
            if sample.name in groups[0]:
                raise UserError(f"{path}: duplicate sample name {sample.name!r}")
            arrays = (sample.image_a, sample.image_b, to_stored(sample.text))
            arrays = [array.astype(np.float32, copy=False) for array in arrays]
            _reserve(file, sum(array.nbytes for array in arrays))
            for group, array in zip(groups, arrays, strict=True):
                group.create_dataset(sample.name, data=array)
            for group, source in zip(groups, sample.sources or (), strict=False):
                _store_text(group[sample.name], SOURCE, str(source.absolute()))
            count += 1
    return count


def _store_text(place: h5py.Dataset | h5py.File, name: str, text: str) -> None:
    """Store an attribute, unless it is empty or cannot be encoded as UTF-8 (some paths)."""
    with suppress(UnicodeEncodeError):
        if data := text.encode():
            place.attrs.create(name, data, dtype=h5py.string_dtype("utf-8", len(data)))


def _read_text(attributes: h5py.AttributeManager, name: str) -> str:
    """An attribute, empty if there is none. Only short texts that are stored in the attribute itself are read."""
    with suppress(*DAMAGE):
        form = attributes.get_id(name)
        if form.shape == () and form.dtype.kind == "S" and form.dtype.itemsize <= MAX_PATH:
            return attributes[name].decode()
    return ""


@contextmanager
def _new_h5(path: Path, target: Path) -> Iterator[h5py.File]:
    """A new H5 file, which will be renamed to `target`. A full disk raises `OSError` here, before HDF5 notices it."""
    try:
        file = h5py.File(path, "w")
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise _problem(target, error, "") from error
    try:
        _reserve(file, 0)
        yield file
        file.flush()
        size = file.id.get_filesize()
    except BaseException:
        # On close, HDF5 writes its buffers to the file; let it write to memory that is then released.
        memory = os.memfd_create("discarded")
        os.dup2(memory, file.id.get_vfd_handle())
        os.close(memory)
        raise
    finally:
        file.close()
    os.truncate(path, size)


def _reserve(file: h5py.File, size: int) -> None:
    """Reserve disk space for `size` more bytes, else raise `OSError`: HDF5 would end the process on a full disk."""
    os.posix_fallocate(file.id.get_vfd_handle(), file.id.get_filesize(), size + METADATA)


class H5Dataset:
    """The samples of an H5 file, in the key order of its groups (alphabetical). The file is opened once.

    A sample is bad if `__getitem__` raises an error for it, if it is not in all groups, or if one of its images is
    constant. The network accepts constant images, so without `skip_bad` they only cause a warning.

    Args:
        path: the file.
        skip_bad: read all samples now, log a warning for each bad one, and leave it out. `skipped` maps the names of
            bad samples to the reasons.
        one_size: samples of another size than the most frequent one are bad, too; a batch needs a single size.

    Raises:
        UserError: the file is missing, damaged, locked or may not be read, a group is missing or empty, a name is not a
            plain file name, no good sample is left, or, without `skip_bad`, the groups have different samples.
    """

    def __init__(self, path: Path, skip_bad: bool = False, one_size: bool = False) -> None:
        self.path = Path(path)
        self.skipped: dict[str, str] = {}
        self._constant: set[str] = set()
        try:
            if not is_file(self.path):
                problem = "is not a file; expected an H5 file;" if self.path.exists() else "no such H5 file;"
                raise UserError(f"{self.path}: {problem} data_process.py writes it")
            self._file = h5py.File(self.path, "r")
        except DAMAGE as error:
            raise _problem(self.path, error, f"not an H5 file, or damaged; {AGAIN}") from error
        try:
            self.names = self._checked_names(skip_bad)
            if skip_bad:
                self._skip_bad(one_size)
        except DAMAGE as error:
            self.close()
            raise _problem(self.path, error, f"a damaged H5 file; {AGAIN}") from error
        except UserError:
            self.close()
            raise

    def _checked_names(self, skip_bad: bool) -> list[str]:
        for group in GROUPS:
            if not isinstance(self._file.get(group, getlink=True), h5py.HardLink | NoneType):
                raise UserError(f"{self.path}: {group} is a link to another place; {AGAIN}")
            if not isinstance(self._file.get(group), h5py.Group):
                raise UserError(f"{self.path}: no group {group!r}; expected {', '.join(GROUPS)}")
        first, *others = ([*self._file[group]] for group in GROUPS)
        if not first:
            raise UserError(f"{self.path}: holds no sample")
        for group, names in zip(GROUPS[1:], others, strict=True):
            for odd in sorted(set(first) ^ set(names), key=str):
                self.skipped[odd] = f"{self.path}: {odd!r} is not in both {GROUPS[0]!r} and {group!r}"
        if self.skipped and not skip_bad:
            raise UserError(next(iter(self.skipped.values())))
        for name in first:
            # They become the names of image files.
            require_plain_name(name, self.path)
        return [name for name in first if name not in self.skipped]

    def _skip_bad(self, one_size: bool) -> None:
        """Move the bad samples from `names` to `skipped`, with the reasons, and log them."""
        sizes: dict[str, tuple[int, ...]] = {}
        for name in tqdm(self.names, desc=f"check {self.path.name}", unit="pair"):
            try:
                sample = self._read(name)
            except UserError as error:
                self.skipped[name] = str(error)
                continue
            if constant := constant_image(sample):
                self.skipped[name] = f"{self.path}: {name}: {constant}"
            else:
                sizes[name] = sample.image_a.shape[1:]
        if one_size and sizes:
            usual, _ = Counter(sizes.values()).most_common(1)[0]
            for name, size in sizes.items():
                if size != usual:
                    self.skipped[name] = f"{self.path}: {name}: is {size}, most others are {usual}"
        self.names = [name for name in self.names if name not in self.skipped]
        for reason in self.skipped.values():
            logger.warning("skipped: %s", reason)
        if not self.names:
            raise UserError(f"{self.path}: no good sample is left of {len(self.skipped)}; {AGAIN}")

    def __len__(self) -> int:
        return len(self.names)

    def share(self) -> H5Dataset:
        """The samples of this process (all of them if there is only one), in the same open file."""
        own = copy.copy(self)
        own.names = share(self.names)
        return own

    def __getitem__(self, index: int) -> Sample:
        """Read a sample; logs a warning, once, if an image is constant.

        Raises:
            UserError: an array has a wrong type or shape, is not finite, or is stored in another file; or the images
                differ in size.
        """
        sample = self._read(self.names[index])
        if sample.name not in self._constant and (constant := constant_image(sample)):
            self._constant.add(sample.name)
            logger.warning("%s: %s: %s; --skip_bad leaves it out", self.path, sample.name, constant)
        return sample

    def _read(self, name: str) -> Sample:
        a, b, text = (self._array(group, name) for group in GROUPS)
        if a.shape != b.shape:
            raise UserError(
                f"{self.path}: {name}: image A is {a.shape[1:]}, image B {b.shape[1:]}; the sizes must match"
            )
        return Sample(name, a, b, from_stored(text))

    @property
    def provenance(self) -> Provenance:
        """What the file records about its data; nothing is known about files of the official script."""
        return Provenance.read({field.name: _read_text(self._file.attrs, field.name) for field in fields(Provenance)})

    def sources(self, name: str) -> tuple[Path, Path] | None:
        """The files of images A and B of the sample `name`, as absolute paths; None unless the H5 file names both.

        They are not opened here: the files may no longer exist, and an untrusted H5 file may name any file.
        """
        try:
            paths = [Path(_read_text(self._dataset(group, name).attrs, SOURCE)) for group in GROUPS[:2]]
        except (*DAMAGE, UserError):
            return None
        usable = [path for path in paths if path.is_absolute() and "\0" not in str(path)]
        return (usable[0], usable[1]) if len(usable) == 2 else None

    def _dataset(self, group: str, name: str) -> h5py.Dataset:
        """A dataset, not read yet. Links, which may lead to another file, are not followed."""
        if not isinstance(self._file[group].get(name, getlink=True), h5py.HardLink):
            raise UserError(f"{self.path}: {group}/{name}: is a link to another place; {AGAIN}")
        return self._file[group][name]

    def _array(self, group: str, name: str) -> np.ndarray:
        """Read an array as float32, after its type and shape have been checked."""
        where = f"{self.path}: {group}/{name}"
        try:
            found = self._dataset(group, name)
            if found.external or found.is_virtual:
                raise UserError(f"{where}: its values are stored in another file; {AGAIN}")
            shape = found.shape or ()
            if found.dtype.kind != "f" or not shape:
                raise UserError(f"{where}: is not an array of floats")
            if group == "text" and shape != STORED_SHAPE:
                raise UserError(f"{where}: has shape {shape}, expected {STORED_SHAPE}")
            if group != "text" and (len(shape) != 3 or shape[0] != 1 or 0 in shape or prod(shape) > MAX_PIXELS):
                raise UserError(f"{where}: has shape {shape}, expected (1, H, W)")
            array = found[()]
        except DAMAGE as error:
            raise _problem(self.path, error, f"{group}/{name}: cannot be read; {AGAIN}") from error
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise UserError(f"{where}: holds values that are not finite")
        return array

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> H5Dataset:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
