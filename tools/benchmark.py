"""How fast FILM runs here beside other ways to run it, as ratios measured in one go.

    python -m tools.benchmark inference            # a fused image: Jittor, ONNX Runtime, OpenVINO, PyTorch
    python -m tools.benchmark training             # a step: forward, backward, Adam
    python -m tools.benchmark start                # compiling the kernels, and a start when they are compiled
    python -m tools.benchmark sizes                # images of many sizes: does a new size cost anything?
    python -m tools.benchmark loading              # how long does training wait for its data?
    python -m tools.benchmark metrics              # twelve metrics of a pair, beside the plain formulas
    python -m tools.benchmark text --encoder DIR   # paragraphs, in batches and one at a time
    python -m tools.benchmark_preprocess           # data_process.py beside a plain formulation

Machines are shared and noisy: only ratios of times taken in turn are worth something, and medians of those. Every
contender is a process of its own, with the same number of threads, and shows its peak memory. Peers are extras
(`pip install -r requirements-bench.txt`); those that are missing are named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from tqdm import tqdm

from net.shapes import STAGE_SIZE, TEXT_SHAPE
from utils.runtime.cli import run_command
from utils.runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
INFERENCE_SIZES = (STAGE_SIZE, (480, 640))
TRAINING_BATCH = 2
OURS = "jittor"
# An allocator that keeps what is freed: PyTorch's CPU training spends much of its time getting memory from the system.
TUNED_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TRIM_THRESHOLD_": str(2**40)}

Run = Callable[[], object]


def random_inputs(batch: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images A and B (b, 1, H, W) in 0..1 and text features (b, 149, 768), the same at every call."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((batch, 1, height, width), dtype=np.float32) for _ in "AB")
    return a, b, rng.standard_normal((batch, *TEXT_SHAPE)).astype(np.float32)


def jittor_inference(height: int, width: int, threads: int) -> Run:
    from net.Film import Net
    from utils.runtime.jittor_env import jt, use_device

    use_device("cpu")
    net, inputs = Net(), random_inputs(1, height, width)

    def run() -> None:
        with jt.no_grad():
            net(*map(jt.array, inputs)).numpy()

    return run


def jittor_training(height: int, width: int, threads: int) -> Run:
    from net.Film import Net
    from utils.runtime.jittor_env import jt, use_device
    from utils.training.losses import fusion_loss
    from utils.training.optim import Adam

    use_device("cpu")
    net = Net()
    optimizer = Adam(dict(net.named_parameters()), 1e-5)
    arrays = random_inputs(TRAINING_BATCH, height, width)

    def run() -> None:
        a, b, text = map(jt.array, arrays)
        optimizer.step(fusion_loss(a, b, net(a, b, text)).total)
        jt.sync_all(True)

    return run


def torch_inference(height: int, width: int, threads: int, compiled: bool = False) -> Run:
    import torch

    from tools.torch_film import build_twin

    torch.set_num_threads(threads)
    net = build_twin().eval()
    if compiled:
        net = torch.compile(net)
    inputs = [torch.from_numpy(x) for x in random_inputs(1, height, width)]

    def run() -> None:
        with torch.inference_mode():
            net(*inputs)

    return run


def torch_training(height: int, width: int, threads: int, compiled: bool = False) -> Run:
    import torch

    from tools.torch_film import build_twin, fusion_loss

    torch.set_num_threads(threads)
    net = build_twin()
    forward = torch.compile(net) if compiled else net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5)
    a, b, text = (torch.from_numpy(x) for x in random_inputs(TRAINING_BATCH, height, width))

    def run() -> None:
        optimizer.zero_grad()
        fusion_loss(a, b, forward(a, b, text), 20)[0].backward()
        optimizer.step()

    return run


def _exported(height: int, width: int) -> Path:
    """The twin as an ONNX file for one image size."""
    import torch

    from tools.torch_film import build_twin

    path = Path(tempfile.mkdtemp(prefix="film_onnx_")) / "film.onnx"
    inputs = tuple(torch.from_numpy(x) for x in random_inputs(1, height, width))
    torch.onnx.export(build_twin().eval(), inputs, str(path), dynamo=True, external_data=False, verbose=False)
    return path


def onnxruntime_inference(height: int, width: int, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(_exported(height, width), options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    inputs = dict(zip(names, random_inputs(1, height, width), strict=True))
    return lambda: session.run(None, inputs)


def openvino_inference(height: int, width: int, threads: int) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(str(_exported(height, width)), "CPU", settings)
    inputs = list(random_inputs(1, height, width))
    return lambda: model(inputs)


# name -> (what prepares it, the module it needs, its environment)
INFERENCE = {
    OURS: (jittor_inference, "jittor", {}),
    "onnxruntime": (onnxruntime_inference, "onnxruntime", {}),
    "openvino": (openvino_inference, "openvino", {}),
    "torch eager": (torch_inference, "torch", {}),
    "torch.compile": (lambda *size: torch_inference(*size, compiled=True), "torch", {}),
}
TRAINING = {
    OURS: (jittor_training, "jittor", {}),
    "torch eager": (torch_training, "torch", {}),
    "torch eager, tuned allocator": (torch_training, "torch", TUNED_ALLOCATOR),
    "torch.compile": (lambda *size: torch_training(*size, compiled=True), "torch", {}),
}
CASES = {"inference": INFERENCE, "training": TRAINING}


class Worker:
    """A contender in a process of its own, which runs once for every line it is sent."""

    def __init__(self, case: str, name: str, size: tuple[int, int], threads: int, root: Path = ROOT) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | CASES[case][name][2]
        command = [sys.executable, "-m", "tools.benchmark", "worker", case, name, *map(str, (*size, threads))]
        self.process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self) -> float | None:
        """Seconds of one run; None if the process failed."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line.startswith("{"):
                    answer = json.loads(line)
                    self.peak = answer["peak"]
                    return answer["seconds"]
        except BrokenPipeError:
            pass
        return None

    def why(self) -> str:
        """The last line of a process that failed."""
        lines = self.process.stderr.read().strip().splitlines()
        return lines[-1][:200] if lines else f"exit code {self.process.wait()}"

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.kill()
        self.process.wait()


def work(case: str, name: str, height: int, width: int, threads: int) -> None:
    """Be a worker: run once a line, and answer with the seconds and the peak memory so far (bytes)."""
    run = CASES[case][name][0](height, width, threads)
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


def compare(case: str, names: Sequence[str], size: tuple[int, int], threads: int, rounds: int, together: bool) -> None:
    """Time the contenders in turn and print medians, ratios and peak memory.

    Args:
        together: keep all processes alive and take turns run by run; else start each anew in every round, for runs
            whose memory does not fit beside each other.
    """
    contenders = CASES[case]
    times: dict[str, list[float]] = {name: [] for name in names}
    first: dict[str, float] = {}
    peaks: dict[str, float] = {}
    failed: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    for name in list(times):
        if importlib.util.find_spec(contenders[name][1]) is None:
            failed[name] = f"{contenders[name][1]} is not installed"
    bar = tqdm(total=rounds * (len(names) - len(failed)), desc=f"{case} {size[0]}x{size[1]}", unit="run")
    for turn in range(rounds):
        # Whoever goes first in one round goes last in the next.
        for name in names if turn % 2 == 0 else reversed(names):
            if name in failed:
                continue
            worker = workers.pop(name, None)
            if worker is None:
                worker = Worker(case, name, size, threads)
                warm_up = worker.run()
                if warm_up is not None:
                    first.setdefault(name, warm_up)
            if together:
                worker.run()  # its data comes back to the caches from which the others drove it
            seconds = worker.run()
            if seconds is None:
                failed[name] = worker.why()
                worker.close()
                continue
            times[name].append(seconds)
            peaks[name] = max(worker.peak, peaks.get(name, 0))
            if together:
                workers[name] = worker
            else:
                worker.close()
            bar.update()
    bar.close()
    for worker in workers.values():
        worker.close()
    ours = median(times[OURS]) if times.get(OURS) else None
    print(f"\n{case}, {size[0]}x{size[1]}, {threads} threads, medians of {rounds} rounds in turn")
    print(f"{'':<30}{'seconds':>9}{'of ours':>9}{'peak GB':>9}{'first':>9}")
    for name in names:
        if name in failed:
            print(f"{name:<30}left out: {failed[name]}")
            continue
        middle = median(times[name])
        ratio = f"{middle / ours:.2f}" if ours else ""
        print(f"{name:<30}{middle:>9.3f}{ratio:>9}{peaks[name] / 1e9:>9.2f}{first[name]:>9.1f}")


def starts(threads: int) -> None:
    """Time processes that make one fused image, and one training step, before and after their kernels are compiled.

    They run in a copy of the code: the place of the kernels' files belongs to their key in Jittor's cache.
    """
    seconds: dict[str, list[float]] = {"inference": [], "training": []}
    with tempfile.TemporaryDirectory() as folder:
        for package in ("net", "utils", "tools"):
            shutil.copytree(ROOT / package, Path(folder) / package)
        for _ in tqdm(range(2), desc="start", unit="start"):
            for case, times in seconds.items():
                started = time.perf_counter()
                worker = Worker(case, OURS, STAGE_SIZE, threads, Path(folder))
                if worker.run() is None:
                    raise UserError(f"{case}: {worker.why()}")
                times.append(time.perf_counter() - started)
                worker.close()
    print(f"\n{'from the start of a process to':<30}{'first, s':>10}{'second, s':>11}")
    for case, label in (("inference", "its first fused image"), ("training", "its first training step")):
        print(f"{label:<30}{seconds[case][0]:>10.1f}{seconds[case][1]:>11.1f}")
    print(f"compiling the kernels of both: {sum(first - second for first, second in seconds.values()):.1f} s")


def new_sizes(threads: int, count: int) -> None:
    """Fuse images of `count` different sizes and equal area, each twice: the first time over the second.

    Also counts the kernels that Jittor compiles for them after the first image.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from net.Film import Net
    from utils.runtime.jittor_env import jt, use_device

    use_device("cpu")
    net = Net()

    def fuse(height: int, width: int) -> float:
        started = time.perf_counter()
        with jt.no_grad():
            net(*map(jt.array, random_inputs(1, height, width))).numpy()
        return time.perf_counter() - started

    def kernels() -> int:
        return sum(1 for _ in Path(jt.flags.cache_path).joinpath("jit").glob("*.so"))

    fuse(251, 333)
    fuse(251, 333)
    before = kernels()
    ratios = []
    for step in tqdm(range(count), desc="sizes", unit="size"):
        height = 200 + 7 * step
        size = (height, 83583 // height)
        ratios.append(fuse(*size) / min(fuse(*size), fuse(*size)))
    print(f"\nan image of a new size over one of a known size: median {median(ratios):.2f}, highest {max(ratios):.2f}")
    print(f"kernels compiled for {count} new sizes: {kernels() - before}")


def waiting_for_data(threads: int, steps: int) -> None:
    """Train some steps from an H5 file as train.py does, and print which part of the time was spent waiting."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from net.Film import Net
    from utils.data.h5 import H5Dataset, Sample, write_h5
    from utils.data.loader import Loader
    from utils.runtime.jittor_env import jt, use_device
    from utils.training.losses import fusion_loss
    from utils.training.optim import Adam

    use_device("cpu")
    net = Net()
    optimizer = Adam(dict(net.named_parameters()), 1e-5)
    a, b, text = random_inputs(1, *STAGE_SIZE)
    samples = (Sample(f"{i}", a[0], b[0], text[0]) for i in range(TRAINING_BATCH * (steps + 1)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.h5"
        write_h5(path, samples)
        with H5Dataset(path) as dataset:
            loader = Loader(dataset, TRAINING_BATCH, shuffle=True, drop_last=True)
            started = time.perf_counter()
            for batch in tqdm(loader, desc="loading", unit="step"):
                inputs = [jt.array(x) for x in (batch.image_a, batch.image_b, batch.text)]
                optimizer.step(fusion_loss(*inputs[:2], net(*inputs)).total)
                jt.sync_all(True)
            seconds = time.perf_counter() - started
    print(f"\nwaited for data {loader.waited:.3f} s of {seconds:.1f} s: {loader.waited / seconds:.2%}")


def medians_in_turn(runs: Sequence[Run], rounds: int) -> list[float]:
    """The median seconds of each of `runs`, timed in turn; one more round, the first, is not counted."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in tqdm(range(rounds + 1), unit="round", leave=False):
        for run, seconds in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return [median(seconds[1:]) for seconds in times]


def metrics_of_a_pair(rounds: int) -> None:
    """Time the metrics of one 480x640 pair on one core, beside the plain formulas."""
    import cv2

    from tools import plain_metrics
    from utils.evaluation import metrics

    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    images = [cv2.GaussianBlur(rng.random((480, 640)), (0, 0), 2) for _ in range(3)]
    images = [np.round((x - x.min()) / np.ptp(x) * 255) for x in images]
    print(f"{'':<14}{'ms':>9}{'plain ms':>11}{'ratio':>8}   medians of {rounds} rounds in turn, 480x640, one core")
    for name in ("viff", "qabf", "evaluate_pair"):
        fast, plain = medians_in_turn([partial(getattr(m, name), *images) for m in (metrics, plain_metrics)], rounds)
        print(f"{name:<14}{fast * 1e3:>9.1f}{plain * 1e3:>11.1f}{plain / fast:>8.1f}")


def encoding_of_texts(encoder: str, threads: int, rounds: int) -> None:
    """Time the text encoder on the sample's paragraphs beside transformers called by hand, one text at a time."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from utils.text.encoder import TextEncoder

    torch.set_num_threads(threads)
    texts = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("VLFDataset/Text/*/Sample/*.txt"))]
    ours = TextEncoder(encoder)
    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)

    def one_at_a_time() -> None:
        for text in texts:
            tokens = tokenizer(
                text, padding="max_length", max_length=TEXT_SHAPE[0], truncation=True, return_tensors="pt"
            )
            with torch.inference_mode():
                model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])

    def batched() -> None:
        list(ours.encode(ours.tokenize(texts)))

    plain, fast = (seconds / len(texts) * 1e3 for seconds in medians_in_turn([one_at_a_time, batched], rounds))
    print(f"\na text: {fast:.0f} ms batched, {plain:.0f} ms one at a time, {plain / fast:.2f} times the rate")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time FILM beside other ways to run it.")
    commands = parser.add_subparsers(dest="command", required=True)
    threads = argparse.ArgumentParser(add_help=False)
    threads.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of every contender")
    for case, contenders in CASES.items():
        sub = commands.add_parser(case, parents=[threads], help=f"contenders: {', '.join(contenders)}")
        sub.add_argument("--rounds", type=int, default=5 if case == "inference" else 3, help="timed runs of each")
        sub.add_argument("--only", nargs="+", choices=tuple(contenders), default=tuple(contenders), metavar="NAME")
    commands.add_parser("start", parents=[threads], help="compiling the kernels, and a start when they are compiled")
    sizes = commands.add_parser("sizes", parents=[threads], help="does an image of a new size cost anything?")
    sizes.add_argument("--count", type=int, default=20, help="how many sizes")
    loading = commands.add_parser("loading", parents=[threads], help="how long does training wait for its data?")
    loading.add_argument("--steps", type=int, default=8, help="training steps")
    metrics = commands.add_parser("metrics", help="the metrics of a pair beside the plain formulas")
    metrics.add_argument("--rounds", type=int, default=5)
    text = commands.add_parser("text", parents=[threads], help="paragraphs in batches beside one at a time")
    text.add_argument("--encoder", required=True, help="folder or name of a text encoder, as in data_process.py")
    text.add_argument("--rounds", type=int, default=5)
    worker = commands.add_parser("worker")
    worker.add_argument("case")
    worker.add_argument("name")
    worker.add_argument("numbers", type=int, nargs=3)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.command == "worker":
        work(args.case, args.name, *args.numbers)
    elif args.command == "start":
        starts(args.threads)
    elif args.command == "sizes":
        new_sizes(args.threads, args.count)
    elif args.command == "inference":
        for size in INFERENCE_SIZES:
            compare("inference", args.only, size, args.threads, args.rounds, together=True)
    elif args.command == "training":
        compare("training", args.only, STAGE_SIZE, args.threads, args.rounds, together=False)
    elif args.command == "loading":
        waiting_for_data(args.threads, args.steps)
    elif args.command == "metrics":
        metrics_of_a_pair(args.rounds)
    elif args.command == "text":
        encoding_of_texts(args.encoder, args.threads, args.rounds)


if __name__ == "__main__":
    sys.exit(run_command(main))
