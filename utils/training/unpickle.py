"""A restricted unpickler: reads pickles as plain data, and neither calls nor imports anything.

Python's unpickler runs what the file asks for, and a list of forbidden names is never complete. This one knows only the
opcodes that plain data needs, and only the names in `_NAMES`. Each of them stands for a function of this module. The
size of a value is checked before its bytes are copied, and no file may exceed `MAX_BYTES`, `MAX_STEPS` or `MAX_DEPTH`:
a checkpoint of FILM takes a twentieth of each.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

MAX_BYTES = 512 << 20  # of a file, and of all arrays and texts in it
MAX_STEPS = 300_000  # opcodes, and values in the result
MAX_DEPTH = 50  # containers within containers
MAX_NAME = 200

_NUMBERS = {pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BININT: "<i", pickle.BINFLOAT: ">d"}
_TEXTS = {pickle.SHORT_BINUNICODE: "<B", pickle.BINUNICODE: "<I", pickle.BINUNICODE8: "<Q"}
_BYTES = {pickle.SHORT_BINBYTES: "<B", pickle.BINBYTES: "<I", pickle.BINBYTES8: "<Q", pickle.BYTEARRAY8: "<Q"}
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_EMPTY = {pickle.EMPTY_LIST: list, pickle.EMPTY_TUPLE: tuple, pickle.EMPTY_DICT: dict}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_PUTS = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
_GETS = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_SKIPPED = {pickle.PROTO: 1, pickle.FRAME: 8}  # opcode: bytes after it

_STORAGES = {
    "Double": "f8",
    "Float": "f4",
    "Half": "f2",
    "BFloat16": "bfloat16",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "b1",
}


class Refused(ValueError):
    """The file is damaged, or holds what no checkpoint needs. The message continues the sentence 'the file ...'."""


@dataclass
class _Array:
    """A NumPy array or scalar; in a pickle, an array's values follow the empty object."""

    value: np.ndarray | None = None


@dataclass
class _Dtype:
    """A numeric NumPy dtype."""

    spec: str
    order: str = "<"

    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.spec)


@dataclass(frozen=True)
class _Name:
    """A name that the file asks for, and its replacement: a function of this module that takes the same arguments."""

    text: str
    build: Callable[..., Any]


