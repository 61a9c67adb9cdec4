"""Checkpoints: written by Jittor, read from files of Jittor, PyTorch and safetensors, matched by parameter name."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path, is_file
from utils.training.unpickle import MAX_BYTES, Refused, RestrictedUnpickler, Storage, numbers

if TYPE_CHECKING:
    from utils.runtime.jittor_env import jt

# `jt.save` ends a file with the SHA-1 of the pickle (20 bytes) and this mark.
JITTOR_MARK = b"HCAJSLHD"
# Official files carry the prefix of DataParallel.
PREFIX = "module."
# Prefixes that PyTorch's wrappers, DataParallel and torch.compile, put before a name, once or more often.
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
# Where checkpoints hold the parameters; without such a key, they are the whole content.
_WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict")
ZIP_MARK, ZIP_ENTRY = b"PK\x03\x04", b"PK\x01\x02"
# `torch.save` before 1.6 begins with this number, pickled by protocol 2.
LEGACY_MARK = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
MAX_ENTRIES = 20_000
MAX_HEADER = 1 << 20  # bytes of JSON in a safetensors file; FILM's takes a fiftieth
# Types in safetensors files -> NumPy's, and bfloat16.
_SAFETENSORS = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1",
    "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "b1",
}  # fmt: skip
# Files that are mistaken for a checkpoint: how they begin (the first 512 bytes), what they are, and the way out.
_OTHER_FILES = (
    (rb"\Z", "is empty; download or copy it again"),
    (rb"(\xef\xbb\xbf)?\s*<", "is a web page (HTML or XML); download the file that the page is about"),
    (
        rb"version https://git-lfs",
        "is a Git LFS pointer, not the file itself; run `git lfs pull`, or download the file",
    ),
    (rb"\x1f\x8b|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar", "is compressed or packed; unpack it"),
    (rb"\x89HDF", "is an H5 file; a checkpoint was expected"),
    (rb"\x89PNG|\xff\xd8\xff|II\*\0|MM\0\*|GIF8|BM.{4}\0{4}", "is an image; a checkpoint was expected"),
    (rb"\x93NUMPY", "is a NumPy array; a checkpoint was expected"),
    (rb"\x08[\x03-\x20]\x12", "is an ONNX file; name the checkpoint that it was made from"),
    (rb"[\t\n\r -~]+(?<!\.)\Z", "is a text; a checkpoint was expected"),
)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` with `jt.save`; the file is complete or absent.

    Raises:
        UserError: it cannot be written.
    """
    from utils.runtime.jittor_env import jt

    with atomic_path(path) as temporary:
        jt.save(dict(state), str(temporary))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `jt.save`, `torch.save` or safetensors wrote, whatever the suffix; tensors become NumPy arrays.

    Nothing is executed (`utils.training.unpickle`), and memory and time stay in proportion to the size of the file.
    The tensors of safetensors are under the key 'model', its metadata (texts) under their own keys.

    Raises:
        UserError: the file is missing, damaged, larger than `MAX_BYTES`, or holds something other than tensors,
            arrays, numbers, strings, lists, tuples and dictionaries.
    """
    path = Path(path)
    if not is_file(path):
        raise UserError(
            f"{path}: no such checkpoint; a .pkl of this project, a .pth of the official code or a .safetensors was "
            "expected"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Refused(f"is larger than {MAX_BYTES >> 20} MiB")
        content = _content(path.read_bytes())
    except Refused as error:
        raise UserError(f"{path}: cannot be read as a checkpoint: it {error}") from error
    except Exception as error:  # damaged files cause errors of many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: cannot be read as a checkpoint ({reason[0]})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}; a dictionary of parameters was expected")
    return content


def read_weights(path: Path, checkpoint: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
    """The parameters in a checkpoint by their official names, without prefixes of wrappers such as ``module.``.

    Args:
        path: the file of either framework: name -> array, or such a mapping under the key 'model', 'state_dict' or
            'model_state_dict'.
        checkpoint: its content, if it has been read already.

    Raises:
        UserError: the file cannot be read, or holds no parameters.
    """
    checkpoint = read_checkpoint(path) if checkpoint is None else checkpoint
    weights = next((checkpoint[key] for key in _WEIGHTS_KEYS if key in checkpoint), checkpoint)
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"{path}: holds no parameters; 'model' should map their names to arrays")
    if other := [name for name, value in weights.items() if not isinstance(value, np.ndarray)]:
        raise UserError(f"{path}: {other[0]!r} is not an array; 'model' should map parameter names to arrays")
    named = {_WRAPPERS.sub("", str(name)): value for name, value in weights.items()}
    if len(named) != len(weights):
        raise UserError(f"{path}: holds a parameter twice, with different prefixes such as {PREFIX!r}")
    return named


def load_weights(net: jt.nn.Module, path: Path, checkpoint: Mapping[str, Any] | None = None) -> None:
    """Set every parameter of the network to its value in a checkpoint; the arguments are as in `read_weights`.

    Raises:
        UserError: the file cannot be read, or does not fit: the message names parameters that are missing,
            unexpected, of another shape or not finite. The network is then unchanged.
    """
    weights = read_weights(path, checkpoint)
    parameters = dict(net.named_parameters())
    problems = [f"{name} is missing" for name in parameters if name not in weights]
    problems += [f"{name} is not in the network" for name in weights if name not in parameters]
    for name, parameter in parameters.items():
        if name not in weights:
            continue
        value, shape = weights[name], tuple(parameter.shape)
        if value.shape != shape:
            problems.append(f"{name} is {value.shape}, expected {shape}")
        elif not np.issubdtype(value.dtype, np.floating) or not np.isfinite(value).all():
            problems.append(f"{name} is not finite")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise UserError(f"{path}: does not fit the network: {shown}")
    for name, parameter in parameters.items():
        parameter.assign(np.ascontiguousarray(weights[name], np.float32))


def weights_of_net(net: jt.nn.Module) -> dict[str, np.ndarray]:
    """The network's parameters by their official names."""
    return {name: parameter.numpy() for name, parameter in net.named_parameters()}


