"""H5 files: their form, and what is refused."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import h5py
import numpy as np
import pytest

from net.shapes import TEXT_SHAPE
from utils.data.h5 import H5Dataset, Sample, require_writable, write_h5
from utils.data.provenance import UNKNOWN, Provenance
from utils.runtime.errors import UserError


def sample(name: str, size: tuple[int, int] = (4, 6), value: float = 0.0) -> Sample:
    image = np.full((1, *size), value, np.float32)
    return Sample(name, image, image + 0.25, np.full(TEXT_SHAPE, value, np.float32))


def write(path: Path, count: int) -> Path:
    write_h5(path, (sample(f"{i:02d}", value=i / 100) for i in range(count)))
    return path


def test_the_form_that_official_readers_open(tmp_path):
    assert write_h5(tmp_path / "x.h5", [sample("b.1"), sample("a")]) == 2
    with h5py.File(tmp_path / "x.h5") as file:
        assert {g: list(file[g]) for g in file} == {g: ["a", "b.1"] for g in ("imageA", "imageB", "text")}
        assert {file[g]["a"].shape for g in ("imageA", "imageB")} == {(1, 4, 6)}
        assert file["text"]["a"].shape == (1, 149, 768)
        assert all(file[g]["a"].dtype == np.float32 for g in file)


def test_samples_come_in_key_order(tmp_path):
    write_h5(tmp_path / "x.h5", [sample("10", value=0.5), sample("9"), sample("1")])
    with H5Dataset(tmp_path / "x.h5") as dataset:
        assert dataset.names == ["1", "10", "9"]
        assert dataset[1].image_a.max() == 0.5
        assert dataset[1].text.shape == TEXT_SHAPE


def test_a_failing_writer_leaves_nothing(tmp_path):
    def samples():
        yield sample("a")
        raise UserError("b.png: no such image")

    with pytest.raises(UserError, match=r"b.png"):
        write_h5(tmp_path / "x.h5", samples())
    with pytest.raises(UserError, match="duplicate sample name 'a'"):
        write_h5(tmp_path / "x.h5", [sample("a"), sample("a")])
    assert list(tmp_path.iterdir()) == []


# --- where images came from


def sourced(name: str, path: Path) -> Sample:
    return replace(sample(name), sources=(path / "红外 1.png", Path("VI") / f"{name}.bmp"))


def test_a_file_remembers_where_its_images_came_from(tmp_path, monkeypatch):
    """As absolute paths; not where a sample does not tell, nor where UTF-8 has no form for a path."""
    monkeypatch.chdir(tmp_path)
    samples = [sourced("a", tmp_path), sample("b"), sourced("c", Path("/\udcff"))]
    write_h5(tmp_path / "x.h5", samples)
    with H5Dataset(tmp_path / "x.h5") as dataset:
        assert dataset.sources("a") == (tmp_path / "红外 1.png", tmp_path / "VI" / "a.bmp")
        assert [dataset.sources(name) for name in "bc"] == [None, None]
        np.testing.assert_array_equal(dataset[0].image_a, samples[0].image_a)


def test_official_readers_do_not_see_it(tmp_path):
    """They list the groups and take each dataset's values: the same names, shapes, dtypes and bits as without."""
    write_h5(tmp_path / "with.h5", [sourced(name, tmp_path) for name in "ab"])
    write_h5(tmp_path / "without.h5", [sample(name) for name in "ab"])

    def view(path: Path) -> list[tuple[object, ...]]:
        with h5py.File(path) as file:
            found = [(group, name, file[group][name]) for group in file for name in file[group]]
            return [(group, name, x.shape, x.dtype, x.chunks, np.array(x).tobytes()) for group, name, x in found]

    assert view(tmp_path / "with.h5") == view(tmp_path / "without.h5")
    with h5py.File(tmp_path / "with.h5") as file:
        assert dict(file["imageA"]["a"].attrs) == {"source": str(tmp_path / "红外 1.png").encode()}
        assert not file["text"]["a"].attrs


@pytest.mark.parametrize(
    "content",
    [
        7,
        np.array([b"/a.png", b"/b.png"]),
        np.bytes_(b"/caf\xe9.png"),
        np.bytes_(b"a.png"),
        np.bytes_(b"/a\0.png"),
        np.bytes_(b"/" + b"a" * 5000),
        np.zeros((), [("path", "S9")]),
        h5py.Empty("S9"),
        # Of variable length: HDF5 keeps it elsewhere in the file, and a length that anybody may claim.
        "/a.png",
    ],
)
def test_what_is_no_path_is_no_source(tmp_path, content):
    write_h5(tmp_path / "x.h5", [sourced("a", tmp_path)])
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["imageB"]["a"].attrs["source"] = content
    with H5Dataset(tmp_path / "x.h5") as dataset:
        assert dataset.sources("a") is None
        assert dataset[0].name == "a"