@dataclass(frozen=True)
class Storage:
    """The values of PyTorch's tensors, stored elsewhere in the file. NumPy lacks the dtype 'bfloat16'."""

    key: str
    dtype: str
    numel: int

    @property
    def nbytes(self) -> int:
        """The bytes that the values take in the file."""
        return self.numel * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class RestrictedUnpickler:
    """Reads one pickle after another from `data`.

    `position` is where the next one begins; `storages` holds the storages that the pickles named, by key. `plain` turns
    what `load` returns into NumPy arrays, numbers, strings, lists, tuples and dictionaries.
    """

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.position = 0
        self.storages: dict[str, Storage] = {}
        self._bytes_left = MAX_BYTES
        self._steps_left = MAX_STEPS

    def load(self) -> Any:
        """Read one pickle.

        Raises:
            Refused: it asks for something that no checkpoint needs, is too large, or ends early.
        """
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        try:
            while (code := bytes(self.take(1))) != pickle.STOP:
                self._count_step()
                self._step(code)
            return self._stack.pop()
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise Refused("is not a readable pickle") from error

    def take(self, count: int) -> memoryview:
        """The next bytes.

        Raises:
            Refused: fewer bytes are left.
        """
        if count > len(self.data) - self.position:
            raise Refused("ends early; it may have been cut")
        self.position += count
        return self.data[self.position - count : self.position]

    def plain(self, value: Any, read: Callable[[Storage], memoryview], depth: int = 0) -> Any:
        """The result of `load` as plain data; `read` returns the bytes of a storage.

        Raises:
            Refused: something in it is not plain data, or is nested too deeply.
        """
        self._count_step()
        if depth > MAX_DEPTH:
            raise Refused(f"holds more than {MAX_DEPTH} containers within each other")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, _Array) and value.value is not None:
            return value.value if value.value.ndim else value.value.item()
        if isinstance(value, _Tensor):
            return self._tensor(value, read)
        if isinstance(value, list | tuple):
            return type(value)([self.plain(item, read, depth + 1) for item in value])
        if isinstance(value, dict):
            return {key: self.plain(item, read, depth + 1) for key, item in value.items()}
        name = value.text if isinstance(value, _Name) else _kind(value)
        raise Refused(f"holds {name}; tensors, arrays, numbers, strings, lists and dictionaries were expected")

    def spend(self, count: int) -> None:
        """Count bytes that are about to be copied.

        Raises:
            Refused: the total exceeds `MAX_BYTES`.
        """
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise Refused(f"claims more than {MAX_BYTES >> 20} MiB")

    def _count_step(self) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise Refused(f"takes more than {MAX_STEPS} steps to read")

    def _step(self, code: bytes) -> None:
        push, pop = self._stack.append, self._stack.pop
        if code in _NUMBERS:
            push(self._number(_NUMBERS[code]))
        elif code in _TEXTS:
            push(self._text(self._number(_TEXTS[code])))
        elif code in _BYTES:
            push(self.take(self._number(_BYTES[code])))
        elif code in _CONSTANTS:
            push(_CONSTANTS[code])
        elif code in _EMPTY:
            push(_EMPTY[code]())
        elif code in _TUPLES:
            push(tuple(reversed([pop() for _ in range(_TUPLES[code])])))
        elif code in _PUTS:
            self._memo[self._number(_PUTS[code])] = self._stack[-1]
        elif code in _GETS:
            push(self._memo[self._number(_GETS[code])])
        elif code in _SKIPPED:
            self.take(_SKIPPED[code])
        elif code == pickle.MEMOIZE:
            self._memo[len(self._memo)] = self._stack[-1]
        elif code == pickle.LONG1:
            push(int.from_bytes(self.take(self._number("<B")), "little", signed=True))
        elif code == pickle.MARK:
            self._marks.append(self._stack)
            self._stack = []
        elif code == pickle.TUPLE:
            items = self._since_mark()
            self._stack.append(tuple(items))
        elif code == pickle.APPEND:
            self._extend([pop()])
        elif code == pickle.APPENDS:
            self._extend(self._since_mark())
        elif code == pickle.SETITEM:
            self._update([pop(-2), pop()])
        elif code == pickle.SETITEMS:
            self._update(self._since_mark())
        elif code == pickle.GLOBAL:
            push(_name(self._line(), self._line()))
        elif code == pickle.STACK_GLOBAL:
            name, module = pop(), pop()
            push(_name(module, name))
        elif code == pickle.REDUCE:
            arguments, called = pop(), pop()
            push(self._called(called, arguments))
        elif code == pickle.BUILD:
            self._set_state(pop())
        elif code == pickle.BINPERSID:
            storage = _storage(pop())
            self.storages[storage.key] = storage
            push(storage)
        else:
            raise Refused(f"uses the pickle instruction {self._described(code)}, which a checkpoint does not need")

    def _described(self, code: bytes) -> str:
        known = pickletools.code2op.get(code.decode("latin1"))
        if known is None:
            return code.hex()
        return f"{known.name} for {self._line()}.{self._line()}" if code == pickle.INST else known.name

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def _text(self, count: int) -> str:
        text = self.take(count)
        self.spend(4 * count)  # one character above U+FFFF makes all of them 4 bytes wide
        return str(text, "utf-8", "surrogatepass")

    def _line(self) -> str:
        found = bytes(self.data[self.position : self.position + MAX_NAME]).find(b"\n")
        line = self.take(found + 1 if found >= 0 else MAX_NAME)
        return str(line[:-1], "utf-8", "replace")

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise Refused("is not a readable pickle")
        target.extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise Refused("is not a readable pickle")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys can nest without end, or all have the same hash.
            if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 1 << 31):
                raise Refused(f"has {_kind(key)} as a dictionary key; strings or integers were expected")
            target[key] = value

    def _called(self, called: Any, arguments: Any) -> Any:
        if not isinstance(called, _Name) or type(arguments) is not tuple:
            raise Refused("calls something that is not a function")
        return called.build(self, *arguments)

    def _set_state(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, _Dtype):
            version, order, *rest = state
            if version != 3 or order not in ("<", ">", "|", "=") or rest != [None, None, None, -1, -1, 0]:
                raise Refused("holds a dtype that is not a number type")
            target.order = order
        elif isinstance(target, _Array):
            version, shape, dtype, fortran, values = state
            target.value = self._array(values, dtype, shape, "F" if fortran else "C")
        elif type(target) is not dict:  # of OrderedDict: attributes such as PyTorch's _metadata, which nothing reads
            raise Refused(f"sets the state of {_kind(target)}")

    def _array(self, values: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
        if not isinstance(values, memoryview | bytes) or not isinstance(dtype, _Dtype) or not _are_counts(shape):
            raise Refused("holds an array whose values are not numbers")
        kind = dtype.numpy()
        if prod(shape) * kind.itemsize != len(values):
            raise Refused(f"holds {len(values)} bytes for an array of shape {_shown(shape)} and type {kind}")
        self.spend(len(values))
        return np.frombuffer(values, kind).reshape(shape, order=order).astype(kind.newbyteorder("="))

    def _tensor(self, tensor: _Tensor, read: Callable[[Storage], memoryview]) -> np.ndarray:
        storage, size = tensor.storage, tensor.size
        last = tensor.offset + sum((length - 1) * step for length, step in zip(size, tensor.stride, strict=True))
        if prod(size) > storage.numel or (prod(size) and last >= storage.numel):
            raise Refused(f"has a tensor of shape {_shown(size)} for {storage.numel} values")
        self.spend(storage.nbytes)
        raw = read(storage)
        if len(raw) != storage.nbytes:
            raise Refused(f"claims {storage.nbytes} bytes for the values {storage.key!r}, which are {len(raw)}")
        flat = numbers(raw, storage.dtype)
        if not prod(size):
            return np.empty(size, flat.dtype)
        strides = [step * flat.itemsize for step in tensor.stride]
        return np.lib.stride_tricks.as_strided(flat[tensor.offset :], size, strides).copy()

    # Replacements of the names that a file may ask for. The arguments come from the file and may be anything.

    def _new_dtype(self, spec: Any, *_: Any) -> _Dtype:
        if not isinstance(spec, str) or not re.fullmatch("b1|[iu][1248]|f[248]", spec):
            raise Refused(f"holds values of type {str(spec)[:MAX_NAME]!r}; numbers were expected")
        return _Dtype(spec)

    def _new_scalar(self, dtype: Any, value: Any) -> _Array:
        return _Array(self._array(value, dtype, (), "C"))

    def _from_buffer(self, values: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
        """An array as protocol 5 stores it; with the order 'K', the axes of `shape` are transposed to `axes`."""
        if order not in ("C", "F", "K") or (order == "K" and not _are_axes(axes, shape)):
            raise Refused("holds an array in an unknown order")
        array = self._array(values, dtype, shape, "C" if order == "K" else order)
        return _Array(array.transpose(axes) if order == "K" else array)

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        """Bytes, as PyTorch's pickles store them."""
        if not isinstance(text, str) or encoding != "latin1":
            raise Refused("asks for _codecs.encode of something other than bytes")
        self.spend(len(text))
        return text.encode("latin1")

    def _new_tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
        valid = isinstance(storage, Storage) and all(map(_are_counts, ((offset,), size, stride)))
        if not valid or len(stride) != len(size):
            raise Refused("has an invalid tensor")
        return _Tensor(storage, offset, size, stride)

    def _not_called(self, *_: Any) -> Any:
        raise Refused("calls a type")


def _first(_: RestrictedUnpickler, value: Any, *rest: Any) -> Any:
    """A parameter becomes its tensor, a Var its array, a size its numbers."""
    return value


_NAMES: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": RestrictedUnpickler._new_scalar,
    "numpy.core.numeric._frombuffer": RestrictedUnpickler._from_buffer,
    "numpy.ndarray": RestrictedUnpickler._not_called,
    "numpy.dtype": RestrictedUnpickler._new_dtype,
    "jittor.jittor_core.Var": _first,
    "jittor_core.Var": _first,
    "collections.OrderedDict": lambda _: {},
    "_codecs.encode": RestrictedUnpickler._encoded,
    "__builtin__.bytes": lambda _: b"",
    "torch._utils._rebuild_tensor_v2": RestrictedUnpickler._new_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.Size": _first,
    **{f"torch.{name}Storage": RestrictedUnpickler._not_called for name in _STORAGES},
}


def _name(module: Any, name: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise Refused("is not a readable pickle")
    # NumPy 2 renamed its core; both names occur in files.
    text = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
    if text not in _NAMES:
        raise Refused(f"asks for {text[:MAX_NAME]!r}, which a checkpoint does not need")
    return _Name(text, _NAMES[text])


def _storage(identity: Any) -> Storage:
    """The storage that PyTorch describes as 'storage', type, key, device, number of values; old files add a None.

    The key is a number where `jt.save` wrote a `.pth`.
    """
    kind, storage_type, key, _, numel, *view = identity
    dtype = _STORAGES.get(storage_type.text.removeprefix("torch.").removesuffix("Storage"))
    if kind != "storage" or dtype is None or type(key) not in (str, int) or not _are_counts((numel,)) or any(view):
        raise Refused("describes the values of a tensor in an unknown way")
    return Storage(str(key), dtype, numel)


def numbers(raw: bytes | memoryview, dtype: str) -> np.ndarray:
    """The numbers (n,) that these bytes hold, little-endian; 'bfloat16', which NumPy lacks, becomes float32."""
    if dtype == "bfloat16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, dtype)


def _kind(item: Any) -> str:
    name = "bytes" if isinstance(item, memoryview | bytes) else type(item).__name__.strip("_").lower()
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _are_counts(numbers: Any) -> bool:
    """Whether this is a tuple of non-negative integers, at most 32 of them."""
    return type(numbers) is tuple and len(numbers) <= 32 and all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)


def _are_axes(axes: Any, shape: Any) -> bool:
    """Whether this is a tuple of the numbers of the axes of `shape`, each once."""
    return _are_counts(axes) and _are_counts(shape) and sorted(axes) == list(range(len(shape)))


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"
