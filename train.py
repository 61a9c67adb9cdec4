"""Train FILM on an H5 file that data_process.py wrote.

    python train.py --dataset_path VLFDataset_h5/MSRS_train.h5

Everything a run leaves lies under exp/: checkpoints, log, loss curve, pictures, TensorBoard events and its code.
"""

from __future__ import annotations

import argparse
import itertools
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from utils.data.h5 import H5Dataset
from utils.data.loader import Augmentation, Batch, Loader
from utils.runtime import collective, processes
from utils.runtime.cli import (
    HelpFormatter,
    add_device_options,
    not_negative,
    positive,
    positive_int,
    run_command,
    stage,
    weight_at,
)
from utils.runtime.errors import Stopped, UserError
from utils.training.loss_log import LogLine, eta_text

if TYPE_CHECKING:
    from net.Film import Net
    from utils.runtime.jittor_env import jt
    from utils.training.optim import Adam, StepLR
    from utils.training.run_folder import Checkpoint, RunFolder

ROOT = Path(__file__).resolve().parent
CODE_OF_A_RUN = (ROOT / "train.py", ROOT / "net", ROOT / "utils")
BATCHES_WITH_PICTURES = 2
# mpirun passes SIGUSR1 on to its processes, and gives them all the time they need.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train FILM. The defaults are those of the official code.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--dataset_path", type=Path, default=Path("VLFDataset_h5/MSRS_train.h5"), help="H5 file of data_process.py")
    add("--numepochs", type=positive_int, default=150, help="epochs to train")
    add(
        "--batch_size",
        type=positive_int,
        default=2,
        help="pairs a step, in each process; an incomplete batch is dropped",
    )
    add("--lr", type=positive, default=1e-5, help="learning rate of Adam")
    add(
        "--step_size",
        type=positive_int,
        default=50,
        help="epochs after which the learning rate is multiplied by gamma",
    )
    add("--gamma", type=positive, default=0.6, help="factor of the learning-rate schedule")
    add("--loss_grad_weight", type=not_negative, default=20, help="weight of the gradient part of the fusion loss")
    add(
        "--grad_stages",
        type=stage,
        nargs="+",
        default=[],
        metavar="EPOCH:WEIGHT",
        help="change that weight in stages: 1:1 7:5 15:20 is 1 in the first six epochs, then 5, from epoch 15 on 20",
    )
    add("--loss_ssim", type=not_negative, default=0, help="weight of the Lp+SSIM losses; they are logged at 0 too")
    add("--i2t_dim", type=positive_int, default=32, help="channels of the image features that text attends to")
    add("--hidden_dim", type=positive_int, default=256, help="width of text tokens inside the network")
    add("--pretrain", type=Path, metavar="FILE", help="start from these weights (.pkl, or .pth of the official code)")
    add(
        "--resume",
        metavar="auto|FILE",
        help="go on from this checkpoint, in the run's folder where it lies in one (else in a new one), with the run's "
        "options; one given here that would change the losses is an error. auto: the newest whole checkpoint of the "
        "newest run under --exp_root that has the options given here; where there is none a new run starts",
    )
    add(
        "--save_every",
        type=positive_int,
        metavar="N",
        help="write a checkpoint every N steps, too, not only each epoch",
    )
    add("--keep", type=positive_int, metavar="N", help="keep only the N newest checkpoints of the run (default: all)")
    add("--seed", type=int, default=0, help="seed of the initial weights and of the order of the pairs")
    add("--no_shuffle", action="store_true", help="take the pairs in the order of the file")
    add(
        "--crop",
        type=positive_int,
        nargs=2,
        default=[],
        metavar=("H", "W"),
        help="train on parts of this size, at random places",
    )
    add("--flip", action="store_true", help="mirror every second pair, at random, left to right")
    add("--skip_bad", action="store_true", help="read all pairs first, and train without the bad ones, which are named")
    add("--max_steps", type=positive_int, metavar="N", help="end the run after N steps in all")
    add_device_options(parser)
    add("--exp_root", type=Path, default=Path("exp"), help="folder of the runs")
    parser.set_defaults(processes=processes.count())
    return parser


