"""Train FILM on an H5 file that data_process.py wrote.

    python train.py --dataset_path VLFDataset_h5/MSRS_train.h5

A run writes to its folder under exp/: checkpoints, log, loss curve, pictures, TensorBoard events, a copy of the code.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from utils.data.h5 import H5Dataset
from utils.data.loader import Augmentation, Loader
from utils.runtime import collective, processes
from utils.runtime.cli import (
    HelpFormatter,
    add_device_options,
    not_empty,
    not_negative,
    path_type,
    positive,
    positive_int,
    run_command,
)
from utils.runtime.errors import UserError
from utils.runtime.files import require_writable
from utils.training.checkpoint import read_weights
from utils.training.correlation import Correlation, EpochCorrelation
from utils.training.loss_log import LogLine, eta_text
from utils.training.resume import Checkpoint, open_run, parse_options
from utils.training.run_folder import CURVE_NAME, LOG_NAME, RunFolder
from utils.training.stages import stage, weight_at
from utils.training.stop import StopRequest

if TYPE_CHECKING:
    from utils.training.trainer import Trainer

BATCHES_WITH_PICTURES = 2  # of each epoch


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train FILM. The defaults are those of the official code.", formatter_class=HelpFormatter
    )
    add = parser.add_argument
    add(
        "--dataset_path",
        type=path_type,
        default=Path("VLFDataset_h5/MSRS_train.h5"),
        help="H5 file with the training data",
    )
    add("--numepochs", type=positive_int, default=150, help="number of epochs")
    add("--batch_size", type=positive_int, default=2, help="pairs per step and process; incomplete batches are dropped")
    add("--lr", type=positive, default=1e-5, help="learning rate of Adam")
    add("--step_size", type=positive_int, default=50, help="epochs between two changes of the learning rate")
    add("--gamma", type=positive, default=0.6, help="the learning rate is multiplied by this at each change")
    add("--loss_grad_weight", type=not_negative, default=20, help="weight of the gradient term of the fusion loss")
    add(
        "--grad_stages",
        type=stage,
        nargs="+",
        default=[],
        metavar="EPOCH:WEIGHT",
        help="change --loss_grad_weight during training: 1:1 7:5 15:20 means 1 from epoch 1, 5 from 7, 20 from 15",
    )
    add("--loss_ssim", type=not_negative, default=0, help="weight of the Lp+SSIM losses; at 0 they are only logged")
    add("--i2t_dim", type=positive_int, default=32, help="channels of the image features that text attends to; only 32")
    add("--hidden_dim", type=positive_int, default=256, help="width of text tokens inside the network")
    add(
        "--pretrain",
        type=path_type,
        metavar="FILE",
        help="start from these weights (.pkl, or .pth of the official code)",
    )
    add(
        "--resume",
        type=not_empty,
        metavar="auto|FILE",
        help="resume from this checkpoint with the options of its run; options given here must not change the losses. "
        "Output goes to the folder of the run, or to a new one if the file was copied elsewhere. auto: resume from the "
        "newest intact checkpoint of the newest run with the options given here; without one, start a new run",
    )
    add(
        "--save_every",
        type=positive_int,
        metavar="N",
        help="write a checkpoint every N steps, in addition to each epoch",
    )
    add("--keep", type=positive_int, metavar="N", help="keep only the N newest checkpoints of the run (default: all)")
    add("--seed", type=int, default=0, help="seed of the initial weights, the order of the pairs, crops and flips")
    add("--no_shuffle", action="store_true", help="use the pairs in the order of the file")
    add("--crop", type=positive_int, nargs=2, default=[], metavar=("H", "W"), help="train on random crops of this size")
    add("--flip", action="store_true", help="mirror each pair left to right with probability 1/2")
    add("--skip_bad", action="store_true", help="check all pairs first; name the bad ones and train without them")
    add("--max_steps", type=positive_int, metavar="N", help="end the run after N steps in total")
    add_device_options(parser)
    add("--exp_root", type=path_type, default=Path("exp"), help="folder for the runs")
    parser.set_defaults(processes=processes.count())
    return parser


def train_one_epoch(
    trainer: Trainer, loader: Loader, run: RunFolder, args: argparse.Namespace, stop: StopRequest
) -> bool:
    """Train the rest of the current epoch of `trainer`; log every step, and the correlation of the fused images.

    Returns whether the epoch is finished.
    """
    from utils.runtime.jittor_env import jt
    from utils.training.trainer import step_or_save

    batches = len(loader)
    done = trainer.step - trainer.epoch * batches
    correlation = EpochCorrelation()
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
            # Jittor's random state cannot be saved, so each step seeds it with --seed plus the step number.
            jt.set_global_seed((abs(args.seed) + trainer.step) % 2**31, different_seed_for_mpi=False)
            losses, fused = step_or_save(trainer, batch, stop.mean, run, args.keep)
            now = time.perf_counter()
            eta = eta_text(trainer.epoch + 1, args.numepochs, index, batches, now - started)
            trainer.seconds += now - started
            started = now
            run.log_step(LogLine(trainer.epoch + 1, args.numepochs, index, batches, **losses, eta=eta), trainer.step)
            bar.set_postfix(loss=f"{losses['loss']:.4f}")
            images = fused.numpy()
            correlation.add(images, batch.image_a, batch.image_b)
            if index < BATCHES_WITH_PICTURES:
                for row, (name, image) in enumerate(zip(batch.names, images, strict=True)):
                    run.write_picture(trainer.epoch + 1, name, batch.image_a[row, 0], batch.image_b[row, 0], image[0])
            if stop.due or trainer.step == args.max_steps:
                break
            if args.save_every and trainer.step % args.save_every == 0 and index + 1 < batches:
                run.save(trainer.state(), whole_epoch=False, keep=args.keep)
    finished = trainer.step == (trainer.epoch + 1) * batches
    if finished:
        mean = Correlation(*stop.mean(correlation.mean()))
        run.log_correlation(trainer.epoch + 1, mean, trainer.step)
        print(mean)
        if reason := mean.warning():
            print(f"warning: {reason}; see 'What the loss does not see' in docs/training.md")
    return finished


def train(args: argparse.Namespace, checkpoint: Checkpoint | None = None) -> None:
    """Train with the options `args`; resume from `checkpoint` if there is one.

    Raises:
        UserError: bad data, a checkpoint that does not fit, or a loss that is not finite.
        Stopped: after a signal that asks to stop, once the checkpoint of the last step is written.
    """
    require_writable(((checkpoint.run if checkpoint else None) or args.exp_root) / LOG_NAME)
    if args.pretrain and not checkpoint:
        read_weights(args.pretrain)  # a bad file is found before Jittor starts
    processes.use_threads(args.threads)
    with H5Dataset(args.dataset_path, args.skip_bad, one_size=args.batch_size > 1 and not args.crop) as dataset:
        rank, batch_size = processes.rank(), args.batch_size * processes.count()
        if len(dataset) < batch_size:
            raise UserError(f"{args.dataset_path}: {len(dataset)} pairs are fewer than a batch of {batch_size}")
        from utils.runtime.jittor_env import use_device
        from utils.training.trainer import build_trainer

        print(use_device(args.device, args.tf32))
        if line := processes.describe():
            print(line)
        trainer = build_trainer(args, checkpoint, dataset.provenance)
        collective.assert_equal([args.seed, *trainer.fingerprint()], "seed, steps made and initial weights")
        stop = StopRequest()
        saved = checkpoint.path if checkpoint else None
        last = args.max_steps or math.inf
        augmentation = Augmentation(tuple(args.crop), args.flip) if args.crop or args.flip else None
        with open_run(args, checkpoint, len(dataset) // batch_size) as run, stop.listening():
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
                saved = run.save(trainer.state(), whole_epoch=finished, keep=args.keep)
                run.refresh()
            if not stop.due:
                run.log_total_time(trainer.seconds)
        if dataset.skipped:
            print(f"skipped: {len(dataset.skipped)} bad pairs, named above")
        if processes.is_main():
            print(f"checkpoint: {saved}\nloss curve: {run.path / CURVE_NAME}")
        collective.barrier()  # no process ends before process 0 has written everything
        stop.raise_if_due()


def main(argv: Sequence[str] | None = None) -> None:
    train(*parse_options(get_args_parser(), argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
