"""Checkpoints of strangers: hostile files made here are refused in one line, run nothing, and take no memory or time.

Nothing here needs Jittor: a file of `jt.save` is a pickle of protocol 4, its SHA-1 and a mark.
"""

from __future__ import annotations

import copyreg
import gzip
import hashlib
import io
import json
import pickle
import pickletools
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from utils.runtime.errors import UserError
from utils.training.checkpoint import JITTOR_MARK, read_checkpoint

ROOT = Path(__file__).resolve().parents[3]
ARRAY = np.arange(120, dtype=np.float32).reshape(8, 15)
CANARY = "canary"
EXTENSION = 200  # a number of copyreg's registry, for private use


def sealed(body: bytes) -> bytes:
    """A pickle as `jt.save` writes it to a file."""
    return body + hashlib.sha1(body).digest() + JITTOR_MARK


def archive(body: bytes, **values: bytes) -> bytes:
    """A pickle as `torch.save` writes it to a file, with the tensors' values."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("x/data.pkl", body)
        for key, value in values.items():
            file.writestr(f"x/data/{key}", value)
    return target.getvalue()


def legacy(body: bytes) -> bytes:
    """A pickle as `torch.save` wrote it before version 1.6: after three others, and before the keys of the storages."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = (0x1950A86A20F9469CFC6C, 1001, system)
    return b"".join(pickle.dumps(each, 2) for each in head) + body + pickle.dumps([], 2)


FORMS = {"plain.pkl": bytes, "sealed.pkl": sealed, "zip.pth": archive, "legacy.pth": legacy}


def refused(path: Path) -> str:
    """Read the file; the line of the refusal."""
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


TOUCH = text(CANARY) + text("w")  # builtins.open("canary", "w") makes the file
PERSISTENT = b"\x80\x02" + text("anything") + b"Q."
CALLS = {
    "GLOBAL, REDUCE": b"\x80\x02cbuiltins\nopen\n" + TOUCH + b"\x86R.",
    "STACK_GLOBAL, REDUCE": b"\x80\x04" + text("builtins") + text("open") + b"\x93" + TOUCH + b"\x86R.",
    "GLOBAL with dots": b"\x80\x04" + text("os") + text("path.os.open") + b"\x93" + text(CANARY) + b"K\x41\x86R.",
    "INST": b"(" + TOUCH + b"ibuiltins\nopen\n.",
    "OBJ": b"(c_io\nFileIO\n" + TOUCH + b"o.",
    "NEWOBJ": b"\x80\x02cpathlib\nPath\n" + text(CANARY) + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04cpathlib\nPath\n" + text(CANARY) + b"\x85}\x92.",
    "EXT1": b"\x80\x02\x82" + bytes([EXTENSION]) + TOUCH + b"\x86R.",
    "EXT2": b"\x80\x02\x83" + struct.pack("<H", EXTENSION) + TOUCH + b"\x86R.",
    "EXT4": b"\x80\x02\x84" + struct.pack("<i", EXTENSION) + TOUCH + b"\x86R.",
    "BUILD": b"\x80\x02cargparse\nNamespace\n)\x81}" + text("x") + b"cbuiltins\nopen\n" + TOUCH + b"\x86Rsb.",
    "from the memo": b"\x80\x02cbuiltins\nopen\nq\x00" + b"0h\x00" + TOUCH + b"\x86R.",
    "in an array's state": b"\x80\x02cnumpy\ndtype\n" + text("f4") + b"\x85Rcbuiltins\nopen\n" + TOUCH + b"\x86Rb.",
    "as an argument": b"\x80\x02cnumpy.core.multiarray\nscalar\n(cbuiltins\nopen\n" + TOUCH + b"\x86RtR.",
    "in a buffer's arguments": b"\x80\x04cnumpy.core.numeric\n_frombuffer\n(cbuiltins\nopen\n" + TOUCH + b"\x86RtR.",
    "a name that is allowed, called": b"\x80\x02(cnumpy\nndarray\ncbuiltins\nopen\n" + TOUCH + b"\x86Rt.",
}


