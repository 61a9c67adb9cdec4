"""The state of a training, and one step of it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from net.Film import Net
from utils.data.loader import Batch
from utils.data.provenance import UNKNOWN, Provenance
from utils.runtime import processes
from utils.runtime.errors import UserError
from utils.runtime.jittor_env import jt
from utils.training.checkpoint import load_weights, weights_of_net
from utils.training.loss_log import LOSSES
from utils.training.losses import fusion_loss, lp_ssim
from utils.training.optim import Adam, StepLR
from utils.training.resume import Checkpoint, recorded_options
from utils.training.run_folder import RunFolder

Reduce = Callable[[np.ndarray], Sequence[float]]


@dataclass(eq=False)
class Trainer:
    """The network with its losses, optimizer and schedule: what a checkpoint holds and a step changes."""

    net: Net
    optimizer: Adam
    schedule: StepLR
    grad_weight: float
    ssim_weight: float
    options: Mapping[str, Any]  # of the run, as checkpoints record them
    data: Provenance = UNKNOWN
    epoch: int = 0  # epochs finished
    step: int = 0  # steps made
    seconds: float = 0.0  # of training, over all parts of a run

    def train_step(self, batch: Batch, reduce: Reduce = np.ndarray.tolist) -> tuple[dict[str, float], jt.Var]:
        """Forward, backward and update on one batch.

        Args:
            batch: the batch, or this process's part of it.
            reduce: the losses (4,) of the part, float32 -> the losses of the batch.

        Returns:
            The losses of the batch by the names of `LOSSES`, and the fused images (b, 1, H, W) before the update.

        Raises:
            FloatingPointError: a loss is not finite; the message is the value of 'loss'. The weights are unchanged.
        """
        a, b, text = jt.array(batch.image_a), jt.array(batch.image_b), jt.array(batch.text)
        fused = self.net(a, b, text)
        fusion = fusion_loss(a, b, fused, self.grad_weight)
        # At weight 0 the Lp+SSIM losses are only logged.
        seen = fused if self.ssim_weight else fused.detach()
        to_a, to_b = lp_ssim(a, seen).total, lp_ssim(b, seen).total
        loss = fusion.total + self.ssim_weight * (to_a + to_b) if self.ssim_weight else fusion.total
        values = reduce(jt.concat([loss, fusion.total, to_a, to_b]).numpy())
        if not all(map(math.isfinite, values)):
            raise FloatingPointError(values[0])
        self.optimizer.step(loss)
        jt.sync_all()
        self.step += 1
        return dict(zip(LOSSES, values, strict=True)), fused

    def state(self) -> dict[str, Any]:
        """The content of a checkpoint."""
        return {
            "model": weights_of_net(self.net),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "options": self.options,
            "data": asdict(self.data),
        }

    def load_state(self, state: Mapping[str, Any], path: Path) -> None:
        """Continue from `state`, the content of the checkpoint `path`. `options` and `data` stay the same.

        Raises:
            UserError: it holds no training state, or does not fit the network.
        """
        load_weights(self.net, path, state)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.epoch, self.step = int(state["epoch"]), int(state["step"])
            self.seconds = float(state.get("seconds", 0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: cannot be resumed ({error}); --pretrain loads only its weights") from error

    def fingerprint(self) -> list[float]:
        """Numbers that differ if the steps made or the weights differ; processes compare them at the start."""
        return [self.step, *(float(np.abs(p.numpy().astype(np.float64)).sum()) for p in self.net.parameters())]


def build_trainer(args: argparse.Namespace, checkpoint: Checkpoint | None, data: Provenance) -> Trainer:
    """Network, optimizer and schedule for the options, or as they were at `checkpoint`; `data` is recorded.

    Raises:
        UserError: the options fit no network, or a checkpoint does not fit it.
    """
    jt.set_global_seed(abs(args.seed), different_seed_for_mpi=False)
    try:
        net = Net(hidden_dim=args.hidden_dim, image2text_dim=args.i2t_dim)
    except ValueError as error:
        raise UserError(f"--i2t_dim {args.i2t_dim}, --hidden_dim {args.hidden_dim}: {error}") from error
    if args.pretrain and not checkpoint:
        load_weights(net, args.pretrain)
    optimizer = Adam(dict(net.named_parameters()), args.lr)
    schedule = StepLR(optimizer, args.step_size, args.gamma)
    options = recorded_options(vars(args))
    trainer = Trainer(net, optimizer, schedule, args.loss_grad_weight, args.loss_ssim, options, data)
    if checkpoint:
        trainer.load_state(checkpoint.state, checkpoint.path)
    return trainer


def step_or_save(
    trainer: Trainer, batch: Batch, reduce: Reduce, run: RunFolder, keep: int | None
) -> tuple[dict[str, float], jt.Var]:
    """Run `Trainer.train_step`; if a loss is not finite, save the state before the step as a checkpoint of `run`.

    Raises:
        UserError: a loss is not finite; the message names the pairs and the checkpoint.
    """
    try:
        return trainer.train_step(batch, reduce)
    except FloatingPointError as error:
        others = " or pairs of other processes" if processes.count() > 1 else ""
        reason = f"{', '.join(batch.names)}{others}: the loss is {error}; the run ends before this step"
        state = trainer.state()
        if not all(np.isfinite(value).all() for value in state["model"].values()):
            raise UserError(f"{reason}; the weights are not finite either; resume from an older checkpoint") from error
        path = run.save(state, whole_epoch=False, keep=keep)
        raise UserError(f"{reason}; the state before it: {path}") from error