class Trainer:
    """The network with its optimizer and schedule: what a checkpoint holds and a step changes."""

    def __init__(self, net: Net, optimizer: Adam, schedule: StepLR, grad_weight: float, ssim_weight: float) -> None:
        self.net = net
        self.optimizer = optimizer
        self.schedule = schedule
        self.grad_weight = grad_weight
        self.ssim_weight = ssim_weight
        self.epoch = 0  # epochs finished
        self.step = 0  # steps made
        self.seconds = 0.0  # of training, over all parts of a run

    def train_step(self, batch: Batch, stop: _StopRequest) -> tuple[dict[str, float], jt.Var]:
        """Forward, backward and update on one batch, or this process's part of one; tell all of a request to stop.

        Returns:
            The losses of the whole batch by their names in the log, and this process's fused images (b, 1, H, W) before
            the update.

        Raises:
            UserError: the loss is not finite; the weights are then those before the step.
        """
        from utils.runtime.jittor_env import jt
        from utils.training.losses import fusion_loss, lp_ssim

        a, b, text = jt.array(batch.image_a), jt.array(batch.image_b), jt.array(batch.text)
        fused = self.net(a, b, text)
        fusion = fusion_loss(a, b, fused, self.grad_weight)
        # At weight 0 the Lp+SSIM terms are only looked at.
        seen = fused if self.ssim_weight else fused.detach()
        to_a, to_b = lp_ssim(a, seen).total, lp_ssim(b, seen).total
        loss = fusion.total + self.ssim_weight * (to_a + to_b) if self.ssim_weight else fusion.total
        values = jt.concat([loss, fusion.total, to_a, to_b]).numpy()
        values, stop.agreed = collective.agree(values, stop.signal is not None)
        if not all(map(math.isfinite, values)):
            others = " or what other processes have of this batch" if processes.count() > 1 else ""
            names = ", ".join(batch.names) + others
            raise UserError(f"{names}: the loss is {values[0]}; the run ends before this step")
        self.optimizer.step(loss)
        jt.sync_all()
        self.step += 1
        return dict(zip(("loss", "loss_in_grad", "lplssim_a", "lplssim_b"), values, strict=True)), fused

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, beside the options of the run."""
        from utils.training.checkpoint import weights_of_net

        return {
            "model": weights_of_net(self.net),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
        }

    def load_state(self, state: Mapping[str, Any], path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: it is not one of a training, or fits another network.
        """
        from utils.training.checkpoint import load_weights

        load_weights(self.net, path, state)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.epoch, self.step = int(state["epoch"]), int(state["step"])
            self.seconds = float(state.get("seconds", 0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: cannot be resumed ({error}); --pretrain takes its weights alone") from error


def build_trainer(args: argparse.Namespace, checkpoint: Checkpoint | None) -> Trainer:
    """Network, optimizer and schedule as the options ask, or as they were at `checkpoint`."""
    from net.Film import Net
    from utils.runtime.jittor_env import jt
    from utils.training.checkpoint import load_weights
    from utils.training.optim import Adam, StepLR

    jt.set_global_seed(abs(args.seed), different_seed_for_mpi=False)
    net = Net(hidden_dim=args.hidden_dim, image2text_dim=args.i2t_dim)
    if args.pretrain and not checkpoint:
        load_weights(net, args.pretrain)
    optimizer = Adam(dict(net.named_parameters()), args.lr)
    schedule = StepLR(optimizer, args.step_size, args.gamma)
    trainer = Trainer(net, optimizer, schedule, args.loss_grad_weight, args.loss_ssim)
    if checkpoint:
        trainer.load_state(checkpoint.state, checkpoint.path)
    weights = [float(np.abs(p.numpy().astype(np.float64)).sum()) for p in net.parameters()]
    collective.assert_equal([args.seed, trainer.step, *weights], "seed, steps made and weights at the start")
    return trainer


class _StopRequest:
    """Set by the first Ctrl-C or SIGTERM, so that a run ends between two steps; the second one ends it at once.

    Several processes stop at the same step, when all know that one of them was asked to; none of them stops at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.agreed = False

    @property
    def due(self) -> bool:
        """Whether the run ends here."""
        return self.signal is not None if processes.count() == 1 else self.agreed

    @contextmanager
    def listening(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.signal is not None and processes.count() == 1:
            raise Stopped(number)
        self.signal = number


def step_or_save(
    trainer: Trainer, batch: Batch, run: RunFolder, args: argparse.Namespace, stop: _StopRequest
) -> tuple[dict[str, float], jt.Var]:
    """`Trainer.train_step`; where the loss is not finite, a checkpoint of the state before is left behind.

    Raises:
        UserError: the loss is not finite; it names the batch and the checkpoint.
    """
    try:
        return trainer.train_step(batch, stop)
    except UserError as error:
        if not all(np.isfinite(value).all() for value in trainer.state()["model"].values()):
            raise UserError(f"{error}; the weights are not finite either: go on from an earlier checkpoint") from error
        path = save(trainer, run, args, whole_epoch=False)
        raise UserError(f"{error}; the state before it: {path}") from error


def train_one_epoch(
    trainer: Trainer, loader: Loader, run: RunFolder, args: argparse.Namespace, stop: _StopRequest
) -> bool:
    """Train the epoch that `trainer` is in, from the step it is at; log every step. Returns whether it was finished."""
    from utils.runtime.jittor_env import jt

    batches = len(loader)
    done = trainer.step - trainer.epoch * batches
    bar = tqdm(
        itertools.islice(loader, done, None),
        total=batches,
        initial=done,
        desc=f"epoch {trainer.epoch + 1}/{args.numepochs}",
        unit="step",
    )
    with bar:
        started = time.perf_counter()
        for index, batch in enumerate(bar, start=done):
            # Jittor's random state cannot be read, so each step has one that follows from its number.
            jt.set_global_seed((abs(args.seed) + trainer.step) % 2**31, different_seed_for_mpi=False)
            losses, fused = step_or_save(trainer, batch, run, args, stop)
            now = time.perf_counter()
            eta = eta_text(trainer.epoch + 1, args.numepochs, index, batches, now - started)
            trainer.seconds += now - started
            started = now
            run.log_step(LogLine(trainer.epoch + 1, args.numepochs, index, batches, **losses, eta=eta), trainer.step)
            bar.set_postfix(loss=f"{losses['loss']:.4f}")
            if index < BATCHES_WITH_PICTURES:
                for row, (name, image) in enumerate(zip(batch.names, fused.numpy(), strict=True)):
                    run.write_picture(trainer.epoch + 1, name, batch.image_a[row, 0], batch.image_b[row, 0], image[0])
            if stop.due or trainer.step == args.max_steps:
                break
            if args.save_every and trainer.step % args.save_every == 0 and index + 1 < batches:
                save(trainer, run, args, whole_epoch=False)
    return trainer.step == (trainer.epoch + 1) * batches


def save(trainer: Trainer, run: RunFolder, args: argparse.Namespace, whole_epoch: bool) -> Path:
    """Write a checkpoint with the options that a run goes on with, and return its path."""
    from utils.training.run_folder import LENGTH, settings_of

    options = settings_of(vars(args)) | {LENGTH: args.numepochs}
    return run.save(trainer.state() | {"options": options}, whole_epoch, args.keep)


def open_run(args: argparse.Namespace, checkpoint: Checkpoint | None, trainer: Trainer) -> RunFolder | processes.Nobody:
    """The folder that process 0 writes to: the one that `checkpoint` lies in, or a new one."""
    from utils.training.run_folder import RunFolder, make_run_folder

    if not processes.is_main():
        return processes.Nobody()
    if checkpoint and checkpoint.run:
        run = RunFolder(checkpoint.run, trainer.epoch, trainer.step)
    else:
        run = RunFolder(make_run_folder(args.exp_root, vars(args), CODE_OF_A_RUN))
    print(f"run: {run.path}")
    return run


def train(args: argparse.Namespace, checkpoint: Checkpoint | None = None) -> None:
    """Train as the options say, from `checkpoint` on.

    Raises:
        UserError: bad data, a checkpoint that does not fit, a loss that is not finite.
        Stopped: after Ctrl-C or SIGTERM, once the checkpoint of the step just made is written.
    """
    from utils.runtime.jittor_env import use_device
    from utils.training.run_folder import CURVE_NAME

    with H5Dataset(args.dataset_path, args.skip_bad, one_size=args.batch_size > 1 and not args.crop) as dataset:
        rank, batch_size = processes.rank(), args.batch_size * processes.count()
        if len(dataset) < batch_size:
            raise UserError(f"{args.dataset_path}: {len(dataset)} pairs do not make a batch of {batch_size}")
        print(use_device(args.device, args.tf32))
        if line := processes.describe():
            print(line)
        trainer = build_trainer(args, checkpoint)
        batches = len(dataset) // batch_size
        # Before anything in the run's folder is touched.
        if not 0 <= trainer.step - trainer.epoch * batches < batches:
            raise UserError(
                f"{args.resume}: made {trainer.step} steps in {trainer.epoch} epochs, but {args.dataset_path} has "
                f"{batches} steps an epoch at {batch_size} pairs a step; resume with the data, the batch size and the "
                "number of processes of that run"
            )
        stop = _StopRequest()
        saved = checkpoint.path if checkpoint else None
        if checkpoint:
            where = "" if checkpoint.run else "; it lies in no run's folder: a new one is made"
            print(f"goes on from {checkpoint.path}, {trainer.step} steps{where}")
        last = args.max_steps or math.inf
        augmentation = Augmentation(tuple(args.crop), args.flip) if args.crop or args.flip else None
        with open_run(args, checkpoint, trainer) as run, stop.listening():
            while trainer.epoch < args.numepochs and trainer.step < last and not stop.due:
                trainer.grad_weight = weight_at(trainer.epoch + 1, args.grad_stages, args.loss_grad_weight)
                run.log_learning_rate(trainer.optimizer.lr, trainer.step + 1)
                loader = Loader(
                    dataset,
                    batch_size,
                    shuffle=not args.no_shuffle,
                    drop_last=True,
                    seed=args.seed,
                    epoch=trainer.epoch,
                    part=slice(rank * args.batch_size, (rank + 1) * args.batch_size),
                    augmentation=augmentation,
                )
                finished = train_one_epoch(trainer, loader, run, args, stop)
                if finished:
                    trainer.epoch += 1
                    trainer.schedule.step()
                saved = save(trainer, run, args, whole_epoch=finished)
                run.refresh()
            if not stop.due:
                run.log_total_time(trainer.seconds)
        if dataset.skipped:
            print(f"skipped: {len(dataset.skipped)} bad pairs, named above")
        if processes.is_main():
            print(f"checkpoint: {saved}\nloss curve: {run.path / CURVE_NAME}")
        collective.meet()  # what process 0 writes is whole before anyone leaves
        if stop.due:
            raise Stopped(stop.signal or signal.SIGINT)


def options_of_run(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, checkpoint: Checkpoint
) -> argparse.Namespace:
    """The options given in `argv`, and for the others those of the run that `checkpoint` belongs to.

    The data may have moved, and the number of epochs may change.

    Raises:
        UserError: an option is given that would change the losses.
    """
    from utils.training.run_folder import settings_of

    recorded = checkpoint.options
    words = []
    for name, value in recorded.items():
        if name == "batch_size":
            value //= processes.count()
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)] if value else []
        elif value is not False:
            words.append(f"--{name}" if value is True else f"--{name}={value}")
    args = parser.parse_args([*words, *(sys.argv[1:] if argv is None else argv)])
    for name, value in settings_of(vars(args)).items():
        if name != "dataset_path" and value != recorded.get(name, value):
            raise UserError(
                f"--{name} {value}: {checkpoint.path} was trained with {recorded[name]}; leave the option out, or "
                "start a new run from its weights with --pretrain"
            )
    return args


def main(argv: Sequence[str] | None = None) -> None:
    parser = get_args_parser()
    args = parser.parse_args(argv)
    checkpoint = None
    if args.resume:
        from utils.training.checkpoint import read_checkpoint
        from utils.training.run_folder import Checkpoint, newest_checkpoint, settings_of

        if args.resume == "auto":
            checkpoint = newest_checkpoint(args.exp_root, settings_of(vars(args)))
            if checkpoint is None:
                print(f"--resume auto: no whole checkpoint of such a run under {args.exp_root}; a new run starts")
            else:
                args.resume = checkpoint.path
        elif args.pretrain:
            parser.error("--pretrain and --resume FILE exclude each other: a resumed run has its weights")
        else:
            checkpoint = Checkpoint(Path(args.resume), read_checkpoint(Path(args.resume)))
            args = options_of_run(parser, argv, checkpoint)
    train(args, checkpoint)


if __name__ == "__main__":
    sys.exit(run_command(main))