def nested(body: bytes, depth: int = 5) -> bytes:
    """The value of a pickle in dictionaries and lists."""
    body = body.removeprefix(b"\x80\x02").removeprefix(b"\x80\x04").removesuffix(b".")
    for _ in range(depth):
        body = b"}" + text("model") + b"]" + body + b"as"
    return b"\x80\x04" + body + b"."


@pytest.fixture
def extension():
    copyreg.add_extension("builtins", "open", EXTENSION)
    yield
    copyreg.remove_extension("builtins", "open", EXTENSION)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrap", [bytes, nested])
@pytest.mark.parametrize("name", CALLS)
def test_what_calls_or_imports_is_refused_and_not_executed(tmp_path, monkeypatch, extension, name, wrap, form):
    monkeypatch.chdir(tmp_path)
    body = wrap(CALLS[name])
    Path(form).write_bytes(FORMS[form](body))
    assert "cannot be read as a checkpoint: it " in refused(Path(form))
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("NEWOBJ")])
def test_the_corpus_is_armed(tmp_path, monkeypatch, extension, name):
    """Python's own unpickler makes the file (or fails only after it has)."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(Exception):  # the call comes first
            pickle.loads(CALLS[name])
    assert Path(CANARY).exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("posix", "system"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("torch", "load"),
        ("jittor", "load"),
    ],
)
def test_a_name_is_refused_by_name(tmp_path, module, name):
    (tmp_path / "x.pkl").write_bytes(sealed(f"c{module}\n{name}\n(tR.".encode()))
    assert f"it asks for '{module}.{name}', which a checkpoint does not need" in refused(tmp_path / "x.pkl")


KNOWN = {"INST", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"}


@pytest.mark.parametrize(
    "code", [op for op in pickletools.opcodes if op.name.startswith(("EXT", "NEW", "OBJ")) or op.name in KNOWN]
)
def test_no_instruction_that_makes_objects_brings_anything_in(tmp_path, code):
    """Each of them after values of many kinds, on a full and on an empty stack."""
    if code.name in ("NEWTRUE", "NEWFALSE"):
        pytest.skip("a constant")
    for before in (b"", b"(", b"]", b"}", b"K\x01", text("x"), b"cnumpy\ndtype\n)", b"cnumpy\nndarray\n(K\x01t"):
        for after in (b"", b"\x01", b"posix\nsystem\n", b"\x01\x00\x00\x00"):
            (tmp_path / "x.pkl").write_bytes(before + code.code.encode("latin1") + after + b".")
            refused(tmp_path / "x.pkl")


def dtype(spec: str, state: bytes = b"") -> bytes:
    return b"cnumpy\ndtype\n" + text(spec) + b"K\x00K\x01\x87R" + state


def array(shape: bytes, kind: bytes, values: bytes) -> bytes:
    """A NumPy array as it is pickled, with a shape, dtype and values of any kind."""
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    return b"}" + text("a") + made + b"(K\x01" + shape + kind + b"\x89" + values + b"tbs."


def values_of(count: int) -> bytes:
    return b"B" + struct.pack("<I", count) + bytes(count)


def buffer(count: int, kind: bytes, shape: bytes, rest: bytes) -> bytes:
    """A NumPy array as protocol 5 stores it: `count` bytes, a dtype, a shape and the order, each of any kind."""
    values = b"\x96" + struct.pack("<Q", count) + bytes(count)
    return b"\x80\x05}" + text("a") + b"cnumpy.core.numeric\n_frombuffer\n(" + values + kind + shape + rest + b"tRs."


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(storage: str, key: str, numel: int, offset: int, size: int, stride: int) -> bytes:
    identity = (
        b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + number(numel) + b"tQ"
    )
    view = number(offset) + number(size) + b"\x85" + number(stride) + b"\x85\x89}"
    return b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + view + b"tRs."


def doubled(levels: int) -> bytes:
    """A list of lists, each of which holds the one before twice: the last has 2^levels items."""
    return b"](]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(levels)) + b"e"


PLAIN_STATE = b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
TWO = b"K\x02\x85"
ENCODED = b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R"
CLAIMS = {
    "an object array": array(TWO, dtype("O8"), values_of(16)),
    "an object array of a list": array(TWO, dtype("O"), b"]"),
    "a structured dtype": array(TWO, dtype("V8"), values_of(16)),
    "an array of dates": array(TWO, dtype("M8[s]"), values_of(16)),
    "a dtype with fields": array(TWO, dtype("f4", PLAIN_STATE.replace(b"NNN", b"N]}")), values_of(8)),
    "a dtype with metadata": array(TWO, dtype("f4", PLAIN_STATE.replace(b"K\x00tb", b"K\x00}tb")), values_of(8)),
    "a dtype of another byte order": array(TWO, dtype("f4", PLAIN_STATE.replace(text("<"), text("O"))), values_of(8)),
    "a dtype that is none": array(TWO, b"N", values_of(8)),
    "a shape without its values": array(number(1 << 40) + b"\x85", dtype("f4"), values_of(8)),
    "a shape below zero": array(b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86", dtype("f4"), values_of(8)),
    "a shape that overflows to the right size": array(number(1 << 62) + b"K\x04\x86", dtype("f4"), values_of(0)),
    "a shape that is a list": array(b"](K\x02e", dtype("f4"), values_of(8)),
    "a shape of 100 axes": array(b"(" + b"K\x01" * 100 + b"t", dtype("f4"), values_of(4)),
    "an empty array of an endless shape": array(b"K\x00" + number(1 << 61) * 2 + b"\x87", dtype("f4"), b"C\x00"),
    "values that are no bytes": array(TWO, dtype("f4"), b"]"),
    "a buffer that is not there": b"}" + text("a") + b"\x96" + struct.pack("<Q", 1 << 60) + b"abc.",
    "a buffer of another size": buffer(8, dtype("f4"), number(1 << 40) + b"\x85", text("C")),
    "a buffer of objects": buffer(16, dtype("O8"), TWO, text("C")),
    "a buffer of an unknown order": buffer(8, dtype("f4"), TWO, text("A")),
    "a buffer of a list as its order": buffer(8, dtype("f4"), TWO, b"]"),
    "a buffer without its axes": buffer(8, dtype("f4"), TWO, text("K")),
    "a buffer of an axis that is not there": buffer(8, dtype("f4"), TWO, text("K") + b"K\x01\x85"),
    "a buffer of the same axis twice": buffer(8, dtype("f4"), b"K\x02K\x01\x86", text("K") + b"K\x00K\x00\x86"),
    "a buffer of axes that are a list": buffer(8, dtype("f4"), TWO, text("K") + b"]K\x00a"),
    "a buffer of a shape that is a list": buffer(8, dtype("f4"), b"]K\x02a", text("K") + b"K\x00\x85"),
    "a buffer outside the file": b"\x80\x05}" + text("a") + b"\x97\x98s.",
    "bytes that are not there": b"}" + text("a") + b"\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
    "a string that is not there": b"}" + text("a") + b"\x8d" + struct.pack("<Q", 1 << 62) + b"abc.",
    "a number of 2 GB": b"}" + text("a") + b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"abc.",
    "a frame of exabytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"\x8b.",
    "bytes": b"}" + text("a") + b"C\x01as.",
    "a set": b"}" + text("a") + b"\x8fs.",
    "a class": b"}" + text("a") + b"cnumpy\nndarray\ns.",
    "a dtype": b"}" + text("a") + dtype("f4") + b"s.",
    "a storage": b"}" + text("a") + b"ctorch\nFloatStorage\ns.",
    "an array without a state": b"}" + text("a") + b"cnumpy.core.multiarray\n_reconstruct\n)Rs.",
    "a tuple as a key": b"})K\x01s.",
    "an endless number as a key": b"}" + number(1 << 61) + b"K\x01s.",
    "a list that holds itself": b"}" + text("a") + b"]q\x00h\x00as.",
    "a dictionary that holds itself": b"}q\x00" + text("a") + b"h\x00s.",
    "lists within lists": b"}" + text("a") + b"]" * 100_000 + b"a" * 99_999 + b"s.",
    "tuples within tuples": b"}" + text("a") + b")" + b"\x85" * 200_000 + b"s.",
    "marks without end": b"(" * 290_000 + b".",
    "a memo bomb": b"}" + text("a") + doubled(60) + b"s.",
    "instructions without end": b"(" + b"N" * 1_000_000 + b"t.",
    "bytes made over and over": b"}" + text("x" * 10_000_000) + b"q\x00" + ENCODED * 200 + b".",
    "a pickle of nothing": b".",
    "a list": b"].",
    "a number": b"K\x01.",
    "more after the end": b"}.}.",
}  # fmt: skip


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("form", [bytes, sealed, archive], ids=lambda form: form.__name__)
def test_what_is_no_plain_data_or_too_large_is_refused(tmp_path, form, name):
    if (form, name) == (archive, "more after the end"):
        pytest.skip("read no further than the end")
    (tmp_path / "x").write_bytes(form(CLAIMS[name]))
    refused(tmp_path / "x")


VALUES = ARRAY.tobytes()  # 120 numbers
TENSORS = {
    "of more values than there are": tensor("FloatStorage", "0", 1 << 40, 0, 4, 1),
    "of another number of values": tensor("FloatStorage", "0", 119, 0, 4, 1),
    "beyond its storage": tensor("FloatStorage", "0", 120, 118, 4, 1),
    "far beyond its storage": tensor("FloatStorage", "0", 120, 0, 2, 1 << 60),
    "before its storage": tensor("FloatStorage", "0", 120, -1, 4, 1),
    "of a step below zero": tensor("FloatStorage", "0", 120, 100, 4, -1),
    "of one value repeated": tensor("FloatStorage", "0", 120, 0, 1 << 40, 0),
    "of another type": tensor("DoubleStorage", "0", 120, 0, 4, 1),
    "of an unknown type": tensor("UntypedStorage", "0", 480, 0, 4, 1),
    "of a file elsewhere": tensor("FloatStorage", "../../x/data/0", 120, 0, 4, 1),
    "without its values": tensor("FloatStorage", "1", 120, 0, 4, 1),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_claim_what_is_not_there_are_refused(tmp_path, name):
    (tmp_path / "x.pth").write_bytes(archive(TENSORS[name], **{"0": VALUES}))
    refused(tmp_path / "x.pth")


def test_the_forms_that_the_hostile_files_change_are_good(tmp_path):
    """What the corpus bends is read when it is straight."""
    (tmp_path / "x.pth").write_bytes(archive(tensor("FloatStorage", "0", 120, 4, 3, 2), **{"0": VALUES}))
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "x.pth")["a"], [4, 6, 8])
    (tmp_path / "x.pkl").write_bytes(sealed(array(TWO, dtype("f4", PLAIN_STATE), values_of(8))))
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "x.pkl")["a"], [0, 0])
    (tmp_path / "x.pkl").write_bytes(sealed(buffer(8, dtype("f4", PLAIN_STATE), TWO, text("K") + b"K\x00\x85")))
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "x.pkl")["a"], [0, 0])
    (tmp_path / "x.pth").write_bytes(legacy(b"\x80\x02}" + text("a") + b"K\x07s."))
    assert read_checkpoint(tmp_path / "x.pth") == {"a": 7}


def safetensors(header: object, values: bytes = bytes(8)) -> bytes:
    """A safetensors file with a header of any kind."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + values


