"""Readers on files of any bytes: each returns valid data or raises a `UserError` of one line, and nothing else.

A few seconds by default; ``FUZZ=20000 pytest tests/utils/test_fuzz.py`` tries as many files on each reader.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as safetensors

from net.shapes import TEXT_SHAPE
from utils.data.h5 import GROUPS, H5Dataset, Sample, write_h5
from utils.data.images import read_bgr, read_gray
from utils.data.pairs import Pair, read_list
from utils.runtime.errors import UserError
from utils.text.features import FeatureFiles, read_paragraph
from utils.training.checkpoint import JITTOR_MARK, read_checkpoint
from utils.training.loss_log import LogLine, format_line, read_log

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ", "25")),
    deadline=None,
    database=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


EDITS = st.lists(
    st.tuples(
        st.integers(0, 1 << 20),  # where
        st.sampled_from(["overwrite", "overwrite", "overwrite", "insert", "delete", "repeat", "cut"]),
        st.binary(min_size=1, max_size=16) | st.sampled_from([b"\xff" * 8, bytes(8), b"\xff" * 4, b"\x7f"]),
    ),
    min_size=1,
    max_size=4,
)


def changed(data: bytes, edits: Sequence[tuple[int, str, bytes]], part: range | None = None) -> bytes:
    """`data` with some bytes overwritten, put in, taken out or said twice, or cut; in the `part` given, or anywhere."""
    result = bytearray(data)
    for where, how, new in edits:
        at = part[where % len(part)] if part else where % max(len(result), 1)
        if how == "overwrite":
            result[at : at + len(new)] = new
        elif how == "insert":
            result[at:at] = new
        elif how == "delete":
            del result[at : at + len(new)]
        elif how == "repeat":
            result[at:at] = result[at : at + len(new)]
        else:
            del result[at:]
    return bytes(result)


def reads(read: Callable[[Path], None], content: bytes, name: str) -> None:
    """Let `read` try a file of `content`; what it raises must be a `UserError` of one line that names the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            read(path)
        except UserError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)


@fuzzed
@given(st.binary(max_size=60) | EDITS.map(partial(changed, "1.png\n图.jpg\n a b.tif\r\n".encode())))
def test_lists(content):
    def read(path: Path) -> None:
        names = read_list(path)
        assert names
        assert len(set(names)) == len(names)
        for name in names:
            assert path.parent in Path(os.path.normpath(Path(path.parent, name))).parents
            assert "\0" not in name

    reads(read, content, "train.txt")


LINE = format_line(LogLine(1, 2, 0, 5, 0.5, 0.25, 1.5, 2.5, "0:00:01.50"))


@fuzzed
@given(EDITS.map(partial(changed, f"{LINE}\n{LINE.replace('Batch 0', 'Batch 1')}\n".encode())))
def test_logs(content):
    def read(path: Path) -> None:
        lines = read_log(path)
        assert lines
        assert len({(line.epoch, line.batch) for line in lines}) == len(lines)

    reads(read, content, "log.txt")


@fuzzed
@given(st.binary(max_size=60) | EDITS.map(partial(changed, "A man walks, 他.".encode())))
def test_paragraphs(content):
    reads(lambda path: read_paragraph(path).encode(), content, "1.txt")


IMAGE = (np.arange(20 * 24 * 3).reshape(20, 24, 3) % 251).astype(np.uint8)
IMAGES = {suffix: cv2.imencode(suffix, IMAGE)[1].tobytes() for suffix in (".png", ".jpg", ".bmp", ".tiff")}
IMAGES["16.png"] = cv2.imencode(".png", IMAGE.astype(np.uint16) * 200)[1].tobytes()
IMAGES["gray.png"] = cv2.imencode(".png", IMAGE[..., 0])[1].tobytes()


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind):
    @fuzzed
    @given(EDITS, st.booleans())
    def fuzz(edits, in_head):
        content = changed(IMAGES[kind], edits, range(120) if in_head else None)

        def read(path: Path) -> None:
            gray = read_gray(path)
            assert gray.ndim == 2
            assert gray.size
            assert 0 <= gray.min() <= gray.max() <= 255
            assert (gray == np.round(gray)).all()
            assert read_bgr(path).shape == (*gray.shape, 3)

        reads(read, content, f"x{Path(kind).suffix}")

    fuzz()


