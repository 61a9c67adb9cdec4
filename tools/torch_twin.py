"""Train the PyTorch twin of FILM: the official training loop, on the same H5, in the same order, with the same log.

    python -m tools.torch_twin --dataset_path VLFDataset_h5/MSRS_train.h5 --log log/torch.txt

`tools/compare_loss.py` compares its log with that of `train.py`. Options that `train.py` has too mean the same here.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from utils.runtime.errors import EXIT_USAGE, UserError, missing

try:
    import torch
    from torch import Tensor
except ModuleNotFoundError:
    print(f"error: {missing('torch')}", file=sys.stderr)
    sys.exit(EXIT_USAGE)

from net.shapes import STAGE_SIZE
from tools.torch_film import HEADS, TwinNet, fusion_loss, keep_freed_memory, lp_ssim_loss
from utils.data.h5 import H5Dataset
from utils.data.loader import Augmentation, Loader
from utils.runtime import cuda
from utils.runtime.cli import HelpFormatter, not_negative, path_type, positive_int, run_command
from utils.runtime.files import atomic_path, naming, require_separate
from utils.training.checkpoint import PREFIX, read_weights
from utils.training.loss_log import LogLine, eta_text, format_line, format_total_time
from utils.training.stages import stage, weight_at


def get_parser() -> argparse.ArgumentParser:
    """The command line; its defaults are those of the official script."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.torch_twin", description=__doc__.splitlines()[0], formatter_class=HelpFormatter
    )
    add = parser.add_argument
    add("--dataset_path", type=path_type, default=Path("VLFDataset_h5/MSRS_train.h5"), help="training H5")
    add("--log", type=path_type, required=True, help="log file; an existing one is replaced")
    add("--save", type=path_type, help="file for the weights after each epoch, an official .pth")
    add("--pretrain", type=path_type, help="start from these weights: .pth of the official code, or .pkl of train.py")
    add("--seed", type=int, default=0, help="seed of the initial values and of the order of the samples")
    add("--no_shuffle", action="store_true", help="take the samples in the order of the file")
    add("--numepochs", type=positive_int, default=150, help="epochs to train")
    add("--max_steps", type=positive_int, help="stop after this many steps")
    add("--batch_size", type=positive_int, default=2, help="samples per step; an incomplete batch is dropped")
    add("--lr", type=not_negative, default=1e-5, help="learning rate of Adam")
    add("--step_size", type=positive_int, default=50, help="epochs between two changes of the learning rate")
    add("--gamma", type=not_negative, default=0.6, help="the learning rate is multiplied by this at each change")
    add("--loss_grad_weight", type=not_negative, default=20, help="weight of the gradient term")
    add("--grad_stages", type=stage, nargs="+", default=[], metavar="EPOCH:WEIGHT", help="as for train.py")
    add("--loss_ssim", type=not_negative, default=0, help="weight of the two Lp+SSIM losses")
    add("--crop", type=positive_int, nargs=2, default=[], metavar=("H", "W"), help="train on random crops of this size")
    add("--flip", action="store_true", help="mirror each pair left to right with probability 1/2")
    add("--i2t_dim", type=positive_int, default=32, help="channels of the image features that text attends to")
    add("--hidden_dim", type=positive_int, default=256, help="width of text tokens inside the network")
    add("--device", choices=cuda.DEVICES, default="auto", help="auto: a GPU if available")
    add("--threads", type=positive_int, help="CPU threads (default: PyTorch's choice)")
    return parser


def load_weights(net: TwinNet, path: Path) -> None:
    """Load a checkpoint of the official code or of this project.

    Raises:
        UserError: not a checkpoint, or one of another network.
    """
    weights = {name: torch.from_numpy(value) for name, value in read_weights(path).items()}
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        # PyTorch lists what is missing, unexpected or of the wrong shape in many lines.
        raise UserError(f"{path}: does not fit the network: {' '.join(str(error).split())[:300]}") from error


def save_weights(net: TwinNet, path: Path, epoch: int, step: int) -> None:
    """Write a checkpoint as the official script does, after `epoch` epochs and `step` steps."""
    model = {PREFIX + name: value.cpu() for name, value in net.state_dict().items()}
    with atomic_path(path) as temporary:
        torch.save({"model": model, "epoch": epoch, "step": step}, temporary)


