"""Export trained weights for other programs: the official PyTorch code, safetensors, ONNX.

    python -m tools.export exp/.../model/ckpt_150.pkl --to onnx -o film.onnx

The input may be a checkpoint of either framework or a safetensors file. docs/training.md describes the results.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from net.shapes import TEXT_SHAPE
from utils.runtime.cli import path_type, run_command
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path, require_separate
from utils.training.checkpoint import PREFIX, read_checkpoint, read_weights

if TYPE_CHECKING:
    from tools.torch_film import TwinNet

OPSET = 18
ONNX_INPUTS, ONNX_OUTPUT = ("image_a", "image_b", "text"), "fused"
# Parameters whose first axis is an option of the network: hidden_dim and image2text_dim.
WIDTHS = ("text_process.conv.weight", "restormerca1.imagef2textfA1.conv.weight")

Weights = Mapping[str, np.ndarray]
About = Mapping[str, str | int | float]


def float_weights(path: Path, checkpoint: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters of a checkpoint as float32.

    Raises:
        UserError: it holds none, or one that is not finite.
    """
    weights = read_weights(path, checkpoint)
    for name, value in weights.items():
        if not np.issubdtype(value.dtype, np.floating) or not np.isfinite(value).all():
            raise UserError(f"{path}: {name} is not finite")
    return {name: np.asarray(value, np.float32, order="C") for name, value in weights.items()}


def torch_network(weights: Weights) -> TwinNet:
    """The network in PyTorch.

    Raises:
        UserError: the weights are those of another network.
    """
    import torch

    from tools.torch_film import TwinNet

    try:
        # On this device parameters take no memory, until the weights take their place.
        with torch.device("meta"):
            net = TwinNet(*(len(weights[name]) for name in WIDTHS))
        net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, assign=True)
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"does not fit the network: {' '.join(str(error).split())[:300]}") from error
    return net.eval().requires_grad_(False)


def write_pth(weights: Weights, about: About, path: Path) -> None:
    """Write a file that the official code loads: ``{'model': names with module. -> tensors}`` and `about`."""
    import torch

    state = torch_network(weights).state_dict(prefix=PREFIX)
    torch.save({**about, "model": state}, path)


def write_safetensors(weights: Weights, about: About, path: Path) -> None:
    """Write the weights by their official names, without ``module.``, and `about` as metadata."""
    from safetensors.numpy import save

    path.write_bytes(save(dict(weights), {name: str(value) for name, value in about.items()}))


def write_onnx(weights: Weights, about: About, path: Path) -> None:
    """Write the network for any image size and batch 1: `ONNX_INPUTS` -> `ONNX_OUTPUT`, with `about` as metadata."""
    import torch

    network = torch_network(weights)
    try:
        import onnx  # noqa: F401 (PyTorch's exporter needs both)
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name}: not installed; ONNX export needs it: pip install onnx onnxscript") from error

    # Two tensors: one tensor given twice would become one input.
    images = (torch.zeros(1, 1, 40, 56), torch.zeros(1, 1, 40, 56))
    names = {2: "height", 3: "width"}
    size = {axis: torch.export.Dim(name) for axis, name in names.items()}
    with _without_notes():
        traced = torch.export.export(
            network,
            (*images, torch.zeros(1, *TEXT_SHAPE)),
            dynamic_shapes=(size, size, None),
            strict=False,  # several times as fast
        )
        program = torch.onnx.export(
            traced,
            input_names=ONNX_INPUTS,
            output_names=(ONNX_OUTPUT,),
            opset_version=OPSET,
            dynamic_shapes=(names, names, None),
            custom_translation_table={torch.ops.aten.upsample_nearest2d.vec: _nearest_resize},
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update({name: str(value) for name, value in about.items()})
    program.save(path, external_data=False)


def _nearest_resize(x: Any, size: Sequence[Any], _: object) -> Any:
    """ONNX nodes for torch's interpolate(mode='nearest'): x (b, c, h, w) -> (b, c, *size).

    The source index is floor(dst * (in / out)) in float32. ONNX's Resize computes floor(dst / (out / in)), which is
    another pixel at one size in twelve (from 288 to 80 rows, for instance).
    """
    from onnx import TensorProto
    from onnxscript import opset18 as op

    for axis, out in zip((2, 3), size, strict=True):
        length = op.Shape(x, start=axis, end=axis + 1)  # (1,)
        ratio = op.Div(op.Cast(length, to=TensorProto.FLOAT), op.Cast(out, to=TensorProto.FLOAT))
        positions = op.Cast(op.Range(0, out, 1), to=TensorProto.FLOAT)
        indices = op.Cast(op.Floor(op.Mul(positions, ratio)), to=TensorProto.INT64)
        x = op.Gather(x, op.Min(indices, op.Sub(length, 1)), axis=axis)
    return x


@contextmanager
def _without_notes() -> Iterator[None]:
    """Silence the notes of PyTorch's exporter, which are about its own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMATS = {"pth": write_pth, "safetensors": write_safetensors, "onnx": write_onnx}


def export(source: Path, kind: str, output: Path | None) -> Path:
    """Write the weights of the checkpoint `source` as a file of this kind, complete or not at all.

    Args:
        kind: a key of `FORMATS`.
        output: the file to write, replaced if it exists; None for one next to `source`, which must not exist yet.

    Returns:
        The file.

    Raises:
        UserError: the weights cannot be read, are those of another network, or the file cannot be written.
    """
    path = output or source.parent / f"{source.stem}.{kind}"
    if path.exists() and (output is None or (source.exists() and path.samefile(source))):
        raise UserError(f"{path}: exists already; name another file with -o")
    require_separate([path], [source])
    checkpoint = read_checkpoint(source)
    about = {"network": "FILM"} | {k: v for k, v in checkpoint.items() if isinstance(v, str | int | float)}
    weights = float_weights(source, checkpoint)
    with atomic_path(path) as temporary:
        try:
            FORMATS[kind](weights, about, temporary)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
    return path


def get_args_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Export trained weights for other programs.")
    add = parser.add_argument
    add("weights", type=path_type, help="a .pkl of train.py, an official .pth or a .safetensors file")
    kinds = "pth: for the official PyTorch code; safetensors; onnx: the complete network, for any image size"
    add("--to", choices=tuple(FORMATS), required=True, help=kinds)
    add("-o", "--output", type=path_type, metavar="FILE", help="the file to write (default: next to the weights)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    path = export(args.weights, args.to, args.output)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(run_command(main))
