"""Make the weights that ship from checkpoints of a training, with the text feature of the neutral sentence.

    python -m tools.release exp/.../model/ckpt_40.pkl --text_encoder mpnet/ --encoder_name NAME --commit HASH

models/<task>.pkl gets the mean of the weights of all checkpoints, and what the last one records: task, options and
steps, but not the state of the optimizer. The text encoder and the commit are added. models/<task>.npy gets the feature
of the neutral sentence, float32 (1, 149, 768). With it, fuse.py needs no text encoder for images without a text.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.provenance import Provenance
from utils.data.stored import to_stored
from utils.data.tasks import TASKS
from utils.runtime.cli import RawHelpFormatter, not_empty, path_type, run_command
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path, require_separate
from utils.text.cache import EncodedText
from utils.training.checkpoint import read_checkpoint, read_weights, save_checkpoint

KEPT = ("epoch", "step", "seconds")
PATHS = ("dataset_path", "pretrain")  # options that mean nothing on another machine


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.release", description=__doc__, formatter_class=RawHelpFormatter
    )
    add = parser.add_argument
    add(
        "checkpoints", type=path_type, nargs="+", metavar="CHECKPOINT", help="of one run of train.py, the last one last"
    )
    add("--task", choices=tuple(TASKS), default="IVF", help="the task of the weights")
    add(
        "--text_encoder",
        type=not_empty,
        metavar="ENCODER",
        required=True,
        help="the encoder of the training data, as for fuse.py",
    )
    add("--encoder_name", metavar="NAME", help="its name on the hub, to be recorded if it is loaded from a folder")
    add("--commit", default="", help="the commit of this project that trained the weights")
    add("--out", type=path_type, default=Path("models"), metavar="DIR", help="folder of the two files")
    return parser


def released(state: Mapping[str, Any], weights: Mapping[str, np.ndarray], data: Provenance, commit: str) -> dict:
    """The content of the file: the weights as float32, and what is known about their training."""
    options = {name: value for name, value in state.get("options", {}).items() if name not in PATHS}
    return {
        "model": {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()},
        "data": asdict(data),
        "options": options,
        "commit": commit,
        **{name: state[name] for name in KEPT if name in state},
    }


def mean_weights(checkpoints: Sequence[Path]) -> dict[str, np.ndarray]:
    """The mean of the weights of several checkpoints, by name.

    Raises:
        UserError: a checkpoint cannot be read, or they are of different networks.
    """
    first, *others = ({name: np.float64(array) for name, array in read_weights(path).items()} for path in checkpoints)
    for path, weights in zip(checkpoints[1:], others, strict=True):
        if {n: a.shape for n, a in weights.items()} != {n: a.shape for n, a in first.items()}:
            raise UserError(f"{path}: is of another network than {checkpoints[0]}")
    return {name: np.mean([array, *(weights[name] for weights in others)], axis=0) for name, array in first.items()}


def release(args: argparse.Namespace) -> None:
    """Write the two files.

    Raises:
        UserError: the checkpoint or the encoder cannot be read, or the checkpoint records another task or encoder.
    """
    last = args.checkpoints[-1]
    state = read_checkpoint(last)
    recorded = Provenance.read(state.get("data"))
    if recorded.task not in ("", args.task):
        raise UserError(f"{last}: was trained for {recorded.task}, not {args.task}")
    features = EncodedText(args.text_encoder)
    name, digest = features.encoder
    if recorded.other_encoder(digest):
        raise UserError(f"{last}: was trained with another text encoder, {recorded.text_encoder}")
    data = Provenance(args.task, args.encoder_name or name, digest)
    weights, feature = (args.out / f"{args.task}{suffix}" for suffix in (".pkl", ".npy"))
    sentence = TASKS[args.task].neutral
    require_separate([weights, feature], args.checkpoints)
    print(features.prepare_texts({sentence: sentence}))
    save_checkpoint(weights, released(state, mean_weights(args.checkpoints), data, args.commit))
    with atomic_path(feature) as temporary:
        np.save(temporary, to_stored(features.feature_of(sentence)))
    for path in (weights, feature):
        print(f"{path}: {path.stat().st_size} bytes, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


def main(argv: Sequence[str] | None = None) -> None:
    release(get_args_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