def train_step(
    net: TwinNet,
    optimizer: torch.optim.Optimizer,
    image_a: Tensor,
    image_b: Tensor,
    text: Tensor,
    grad_weight: float = 20,
    ssim_weight: float = 0,
) -> tuple[float, float, float, float]:
    """One step of the official training on (b,1,h,w), (b,1,h,w), (b,L,768); returns the four losses of a log line."""
    optimizer.zero_grad()
    fused = net(image_a, image_b, text)
    fusion, _, _ = fusion_loss(image_a, image_b, fused, grad_weight)
    with torch.set_grad_enabled(ssim_weight != 0):
        to_a, to_b = (lp_ssim_loss(image, fused)[0] for image in (image_a, image_b))
    loss = fusion + ssim_weight * (to_a + to_b)
    loss.backward()
    optimizer.step()
    return loss.item(), fusion.item(), to_a.item(), to_b.item()


def train(net: TwinNet, dataset: H5Dataset, args: argparse.Namespace, device: torch.device) -> None:
    """Train `net` with the options of `get_parser`; log every step, and save the weights after every epoch.

    Raises:
        UserError: fewer samples than a batch, a loss that is not finite, or a file that cannot be written.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, args.step_size, args.gamma)
    batches = len(dataset) // args.batch_size
    if batches == 0:
        raise UserError(f"{args.dataset_path}: {len(dataset)} samples do not fill a batch of {args.batch_size}")
    augmentation = Augmentation(tuple(args.crop), args.flip) if args.crop or args.flip else None
    last_step = min(args.numepochs * batches, args.max_steps or math.inf)

    with naming(args.log):
        args.log.parent.mkdir(parents=True, exist_ok=True)
        file = args.log.open("w", encoding="utf-8", buffering=1)
    start = time.time()
    step = 0
    with file as log, tqdm(total=last_step, unit="step") as progress:
        for epoch in range(1, math.ceil(last_step / batches) + 1):
            batch_start = time.time()
            # The loader counts epochs from 0, as in train.py: the order of the samples is the same.
            order = {"shuffle": not args.no_shuffle, "drop_last": True, "seed": args.seed, "epoch": epoch - 1}
            loader = Loader(dataset, args.batch_size, **order, augmentation=augmentation)
            grad_weight = weight_at(epoch, args.grad_stages, args.loss_grad_weight)
            for batch, samples in enumerate(itertools.islice(loader, last_step - step)):
                arrays = (samples.image_a, samples.image_b, samples.text)
                inputs = (torch.from_numpy(array).to(device) for array in arrays)
                losses = train_step(net, optimizer, *inputs, grad_weight, args.loss_ssim)
                now = time.time()
                position = (epoch, args.numepochs, batch, batches)
                log.write(format_line(LogLine(*position, *losses, eta=eta_text(*position, now - batch_start))) + "\n")
                if not all(map(math.isfinite, losses)):
                    raise UserError(f"{args.log}: a loss is no longer finite; try a smaller --lr")
                progress.set_postfix(epoch=epoch, loss=f"{losses[0]:.4f}", refresh=False)
                progress.update()
                batch_start = now
                step += 1
            schedule.step()
            if args.save:
                save_weights(net, args.save, epoch, step)
        log.write(format_total_time(time.time() - start) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    keep_freed_memory()
    inputs = [args.dataset_path, *([args.pretrain] if args.pretrain else [])]
    require_separate([args.log, *([args.save] if args.save else [])], inputs)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device; use --device cpu")
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    # float32 everywhere: by default PyTorch rounds the operands of convolutions to TF32 on a GPU.
    torch.backends.cudnn.allow_tf32 = False
    if args.hidden_dim % HEADS or args.i2t_dim * math.prod(STAGE_SIZE) % args.hidden_dim:
        expected = f"expected a multiple of {HEADS} that divides the number of image features"
        raise UserError(f"--hidden_dim {args.hidden_dim}: {expected}")
    torch.manual_seed(args.seed)
    net = TwinNet(args.hidden_dim, args.i2t_dim)
    with H5Dataset(args.dataset_path) as dataset:
        if args.pretrain:
            load_weights(net, args.pretrain)
        train(net.to(device), dataset, args, device)


if __name__ == "__main__":
    sys.exit(run_command(main))
