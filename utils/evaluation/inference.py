"""Fusing with trained weights: shared by test.py and fuse.py. Jittor is imported at the first call, not on import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.data.images import stretch_to_uint8
from utils.data.pairs import Pair
from utils.runtime.errors import UserError
from utils.runtime.files import is_file

if TYPE_CHECKING:
    from net.Film import Net


SHIPPED = Path(__file__).resolve().parents[2] / "models"


@dataclass(frozen=True)
class Job:
    """A pair and its output files."""

    pair: Pair
    gray: Path
    rgb: Path

    @property
    def paths(self) -> tuple[Path, Path]:
        """The files that are read."""
        return self.pair.image_a, self.pair.image_b


def checkpoint_path(given: Path | None, task: str) -> Path:
    """The weights to use: those given, else models/<task>.pkl or .pth of this folder, else those that ship.

    Raises:
        UserError: there is no such file.
    """
    names = (f"{task}.pkl", f"{task}.pth")
    candidates = [given] if given else [folder / name for folder in (Path("models"), SHIPPED) for name in names]
    if found := [path for path in candidates if is_file(path)]:
        return found[0]
    or_pth = "" if given else f", nor {names[1]} there"
    problem = f"no such checkpoint{or_pth}; name one with --ckpt_path (train.py writes .pkl files)"
    raise UserError(f"{candidates[0]}: {problem}")


def load_net(path: Path, checkpoint: Mapping[str, Any] | None = None) -> Net:
    """The network with the weights of a checkpoint of either framework, ready to fuse.

    Args:
        path: the file.
        checkpoint: its content, if it has been read already.

    Raises:
        UserError: the checkpoint cannot be read, or does not fit.
    """
    from net.Film import Net
    from utils.training.checkpoint import load_weights

    net = Net()
    load_weights(net, path, checkpoint)
    net.eval()
    return net


def fuse(net: Net, image_a: np.ndarray, image_b: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Fuse one pair; the result is stretched so that its minimum is 0 and its maximum 255.

    Args and errors as `fuse_unstretched`.

    Returns:
        uint8 (H, W).
    """
    return stretch_to_uint8(fuse_unstretched(net, image_a, image_b, text))


def fuse_unstretched(net: Net, image_a: np.ndarray, image_b: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Fuse one pair.

    Args:
        image_a, image_b: float32 (1, 1, H, W) in 0..1.
        text: float32 (1, L, 768).

    Returns:
        float32 (H, W) in 0..1, as the network computes it.

    Raises:
        UserError: the result is not finite.
    """
    from utils.runtime.jittor_env import jt

    with jt.no_grad():
        fused = net(*map(jt.array, (image_a, image_b, text))).numpy()[0, 0]
    if not np.isfinite(fused).all():
        raise UserError("the fused image is not finite: the weights or the text feature are unusable")
    return fused