def npy(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


FEATURE_FILE = npy(np.zeros((1, *TEXT_SHAPE), np.float32))


@fuzzed
@given(EDITS)
def test_features(edits):
    content = changed(FEATURE_FILE, edits, range(128))

    def read(path: Path) -> None:
        feature = FeatureFiles().feature(Pair("x", path, path, path, path))
        assert (feature.shape, feature.dtype) == (TEXT_SHAPE, np.float32)
        assert np.isfinite(feature).all()

    reads(read, content, "x.npy")


@pytest.fixture(scope="module")
def h5_file(tmp_path_factory) -> tuple[bytes, list[range]]:
    """A file of two samples, and the ranges of it that are structure, not values."""
    path = tmp_path_factory.mktemp("h5") / "x.h5"
    image = np.linspace(0, 1, 24, dtype=np.float32).reshape(1, 4, 6)
    text = np.zeros(TEXT_SHAPE, np.float32)
    write_h5(path, (Sample(name, image, image, text, (path, path)) for name in ("a", "b")))
    with h5py.File(path) as file:
        found = [file[group][name] for group in GROUPS for name in ("a", "b")]
        values = sorted((item.id.get_offset(), item.id.get_offset() + item.id.get_storage_size()) for item in found)
    edges = [0, *(edge for pair in values for edge in pair), path.stat().st_size]
    return path.read_bytes(), [range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_h5(h5_file, skip_bad):
    data, structure = h5_file

    @fuzzed
    @given(EDITS, st.integers(0, len(structure) - 1))
    def fuzz(edits, part):
        content = changed(data, edits, structure[part])

        def read(path: Path) -> None:
            with H5Dataset(path, skip_bad) as dataset:
                sources = [dataset.sources(name) for name in dataset.names]
                samples = [dataset[i] for i in range(len(dataset))]
            assert all(path.is_absolute() for found in sources if found for path in found)
            assert samples
            for sample in samples:
                assert sample.text.shape == TEXT_SHAPE
                assert sample.image_a.shape == sample.image_b.shape
                for array in (sample.image_a, sample.image_b, sample.text):
                    assert array.dtype == np.float32
                    assert np.isfinite(array).all()

        reads(read, content, "x.h5")

    fuzz()


def torch_file(legacy: bool) -> bytes:
    import torch

    target = io.BytesIO()
    model = OrderedDict({"module.a": torch.ones(2, 3), "b": torch.arange(6).reshape(3, 2).T})
    torch.save({"model": model, "epoch": 1}, target, _use_new_zipfile_serialization=not legacy)
    return target.getvalue()


PICKLE = pickle.dumps({"model": {"a": np.ones((2, 3), np.float32)}, "n": [1, 0.5, None, "x", np.float64(2)]}, 4)
CHECKPOINTS = {"old": PICKLE, "protocol 2": pickle.dumps(pickle.loads(PICKLE), 2), "sealed": PICKLE}
CHECKPOINTS |= {"protocol 5": pickle.dumps(pickle.loads(PICKLE), 5)}
CHECKPOINTS |= {"safetensors": safetensors({"a": np.ones((2, 3), np.float32), "b": np.arange(4)}, {"epoch": "3"})}
if find_spec("torch"):
    CHECKPOINTS |= {"torch": torch_file(False), "old torch": torch_file(True)}


def leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) in (str, int, bool)
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_checkpoints(form):
    @fuzzed
    @given(EDITS)
    def fuzz(edits):
        content = changed(CHECKPOINTS[form], edits)

        def read(path: Path) -> None:
            for leaf in leaves(read_checkpoint(path)):
                assert leaf is None or type(leaf) in (np.ndarray, int, float, bool, str)
                if isinstance(leaf, np.ndarray):
                    assert leaf.dtype.kind in "fiub"
                    leaf.copy()

        if form == "sealed":
            content += hashlib.sha1(content).digest() + JITTOR_MARK
        reads(read, content, "x")

    fuzz()


OPCODES = b"()]}N\x88\x89K\x01K\x02q\x00h\x00q\x01h\x01\x94Rb\x85\x86\x87tsuaeQ0\x93."


@fuzzed
@given(
    st.lists(
        st.sampled_from([bytes([code]) for code in OPCODES])
        | st.sampled_from([b"cnumpy\ndtype\n", b"X\x02\x00\x00\x00f4", b"C\x04abcd", b"ctorch\nFloatStorage\n"])
        | st.sampled_from([b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n"])
        | st.sampled_from([b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"K\x01\x85"]),
        max_size=60,
    ).map(lambda codes: b"".join(codes) + b".")
)
def test_instructions_in_any_order(content):
    reads(lambda path: list(leaves(read_checkpoint(path))), content, "x.pkl")