def entry(kind: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "values that are not there": safetensors({"a": entry("F32", [1 << 29], 0, 1 << 31)}),
    "values of another size": safetensors({"a": entry("F32", [3], 0, 8)}),
    "values outside the file": safetensors({"a": entry("F32", [2], 1 << 40, (1 << 40) + 8)}),
    "values used twice": safetensors({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}),
    "values that nothing names": safetensors({"a": entry("F32", [1], 0, 4)}),
    "a shape that overflows to the right size": safetensors({"a": entry("F32", [1 << 62, 4], 0, 0)}, b""),
    "a shape below zero": safetensors({"a": entry("F32", [-2], 0, 8)}),
    "a shape of 100 axes": safetensors({"a": entry("F64", [1] * 100, 0, 8)}),
    "an empty tensor of an endless shape": safetensors({"a": entry("F32", [0, 1 << 61, 4], 0, 0)}, b""),
    "a type that is no number of NumPy's": safetensors({"a": entry("F8_E4M3", [8], 0, 8)}),
    "a type of half a byte": safetensors({"a": entry("F4", [16], 0, 8)}),
    "an unknown type": safetensors({"a": entry("object", [1], 0, 8)}),
    "a header that is cut": safetensors({"a": entry("F32", [2], 0, 8)})[:40],
    "a header of 3 GB": struct.pack("<Q", 3 << 30) + b'{"a"',
    "a header of 2 MB": safetensors(b"{" + b" " * (2 << 20) + b"}", b""),
    "a header that is not JSON": safetensors(b'{"a":}'),
    "a header that is not UTF-8": safetensors(b'{"\xff":1}'),
    "objects within objects": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""),
    "lists within lists": safetensors(b'{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}", b""),
    "metadata that is no text": safetensors({"__metadata__": {"a": ["b"]}}, b""),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_that_claim_what_is_not_there_are_refused(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(SAFETENSORS[name])
    refused(tmp_path / "x.safetensors")


def test_safetensors_are_read_whatever_the_suffix(tmp_path):
    values = np.array([1.5, -2, 0, 3], "<f2").tobytes()
    tensors = {"a": entry("F16", [2, 2], 0, 8), "b": entry("BF16", [2], 8, 12), "c": entry("I8", [], 12, 13)}
    header = {"__metadata__": {"epoch": "3", "model": "FILM"}, **tensors}
    # bfloat16 is the upper half of float32: 1 is 3f80, -2 is c000.
    (tmp_path / "x.pkl").write_bytes(safetensors(header, values + b"\x80\x3f\x00\xc0\xff"))
    content = read_checkpoint(tmp_path / "x.pkl")
    assert content["epoch"] == "3"
    assert {name: value.tolist() for name, value in content["model"].items()} == {
        "a": [[1.5, -2], [0, 3]],
        "b": [1, -2],
        "c": -1,
    }
    assert content["model"]["b"].dtype == np.float32


def onnx_like() -> bytes:
    """The first fields of an ONNX model: IR version 10, producer 'pytorch'."""
    return b"\x08\x0a\x12\x07pytorch\x3a\x00"


OTHER_FILES = {
    "web page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page"),
    "error of a store": ("\ufeff<?xml version='1.0'?><Error/>".encode(), "a web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8302001\n", "git lfs pull"),
    "error of an API": (b'{"error": "Entry not found"}', "a text"),
    "text": (b"Access denied", "a text"),
    "nothing": (b"", "empty"),
    "gzip": (gzip.compress(b"weights"), "unpack it"),
    "tar": (b"ckpt.pth".ljust(257, b"\0") + b"ustar\x0000", "unpack it"),
    "H5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "an H5 file"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(40), "an image"),
    "npy": (b"\x93NUMPY\x01\x00", "a NumPy array"),
    "ONNX": (onnx_like(), "an ONNX file"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_what_people_take_for_a_checkpoint_is_named(tmp_path, name):
    content, words = OTHER_FILES[name]
    (tmp_path / "ckpt.pth").write_bytes(content)
    assert words in refused(tmp_path / "ckpt.pth")


def test_lists_that_double_are_followed_only_so_far(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"}" + text("a") + doubled(10) + b"s.")
    assert len(read_checkpoint(tmp_path / "x.pkl")["a"]) == 11
    (tmp_path / "x.pkl").write_bytes(b"}" + text("a") + doubled(40) + b"s.")
    assert "takes more than 300000 steps" in refused(tmp_path / "x.pkl")


def test_zip_bombs_are_refused(tmp_path):
    body = tensor("FloatStorage", "0", 25 << 20, 0, 4, 1)
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", body)
        file.writestr("x/data/0", bytes(100 << 20))
    assert "compressed" in refused(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        for i in range(30_000):
            file.writestr(str(i), b"")
    assert "an archive of more than" in refused(tmp_path / "x.pth")


def test_many_views_of_one_storage_are_bounded(tmp_path):
    """1,000 tensors of one storage of 4 MB: 4 GB if each were copied."""
    one = tensor("FloatStorage", "0", 1_000_000, 0, 1_000_000, 1)
    item = one[one.index(b"ctorch._utils") : -2]
    body = b"\x80\x02}" + text("a") + b"](" + item * 1000 + b"es."
    (tmp_path / "x.pth").write_bytes(archive(body, **{"0": bytes(4_000_000)}))
    assert "claims more than 512 MiB" in refused(tmp_path / "x.pth")


def test_a_large_file_is_refused_unread(tmp_path):
    with (tmp_path / "x.pkl").open("wb") as file:
        file.truncate(3 << 30)
    assert "is larger than 512 MiB" in refused(tmp_path / "x.pkl")


LIMITED = """
import resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from utils.training.checkpoint import read_checkpoint
from utils.runtime.errors import UserError
for path in sorted(Path(sys.argv[1]).iterdir()):
    started = time.perf_counter()
    try:
        read_checkpoint(path)
        print(path.name, "was read")
    except UserError as error:
        if isinstance(error.__cause__, MemoryError):
            print(path.name, "took more than 2 GB")
    if time.perf_counter() - started > 10:
        print(path.name, "took", time.perf_counter() - started, "s")
print("done")
"""


def test_no_file_takes_more_than_2_gb_or_10_s(tmp_path):
    """All claims, and a good file of 400 MiB, in a process that is not given more."""
    corpus = {
        **CLAIMS,
        **SAFETENSORS,
        **{f"tensor {name}": archive(body, **{"0": VALUES}) for name, body in TENSORS.items()},
    }
    large = 400 << 20
    (tmp_path / "large").write_bytes(array(number(large // 4) + b"\x85", dtype("f4"), values_of(large)))
    for i, body in enumerate(corpus.values()):
        (tmp_path / f"{i:03d}").write_bytes(body)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "large was read\ndone\n", done.stdout + done.stderr


def torch_file(legacy_form: bool) -> bytes:
    torch = pytest.importorskip("torch")
    target = io.BytesIO()
    model = OrderedDict({"module.a": torch.from_numpy(ARRAY), "module.b": torch.ones(3, 2).T})
    torch.save({"model": model, "epoch": 3}, target, _use_new_zipfile_serialization=not legacy_form)
    return target.getvalue()


GOOD: dict[str, Callable[[], bytes]] = {
    "jt.save": lambda: sealed(pickle.dumps({"model": {"a": ARRAY, "b": ARRAY[:3].T}, "epoch": 3}, 4)),
    "old jt.save": lambda: pickle.dumps({"model": {"a": ARRAY, "b": ARRAY[:3].T}, "epoch": 3}, 4),
    "protocol 5": lambda: pickle.dumps({"model": {"a": ARRAY, "b": ARRAY[:3].T}, "epoch": 3}, 5),
    "safetensors": lambda: safetensors(
        {"__metadata__": {"epoch": "3"}, "a": entry("F32", [8, 15], 0, 480)}, ARRAY.tobytes()
    ),
    "torch": lambda: torch_file(False),
    "old torch": lambda: torch_file(True),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_cut_anywhere_is_refused(tmp_path, name):
    data = GOOD[name]()
    path = tmp_path / "x"
    path.write_bytes(data)
    assert int(read_checkpoint(path)["epoch"]) == 3
    for end in [*range(0, len(data), 100), *range(len(data) - 40, len(data))]:
        # Without its checksum a file of jt.save is one as older versions wrote it, and whole.
        if name == "jt.save" and end == len(data) - 28:
            continue
        path.write_bytes(data[:end])
        refused(path)


@pytest.mark.parametrize("name", ["jt.save", "torch"])
def test_a_changed_byte_in_the_values_is_found(tmp_path, name):
    data = bytearray(GOOD[name]())
    at = bytes(data).index(ARRAY.tobytes()) + 50
    data[at] ^= 1
    (tmp_path / "x").write_bytes(data)
    refused(tmp_path / "x")


@pytest.mark.parametrize("legacy_form", [False, True])
@pytest.mark.parametrize(
    "kind", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
)
def test_tensors_of_all_types_are_read(tmp_path, kind, legacy_form):
    torch = pytest.importorskip("torch")
    tensors = {"a": torch.arange(24).reshape(2, 3, 4).to(getattr(torch, kind)), "scalar": torch.tensor(1)}
    tensors |= {"turned": tensors["a"].permute(2, 0, 1), "part": tensors["a"][1, 1:], "empty": tensors["a"][:0]}
    tensors["parameter"] = torch.nn.Parameter(tensors["a"].float())
    torch.save(tensors, tmp_path / "x", _use_new_zipfile_serialization=not legacy_form)
    read = read_checkpoint(tmp_path / "x")
    for name, value in tensors.items():
        value = value.detach()
        expected = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        np.testing.assert_array_equal(read[name], expected)
        assert read[name].dtype == expected.dtype
        assert read[name].flags.writeable or not read[name].size


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_arrays_numbers_and_containers_are_read(tmp_path, protocol, core):
    """As NumPy 1 and 2 name their core; big-endian, Fortran order, empty and without axes."""
    content = {
        "big": ARRAY.astype(">f8"),
        "fortran": np.asfortranarray(ARRAY),
        "turned": ARRAY.reshape(2, 4, 15).transpose(1, 2, 0),
        "part": ARRAY[::2, 1:],
        "without axes": np.array(2.5),
        "read only": np.frombuffer(bytes(8), "<f4"),
        "empty": ARRAY[:0],
        "flags": np.array([True, False]),
        "numbers": [np.float64(0.5), np.int64(-7), 1 << 70, -0.25, True, None, (1, "ü😀")],
        "nested": OrderedDict(a={1: {"b": [1.5]}}),
    }
    data = pickle.dumps(content, protocol).replace(b"numpy.core", core)
    if core == b"numpy._core" and protocol == 4:
        data = data.replace(b"\x8c\x15numpy._core", b"\x8c\x16numpy._core")  # the name's length
    (tmp_path / "x.pkl").write_bytes(sealed(data))
    read = read_checkpoint(tmp_path / "x.pkl")
    assert read.pop("without axes") == content["without axes"]
    for name in ("big", "fortran", "turned", "part", "read only", "empty", "flags"):
        np.testing.assert_array_equal(read[name], content[name])
        assert read[name].dtype.isnative
    assert read["numbers"] == [0.5, -7, 1 << 70, -0.25, True, None, (1, "ü😀")]
    assert read["nested"] == {"a": {1: {"b": [1.5]}}}