# --- the task and the text encoder


def test_a_file_records_its_data(tmp_path):
    """Official readers, which look into the groups, do not see it."""
    known = Provenance("IVF", "/模型/mpnet", "e690")
    write_h5(tmp_path / "x.h5", [sample("a")], known)
    write_h5(tmp_path / "old.h5", [sample("a")])
    with H5Dataset(tmp_path / "x.h5") as dataset, H5Dataset(tmp_path / "old.h5") as old:
        assert dataset.provenance == known
        assert old.provenance == UNKNOWN
    with h5py.File(tmp_path / "x.h5") as file:
        assert sorted(file) == ["imageA", "imageB", "text"]
        assert not any(file[group].attrs or file[group]["a"].attrs for group in file)


@pytest.mark.parametrize(
    "content", [7, np.bytes_(b"\xe9"), np.bytes_(b"a\nb"), np.bytes_(b"a" * 5000), "of any length"]
)
def test_what_is_no_short_text_is_not_recorded(tmp_path, content):
    write_h5(tmp_path / "x.h5", [sample("a")], Provenance("IVF", "bert", "e690"))
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.attrs["text_encoder"] = content
    with H5Dataset(tmp_path / "x.h5") as dataset:
        assert dataset.provenance == Provenance("IVF", "", "e690")


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/imageA/a"), h5py.SoftLink("/imageB/a")])
def test_a_source_is_not_read_through_a_link(tmp_path, link):
    for name in ("x.h5", "other.h5"):
        write_h5(tmp_path / name, [sourced("a", tmp_path)])
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        del file["imageA"]["a"]
        file["imageA"]["a"] = link
    with H5Dataset(tmp_path / "x.h5") as dataset:
        assert dataset.sources("a") is None


# --- what is refused


def break_group(file):
    del file["text"]


def break_key(file):
    del file["imageB"]["01"]


def break_shape(file):
    del file["text"]["01"]
    file["text"]["01"] = np.zeros((1, 5, 768), np.float32)


def break_size(file):
    del file["imageB"]["01"]
    file["imageB"]["01"] = np.zeros((1, 9, 9), np.float32)


def break_value(file):
    file["imageA"]["01"][0, 0, 0] = np.inf


def break_name(file):
    del file["imageB"]["01"]
    file["imageB"][b"\xff\xfe"] = np.zeros((1, 4, 6), np.float32)


def break_kind(file):
    del file["imageA"]["01"]
    file["imageA"].create_group("01")


def break_by_external_link(file):
    del file["imageA"]["01"]
    file["imageA"]["01"] = h5py.ExternalLink("secret.h5", "/secret")


def break_by_soft_link(file):
    del file["imageA"]["01"]
    file["imageA"]["01"] = h5py.SoftLink("/imageA/00")


