"""Checkpoints: written as Jittor writes them, read from Jittor and from PyTorch, by name."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import UserError
from utils.files import atomic_path

if TYPE_CHECKING:
    from utils.jittor_env import jt

# `jt.save` ends a file with the SHA-1 of the pickle and this mark.
JITTOR_MARK = b"HCAJSLHD"
# Official files carry the prefix of DataParallel.
PREFIX = "module."
TORCH_SUFFIXES = (".pth", ".pt")


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` with `jt.save`; the file is whole or not there.

    Raises:
        UserError: it cannot be written.
    """
    from utils.jittor_env import jt

    with atomic_path(path) as temporary:
        jt.save(dict(state), str(temporary))


def export_torch(weights: Mapping[str, np.ndarray], path: Path) -> None:
    """Write the weights as a `.pth` that the official network loads with ``load_state_dict(strict=True)``.

    The file holds ``{'model': name -> tensor}``, the names without the ``module.`` of DataParallel.
    """
    import torch

    with atomic_path(path) as temporary:
        torch.save({"model": {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}}, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a `.pkl` that `jt.save` wrote or a `.pth` of PyTorch; tensors become NumPy arrays. Nothing is executed.

    Raises:
        UserError: the file is missing, damaged, or holds something other than tensors, numbers, strings, lists and
            dictionaries.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint; a .pkl of this project or a .pth of the official code was expected"
        )
    try:
        content = _read_torch(path) if path.suffix in TORCH_SUFFIXES else _read_jittor(path.read_bytes())
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: not a checkpoint that can be read ({reason[0]})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; a dictionary of parameters was expected")
    return content


def weights_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    """The parameters of a checkpoint by their official names, with or without ``module.`` and with or without 'model'.

    Raises:
        UserError: there are none.
    """
    weights = checkpoint.get("model", checkpoint)
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"{path}: no parameters in it; 'model' should map their names to arrays")
    if other := [name for name, value in weights.items() if not isinstance(value, np.ndarray)]:
        raise UserError(f"{path}: {other[0]!r} is no array; 'model' should map parameter names to arrays")
    return {str(name).removeprefix(PREFIX): value for name, value in weights.items()}


def load_weights(net: jt.nn.Module, weights: Mapping[str, np.ndarray], path: Path) -> None:
    """Give every parameter of the network its value.

    Raises:
        UserError: names what is missing, not expected, of another shape or not finite; the network is then untouched.
    """
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


def _read_torch(path: Path) -> Any:
    """A `.pth`, with torch's own safe loader."""
    import torch

    def to_numpy(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().cpu().numpy()
        if isinstance(value, dict):
            return {key: to_numpy(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [to_numpy(item) for item in value]
        return value

    return to_numpy(torch.load(path, map_location="cpu", weights_only=True))


def _read_jittor(data: bytes) -> Any:
    """What `jt.save` wrote."""
    body, digest, mark = data[:-28], data[-28:-8], data[-8:]
    if mark != JITTOR_MARK:
        raise ValueError("it does not end as a file of jt.save does; it may have been cut")
    if hashlib.sha1(body).digest() != digest:
        raise ValueError("its checksum is wrong: the file is damaged")
    return _ArrayUnpickler(io.BytesIO(body)).load()


def _array_of(value: np.ndarray, *_: object) -> np.ndarray:
    """Stands for `jittor.Var`, which pickles as a call on an array."""
    return np.asarray(value)


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,
    ("numpy.core.multiarray", "scalar"): np.core.multiarray.scalar,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("jittor", "jittor_core.Var"): _array_of,
    ("jittor_core", "Var"): _array_of,
    ("collections", "OrderedDict"): OrderedDict,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays, numbers, strings and their containers, and refuses everything else by name."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 renamed its core; both names are found in files.
        allowed = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is not None:
            return allowed
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a checkpoint has no need of")
