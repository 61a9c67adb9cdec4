"""A training step on a network of one weight, and a state that comes back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from utils.data.loader import Batch
from utils.runtime.errors import UserError
from utils.runtime.jittor_env import jt
from utils.training.optim import Adam, StepLR
from utils.training.trainer import Trainer, step_or_save


class Scaled(jt.nn.Module):
    """The fused image is A times the weight."""

    def __init__(self) -> None:
        self.weight = jt.zeros((1,))

    def execute(self, image_a, image_b, text):
        return image_a * self.weight


def trainer(ssim_weight: float = 0) -> Trainer:
    """Without the gradient term the fusion loss is mean |max(A, B) - F|."""
    net = Scaled()
    optimizer = Adam(dict(net.named_parameters()), lr=0.01)
    return Trainer(net, optimizer, StepLR(optimizer, 1, 0.5), 0, ssim_weight, {"seed": 3})


def batch(value: float = 0.5) -> Batch:
    """A is `value` everywhere, B is half of it; 4x6."""
    a = np.full((1, 1, 4, 6), value, np.float32)
    return Batch(("x",), a, a / 2, np.zeros((1, 1, 768), np.float32))


def test_a_step_lowers_the_loss_by_its_rule():
    ours = trainer()
    losses, fused = ours.train_step(batch())
    assert list(losses) == ["loss", "loss_in_grad", "lplssim_a", "lplssim_b"]
    assert losses["loss"] == losses["loss_in_grad"] == 0.5  # |0.5 - 0|
    assert (fused.numpy() == 0).all()
    # Adam's first step is lr, whatever the size of the gradient.
    assert ours.net.weight.item() == pytest.approx(0.01, rel=1e-5)
    assert ours.step == 1


def test_weighted_lp_ssim_is_part_of_the_loss():
    losses, _ = trainer(ssim_weight=2).train_step(batch())
    assert losses["loss"] == pytest.approx(0.5 + 2 * (losses["lplssim_a"] + losses["lplssim_b"]))


def test_the_losses_are_those_that_the_caller_reduces():
    losses, _ = trainer().train_step(batch(), reduce=lambda values: [2 * values[0], 0, 0, 0])
    assert list(losses.values()) == [1, 0, 0, 0]


@pytest.mark.parametrize("reduce", [np.ndarray.tolist, lambda values: [1, 1, 1, math.nan]])
def test_no_update_by_a_loss_that_is_not_finite(reduce):
    ours = trainer()
    value = 0.5 if reduce is not np.ndarray.tolist else math.inf
    with pytest.raises(FloatingPointError):
        ours.train_step(batch(value), reduce)
    assert ours.net.weight.item() == 0
    assert ours.step == 0


class Run:
    """Takes the checkpoint in place of a run's folder."""

    def save(self, state, whole_epoch, keep):
        self.saved = state, whole_epoch, keep
        return Path("model/ckpt.pkl")


def test_the_state_before_a_failed_step_is_saved():
    ours, run = trainer(), Run()
    with pytest.raises(UserError, match=r"^x: the loss is nan; the run ends before this step; .*: model/ckpt\.pkl$"):
        step_or_save(ours, batch(math.nan), np.ndarray.tolist, run, keep=2)
    state, whole_epoch, keep = run.saved
    assert (state["model"]["weight"], state["step"], whole_epoch, keep) == (0, 0, False, 2)
    ours.net.weight.assign(np.array([math.nan], np.float32))
    with pytest.raises(UserError, match="the weights are not finite either"):
        step_or_save(ours, batch(), np.ndarray.tolist, run, keep=2)


def test_a_state_comes_back():
    ours, other = trainer(), trainer()
    ours.train_step(batch())
    ours.schedule.step()
    ours.epoch = 1
    other.load_state(ours.state(), Path("x.pkl"))
    for one in (ours, other):
        one.train_step(batch())
    assert other.net.weight.item() == ours.net.weight.item()
    assert other.optimizer.lr == 0.005
    assert (other.epoch, other.step) == (1, 2)
    assert ours.state()["options"] == {"seed": 3}
    with pytest.raises(UserError, match=r"^x\.pkl: cannot be resumed .*--pretrain loads only its weights"):
        other.load_state({"model": ours.state()["model"]}, Path("x.pkl"))