def break_by_external_storage(file):
    del file["imageA"]["01"]
    file["imageA"].create_dataset("01", (1, 4, 6), "f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def break_by_virtual_storage(file):
    del file["imageA"]["01"]
    layout = h5py.VirtualLayout((1, 4, 6), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "secret", (1, 4, 6))
    file["imageA"].create_virtual_dataset("01", layout)


def break_group_by_link(file):
    del file["text"]
    file["text"] = h5py.ExternalLink("secret.h5", "/")


def break_by_claim(file):
    del file["imageA"]["01"]
    file["imageA"].create_dataset("01", (1, 1 << 30, 1 << 30), "f4", chunks=(1, 1024, 1024))


def break_by_overflow(file):
    del file["text"]["01"]
    file["text"]["01"] = np.full((1, *TEXT_SHAPE), 1e300)


def break_by_null(file):
    del file["imageA"]["01"]
    file["imageA"]["01"] = h5py.Empty("f4")


def break_type(file):
    del file["imageA"]["01"]
    file["imageA"]["01"] = np.zeros((1, 4, 6), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_group, "no group 'text'"),
        (break_key, "'01' is not in both"),
        (break_name, "'01' is not in both"),
        (break_kind, "imageA/01: cannot be read"),
        (break_shape, r"text/01: has shape \(1, 5, 768\)"),
        (break_size, r"01: image A is \(4, 6\), image B \(9, 9\)"),
        (break_value, "imageA/01: holds values that are not finite"),
        (break_type, "imageA/01: is not an array of floats"),
        (break_by_external_link, "imageA/01: is a link to another place"),
        (break_by_soft_link, "imageA/01: is a link to another place"),
        (break_by_external_storage, "imageA/01: its values are stored in another file"),
        (break_by_virtual_storage, "imageA/01: its values are stored in another file"),
        (break_group_by_link, "text is a link to another place"),
        (break_by_claim, r"imageA/01: has shape \(1, 1073741824, 1073741824\)"),
        (break_by_overflow, "text/01: holds values that are not finite"),
        (break_by_null, "imageA/01: is not an array of floats"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, change, message):
    path = write(tmp_path / "x.h5", 3)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(UserError, match=f"x.h5: {message}"), H5Dataset(path) as dataset:
        dataset[1]


@pytest.mark.parametrize("name", ["..", "x\n", "a/b"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    """HDF5 itself lets no name hold a slash; one is patched into the file."""
    with h5py.File(write(tmp_path / "x.h5", 1), "r+") as file:
        for group in ("imageA", "imageB", "text"):
            file[group].move("00", name.replace("/", "|"))
    content = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "x.h5").write_bytes(content.replace(b"a|b\0", b"a/b\0"))
    with pytest.raises(UserError, match=r"x.h5: .* (leads out of its folder|holds a control character)"):
        H5Dataset(tmp_path / "x.h5")


BAD = (break_key, break_kind, break_shape, break_size, break_value, break_type, break_by_external_link, break_by_claim)


@pytest.mark.parametrize("change", BAD)
def test_bad_samples_are_named_and_left_out(tmp_path, caplog, change):
    path = write(tmp_path / "x.h5", 3)
    with h5py.File(path, "r+") as file:
        change(file)
        for group in ("imageA", "imageB"):
            for name in ("00", "02"):
                file[group][name][0, 0, 0] = 0.9
    with H5Dataset(path, skip_bad=True) as dataset:
        assert dataset.names == ["00", "02"]
        assert list(dataset.skipped) == ["01"]
        assert [dataset[i].name for i in range(len(dataset))] == ["00", "02"]
    (record,) = caplog.records
    assert "01" in record.getMessage()
    assert record.getMessage().startswith(f"skipped: {path}: ")


def varied(name: str, size: tuple[int, int] = (4, 6)) -> Sample:
    a, b = np.random.default_rng(0).random((2, 1, *size), np.float32)
    return Sample(name, a, b, np.zeros(TEXT_SHAPE, np.float32))


def test_other_sizes_and_constant_images_are_left_out(tmp_path, caplog):
    write_h5(tmp_path / "x.h5", [varied("a"), varied("b", (6, 4)), varied("c"), sample("d")])
    with H5Dataset(tmp_path / "x.h5", skip_bad=True, one_size=True) as dataset:
        assert dataset.names == ["a", "c"]
        assert "b: is (6, 4), most others are (4, 6)" in dataset.skipped["b"]
        assert "d: image A is constant" in dataset.skipped["d"]
    with H5Dataset(tmp_path / "x.h5", skip_bad=True) as dataset:
        assert dataset.names == ["a", "b", "c"]


def test_a_constant_image_is_legal_and_named_once(tmp_path, caplog):
    write_h5(tmp_path / "x.h5", [varied("a"), sample("d")])
    with H5Dataset(tmp_path / "x.h5") as dataset:
        for _ in range(2):
            assert [dataset[i].name for i in range(2)] == ["a", "d"]
    (record,) = caplog.records
    assert record.getMessage() == f"{tmp_path / 'x.h5'}: d: image A is constant; --skip_bad leaves it out"


def test_nothing_good_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"x.h5: no good sample is left of 3"):
        H5Dataset(write(tmp_path / "x.h5", 3), skip_bad=True)


def test_missing_damaged_and_empty_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"x.h5: no such H5 file"):
        H5Dataset(tmp_path / "x.h5")
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    with pytest.raises(UserError, match=r"x.h5: not an H5 file"):
        H5Dataset(tmp_path / "x.h5")
    write_h5(tmp_path / "x.h5", [])
    with pytest.raises(UserError, match=r"x.h5: holds no sample"):
        H5Dataset(tmp_path / "x.h5")


def test_damage_within_a_file_is_named(tmp_path):
    """HDF5 marks the nodes of its index with SNOD, TREE and HEAP; each kind is overwritten in turn."""
    content = write(tmp_path / "x.h5", 3).read_bytes()
    for mark in (b"SNOD", b"TREE", b"HEAP"):
        (tmp_path / "y.h5").write_bytes(content.replace(mark, b"XXXX"))
        with pytest.raises(UserError, match=r"y.h5: (a damaged H5 file|no group)"):
            H5Dataset(tmp_path / "y.h5")


# --- what the system refuses

ROOT = Path(__file__).resolve().parents[3]
HOLD = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print(flush=True); sys.stdin.read()"
# Opens the H5 files that the arguments name, for reading or (those that do not exist) for writing.
TRY = """
import sys
from pathlib import Path
from utils.data.h5 import H5Dataset, require_writable
for path in map(Path, sys.argv[1:]):
    try:
        require_writable(path) if path.name == "new.h5" else H5Dataset(path)
    except Exception as error:
        print(type(error).__name__, error, sep=": ")
"""


