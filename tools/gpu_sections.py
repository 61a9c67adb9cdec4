"""What tools/gpu_report.py measures: functions that yield the rows of its sections, each run in its own process.

Jittor and PyTorch are never in one process here, so that peak memory is that of one of them.
"""

from __future__ import annotations

import math
import os
import re
import resource
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from net.shapes import STAGE_SIZE
from tools.benchmark import random_inputs, timed
from tools.sections import ROOT, Row, last_line, reason_of
from utils.runtime import programs
from utils.runtime.errors import UserError

JITTOR, EAGER, COMPILED = "Jittor", "PyTorch eager", "torch.compile"
INFERENCE, TRAINING = "inference", "training"
BATCHES = (1, 2, 4, 8, 16)
ROUNDS = 10
SMALL = (48, 64)  # the image size of quick sections
KERNELS = 10
WEIGHTS = "models/IVF.pkl"
GRAY_LEVELS = 1  # a value close to a whole number can be truncated to the next
LOSS_GAP = 1e-4  # docs/loss-curves.md, "How exact it is"


def check(what: str, value: float, tolerance: float | None) -> Row:
    """The row of a check: it holds if the value is at most the tolerance. A value that is not finite becomes None."""
    return {"what": what, "value": float(value) if math.isfinite(value) else None, "tolerance": tolerance}


def doctor(device: str) -> Iterator[Row]:
    """The findings of tools/doctor.py. Its process is the first one, so Jittor compiles itself here."""
    from tools.doctor import checks, examine

    yield from map(asdict, examine(checks(device)))


def primitives(device: str, quick: bool) -> Iterator[Row]:
    """Every operation of net/ops on the device against its reference form on the CPU, forward and backward."""
    from net import ops
    from tests.net.cases import SIZES, cases, deviations, evaluate
    from utils.runtime.jittor_env import jt, use_device

    by_operation = defaultdict(list)
    for case in cases(SIZES[:1] if quick else SIZES):
        by_operation[case.operation].append(case)
    for name, group in by_operation.items():
        use_device("cpu")
        with ops.reference_only():
            expected = [evaluate(getattr(ops, name), case.inputs) for case in group]
            jt.sync([*chain(*expected)], True)  # in one call, so that Jittor compiles all their kernels in parallel
        use_device(device)
        computed = [evaluate(getattr(ops, name), case.inputs) for case in group]
        jt.sync([*chain(*computed)], True)
        shares = [
            max(deviations(*arrays, case.floor)) / case.tolerance
            for *arrays, case in zip(computed, expected, group, strict=True)
        ]
        yield check(f"{name}, {len(group)} cases, share of their tolerances", np.max(shares), 1)


def golden(device: str, tf32: bool = False) -> Iterator[Row]:
    """The network, its losses and its gradients against tests/golden/small.npz. With TF32 nothing is required."""
    from net.Film import Net
    from tests.golden import tolerances
    from tests.golden.rule import text_feature, weight
    from utils.runtime.jittor_env import jt, use_device
    from utils.training.checkpoint import load_weights
    from utils.training.losses import fusion_loss, lp_ssim

    use_device(device, tf32)
    path = ROOT / "tests" / "golden" / "small.npz"
    with np.load(path) as arrays:
        small = dict(arrays)
    net = Net()
    parameters = dict(net.named_parameters())
    load_weights(net, path, {"model": {name: weight(name, tuple(p.shape)) for name, p in parameters.items()}})
    a, b = (jt.array(small[f"image_{side}"][None, None].astype(np.float32) / 255) for side in "ab")
    fused = net(a, b, jt.array(text_feature()))

    def row(what: str, value: float, tolerance: float) -> Row:
        return check(what, value, None if tf32 else tolerance)

    yield row("fused image", np.abs(fused.numpy() - small["fused"]).max(), tolerances.OUTPUT_TOLERANCE)
    fusion = fusion_loss(a, b, fused)
    losses = {"fusion_loss": fusion, "lp_ssim_a": lp_ssim(a, fused), "lp_ssim_b": lp_ssim(b, fused)}
    gaps = [np.abs(np.array([x.item() for x in terms]) / small[name] - 1).max() for name, terms in losses.items()]
    yield row("losses, relative", np.max(gaps), tolerances.LOSS_TOLERANCE)
    gradients = dict(zip(parameters, jt.grad(fusion.total, list(parameters.values())), strict=True))
    gradients = {name: gradient.numpy().astype(np.float64) for name, gradient in gradients.items()}
    norms = np.array([np.linalg.norm(gradients[name]) for name in small["names"]])
    gap = np.abs(norms / small["gradient_norms"] - 1).max()
    yield row(f"norms of {len(norms)} gradients, relative", gap, tolerances.GRADIENT_NORM_TOLERANCE)
    stored = {key.removeprefix("gradient/"): value for key, value in small.items() if key.startswith("gradient/")}
    gaps = [np.linalg.norm(gradients[name] - exact) / np.linalg.norm(exact) for name, exact in stored.items()]
    yield row(f"{len(stored)} complete gradients, relative", np.max(gaps), tolerances.GRADIENT_TOLERANCE)