def _content(data: bytes) -> Any:
    """The content of a file, in the format that its first or last bytes show."""
    if data[8:9] == b"{" and not any(data[4:8]):  # a length below 4 GiB, then JSON
        return _read_safetensors(data)
    if found := next((what for start, what in _OTHER_FILES if re.match(start, data[:512], re.DOTALL)), None):
        raise Refused(found)
    if data.startswith(ZIP_MARK):
        return _read_zip(data)
    if data.startswith(LEGACY_MARK):
        return _read_legacy(data)
    if data.endswith(JITTOR_MARK):
        body, digest = data[:-28], data[-28:-8]
        if hashlib.sha1(body).digest() != digest:
            raise Refused("has a wrong checksum: it is damaged")
        data = body
    pickled = RestrictedUnpickler(data)
    content = pickled.load()
    if pickled.position != len(data):
        raise Refused("does not end like a file of jt.save; it may have been cut")
    return pickled.plain(content, _no_storage)


def _no_storage(storage: Storage) -> memoryview:
    raise Refused(f"lacks the values {storage.key!r}")


def _read_safetensors(data: bytes) -> dict[str, Any]:
    """Read safetensors: 8 bytes with the length of the header, the header in JSON, the values."""
    from safetensors import SafetensorError, deserialize

    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise Refused(f"is safetensors with a header of more than {MAX_HEADER >> 20} MiB")
    if length > len(data) - 8:
        raise Refused("ends early; it may have been cut")
    try:
        tensors = deserialize(data)
    except SafetensorError as error:
        raise Refused(f"is damaged safetensors ({error})") from error
    model = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _SAFETENSORS:
            raise Refused(f"holds values of type {tensor['dtype']!r}; numbers were expected")
        model[name] = numbers(tensor["data"], _SAFETENSORS[tensor["dtype"]]).reshape(tensor["shape"])
    return {**(json.loads(data[8 : 8 + length]).get("__metadata__") or {}), "model": model}


def _read_zip(data: bytes) -> Any:
    """Read the format of `torch.save` since PyTorch 1.6: an uncompressed zip of a pickle and the tensors' values."""
    if data.count(ZIP_ENTRY) > MAX_ENTRIES:
        raise Refused(f"is an archive of more than {MAX_ENTRIES} files")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused("is not an archive of torch.save: one data.pkl was expected")

        def read(name: str) -> bytes:
            entry = entries.get(folder + name)
            if entry is None or entry.compress_type != zipfile.ZIP_STORED:
                raise Refused(f"lacks the file {name!r}, or it is compressed")
            return archive.read(entry)

        folder = pickles[0].removesuffix("data.pkl")
        if folder + "byteorder" in entries and read("byteorder") != b"little":
            raise Refused("was written on a big-endian machine")
        pickled = RestrictedUnpickler(read("data.pkl"))
        return pickled.plain(pickled.load(), lambda storage: memoryview(read(f"data/{storage.key}")))


def _read_legacy(data: bytes) -> Any:
    """Read the format of `torch.save` before 1.6: five pickles (the fourth is the content), then the values."""
    pickled = RestrictedUnpickler(data)
    *_, content, keys = (pickled.load() for _ in range(5))
    values = {}
    for key in keys:
        if key not in pickled.storages:
            raise Refused("refers to tensor values in an unknown way")
        pickled.take(8)  # their number, which the content states too
        values[key] = pickled.take(pickled.storages[key].nbytes)
    if pickled.position != len(data):
        raise Refused("has bytes after its end: it is damaged")
    return pickled.plain(content, lambda storage: values[storage.key])