def tried(*paths: Path, **options: object) -> list[str]:
    """What `TRY` prints in a process of its own."""
    command = [sys.executable, "-c", TRY, *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True, **options)
    return done.stdout.splitlines()


@pytest.fixture
def locked(tmp_path) -> Iterator[tuple[Path, int]]:
    """An H5 file that a process has opened for writing, and its id."""
    path = write(tmp_path / "x_test.h5", 2)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, path], **pipes) as holder:
        holder.stdout.readline()
        yield path, holder.pid
        holder.stdin.close()


def test_a_locked_file_names_the_process(locked):
    path, pid = locked
    with pytest.raises(UserError, match=r"x_test.h5: is locked by .*; wait until it has closed the file") as caught:
        H5Dataset(path)
    if os.major(path.stat().st_dev):  # On btrfs, /proc/locks names another device than stat.
        assert f"locked by process {pid} ({sys.executable} -c import h5py" in str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        ("test", "--dataset", "x", "--h5_dir", "."),
        pytest.param(("train", "--dataset_path", "x_test.h5", "--device", "cpu"), marks=pytest.mark.slow),
        pytest.param(("tools.text_effect", "--h5", "x_test.h5"), marks=pytest.mark.slow),
        pytest.param(("tools.torch_twin", "--dataset_path", "x_test.h5", "--log", "log.txt"), marks=pytest.mark.slow),
    ],
)
def test_every_reader_says_so(locked, command):
    run = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=locked[0].parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("error: x_test.h5: is locked by ")


def only_file_modes() -> None:
    """Let a program that is then started do only what the file modes allow, also if the tests run as root."""
    for right in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, right, 0, 0, 0)  # PR_CAPBSET_DROP


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path):
    files = [tmp_path / name / "x.h5" for name in ("file", "folder", "free")]
    for path in files:
        path.parent.mkdir()
        write(path, 1)
    files[0].chmod(0o000)
    files[1].parent.chmod(0o600)
    errors = tried(*files, preexec_fn=only_file_modes)
    files[1].parent.chmod(0o700)
    assert errors == [f"UserError: {path}: permission denied; ask its owner to let you read it" for path in files[:2]]


@pytest.fixture(scope="module")
def without_locks(tmp_path_factory) -> dict[str, str]:
    """An environment in which no file can be locked, as on some network file systems."""
    library = tmp_path_factory.mktemp("flock") / "flock.so"
    source = "#include <errno.h>\n#include <stdlib.h>\n"
    source += 'int flock(int file, int kind) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }\n'
    compile_it = ["g++", "-x", "c", "-shared", "-fPIC", "-o", library, "-"]
    subprocess.run(compile_it, input=source, text=True, check=True)
    return os.environ | {"LD_PRELOAD": str(library)}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_switch_is_named(tmp_path, without_locks, number):
    files = write(tmp_path / "x.h5", 1), tmp_path / "new.h5"
    line = "is on a file system without locks; run it again with HDF5_USE_FILE_LOCKING=FALSE"
    env = without_locks | {"FLOCK_ERRNO": str(number)}
    assert tried(*files, env=env) == [f"UserError: {path}: {line}" for path in files]
    assert tried(*files, env=env | {"HDF5_USE_FILE_LOCKING": "FALSE"}) == []
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]


def test_other_errors_of_the_system_are_named(tmp_path, monkeypatch):
    """A disk with bad blocks, while the file is opened and while a sample is read."""
    path = write(tmp_path / "x.h5", 1)
    broken = OSError(errno.EIO, "Can't synchronously read data (file read failed: ...)")
    with H5Dataset(path) as dataset, monkeypatch.context() as patch:
        patch.setattr(H5Dataset, "_dataset", Mock(side_effect=broken))
        with pytest.raises(UserError, match=r"x.h5: cannot be read \(Input/output error\)$"):
            dataset[0]
        patch.setattr(h5py, "File", Mock(side_effect=broken))
        with pytest.raises(UserError, match=r"x.h5: cannot be read \(Input/output error\)$"):
            H5Dataset(path)


def test_only_files_are_opened(tmp_path):
    """A pipe would wait for its writer."""
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path / "pipe.h5", tmp_path):
        with pytest.raises(UserError, match="is not a file; expected an H5 file"):
            H5Dataset(path)
    with pytest.raises(UserError, match="no such H5 file"):
        H5Dataset(tmp_path / "x.txt" / "x.h5")
    with pytest.raises(UserError, match="is a folder"):
        require_writable(tmp_path)
    require_writable(tmp_path / "new.h5")
    require_writable(tmp_path / "folder" / "new.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe.h5"]