def run_script(*command: str | Path) -> None:
    """Run a script of this project; what it prints goes to the log of the section.

    Raises:
        UserError: it failed; the message ends with the last line that it printed.
    """
    done = programs.run([sys.executable, *map(str, command)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    print(done.stderr, file=sys.stderr)
    if done.returncode:
        raise UserError(f"{command[0 if command[0] != '-m' else 1]}: {last_line(done.stderr)}")


def images(device: str, folder: str) -> Iterator[Row]:
    """The PNGs that test.py writes for the six TNO pairs, on the device and on the CPU."""
    from utils.evaluation.evaluate import differences

    run_script("data_process.py", "--dataset", "TNO", "--mode", "test", "--out", folder)
    fused = []
    for name, where in (("reference", "cpu"), ("device", device)):
        out = Path(folder) / name
        options = ("--ckpt_path", WEIGHTS, "--h5_dir", folder, "--out_dir", out, "--device", where)
        run_script("test.py", "--dataset", "TNO", *options)
        fused.append({path.stem: path for path in sorted((out / "TNO" / "Gray").glob("*.png"))})
    for name, difference in differences(*fused).items():
        yield check(f"{name}.png, gray levels", difference.largest, GRAY_LEVELS)


def trajectory(device: str, folder: str, quick: bool) -> Iterator[Row]:
    """The losses of a training by train.py against those of the PyTorch twin: same weights, pairs and order."""
    from operator import attrgetter

    from tools.compare_loss import compare
    from utils.training.loss_log import LOSSES, read_log

    run_script("data_process.py", "--dataset", "Sample", "--mode", "train", "--out", folder)
    options = ["--dataset_path", Path(folder) / "Sample_train.h5", "--pretrain", WEIGHTS]
    options += ["--batch_size", "2", "--numepochs", *(("2", "--crop", *map(str, SMALL)) if quick else ("5",))]
    run_script("train.py", *options, "--device", device, "--exp_root", Path(folder) / "exp", "--keep", "1")
    log = Path(folder) / "torch.txt"
    # A CPU build of PyTorch has the same losses.
    where = "auto" if device == "cuda" else device
    run_script("-m", "tools.torch_twin", *options, "--device", where, "--log", log)
    (ours,) = (Path(folder) / "exp").glob("*/*/log.txt")
    reference, lines = read_log(log), read_log(ours)
    for field, name in LOSSES.items():
        gap = compare(reference, lines, attrgetter(field)).steps
        yield check(f"{name.chart} in {len(gap)} steps, relative", max(gap.values()), LOSS_GAP)


def computation(case: str, contender: str, device: str, tf32: bool) -> tuple[Callable[..., Any], Callable[[], int]]:
    """The function of arrays that does one pass of a case, and one that returns the peak memory so far, in bytes.

    On a GPU it is what the framework's allocator holds, which neither returns before it must; else the process's peak.

    Raises:
        UserError: this PyTorch has no CUDA.
    """
    from tools import benchmark

    def resident() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    if contender == JITTOR:
        make = {INFERENCE: benchmark.jittor_network, TRAINING: benchmark.jittor_trainer}[case]
        run = make(device, tf32)
        from utils.runtime.jittor_env import jt

        return run, (lambda: jt.get_mem_info().total_cuda_used) if device == "cuda" else resident
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"PyTorch {torch.__version__} finds no CUDA device; install its CUDA build")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    make = {INFERENCE: benchmark.torch_network, TRAINING: benchmark.torch_trainer}[case]
    run = make(device, contender == COMPILED)
    return run, torch.cuda.max_memory_reserved if device == "cuda" else resident


def speed(device: str, quick: bool, case: str, contender: str, tf32: bool = False) -> Iterator[Row]:
    """Seconds of a pass (median), of the first one, and peak memory, by batch size; the arrays' way to the GPU counts.

    Raises:
        UserError: a batch does not fit; the message names its size.
    """
    run, peak = computation(case, contender, device, tf32)
    size = SMALL if quick else STAGE_SIZE
    for batch in BATCHES[:1] if quick else BATCHES:
        step = partial(run, *random_inputs(batch, *size))
        try:
            first = timed(step)
            seconds = median(timed(step) for _ in range(1 if quick else ROUNDS))
        except Exception as error:
            raise UserError(f"batch {batch}: {reason_of(error)}") from error
        yield {"size": list(size), "batch": batch, "seconds": seconds, "first": first, "peak": peak()}


def profile(device: str, quick: bool, case: str, contender: str) -> Iterator[Row]:
    """The slowest kernels of a pass: name, calls, milliseconds, and the share of all kernels' time.

    Raises:
        UserError: there are none; the driver may keep its counters from users.
    """
    run, _ = computation(case, contender, device, tf32=False)
    step = partial(run, *random_inputs(1 if quick or case == INFERENCE else 2, *(SMALL if quick else STAGE_SIZE)))
    step()
    kernels = jittor_kernels(step) if contender == JITTOR else torch_kernels(step, device)
    total = sum(ms for _, _, ms in kernels)
    if not total:
        raise UserError("the profiler saw no kernel")
    for name, calls, ms in sorted(kernels, key=lambda kernel: -kernel[2])[:KERNELS]:
        yield {"kernel": name, "calls": calls, "ms": ms, "share": ms / total}


def jittor_kernels(step: Callable[[], Any]) -> list[tuple[str, int, float]]:
    """(name, calls, milliseconds) of each of Jittor's kernels; it waits for the device after each call."""
    from utils.runtime.jittor_env import jt

    with jt.profile_scope() as report:
        step()
    # Columns: name, file, count, total nanoseconds. An operator with "relay" only calls others, which have their rows.
    rows = [row for row in report[1:] if "relay" not in row[0]]
    return [(kernel_name(row[0]), int(float(row[2])), float(row[3]) / 1e6) for row in rows]


def kernel_name(key: str) -> str:
    """A short name for the key of a Jittor kernel: of FILM's own the statement that calls it, else its operators.

    >>> kernel_name("«opkey0:broadcast_to«Tx:float32«opkey1:binary«OP:add«JIT:1")
    'broadcast_to, binary.add'
    """
    if source := re.search(r"«CODE:(.*?)«JIT", key, re.DOTALL):
        return " ".join(source[1].split()).rstrip(";").split("; ")[-1][:80]
    operators = re.findall(r"«(opkey\d+|OP):([^«]*)", key)
    if not operators:
        return key.split("«")[0]
    return re.sub(r", \.", ".", ", ".join(f".{name}" if kind == "OP" else name for kind, name in operators))


def torch_kernels(step: Callable[[], Any], device: str) -> list[tuple[str, int, float]]:
    """(name, calls, milliseconds) of each of PyTorch's kernels, on a CPU of each of its operators."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    gpu = device == "cuda"
    with record(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as recorded:
        step()
    time = "self_device_time_total" if gpu else "self_cpu_time_total"
    return [(event.key[:80], event.count, getattr(event, time) / 1e3) for event in recorded.key_averages()]
