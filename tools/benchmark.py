"""How fast FILM is here compared with other ways to compute it, as ratios measured in one session.

    python -m tools.benchmark inference            # a fused image: Jittor, ONNX Runtime, OpenVINO, PyTorch
    python -m tools.benchmark training             # a step: forward, backward, Adam
    python -m tools.benchmark start                # compiling the kernels, and a start with compiled kernels
    python -m tools.benchmark sizes                # does an image of a new size take longer?
    python -m tools.benchmark loading              # how long does training wait for its data?
    python -m tools.benchmark stream               # test.py's loop over a data set, and the network alone
    python -m tools.benchmark metrics              # the twelve metrics of a pair, and the plain formulas
    python -m tools.benchmark text --encoder DIR   # paragraphs in batches, and one at a time
    python -m tools.benchmark preprocess           # data_process.py, and a plain form of the official script

On a shared machine only ratios of alternately timed runs mean something. The results are medians of those. Each
contender of `inference` and `training` is a process with the same number of threads; its peak memory is shown too.
`--json FILE` keeps all their rounds; `python -m tools.benchmark_table` makes the tables of docs/performance.md of them.
Other frameworks are extras (`pip install -r requirements-bench.txt`); a missing one is named and left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from net.shapes import STAGE_SIZE, TEXT_SHAPE
from tools import doctor
from utils.runtime import programs
from utils.runtime.cli import not_empty, path_type, run_command
from utils.runtime.cores import usable as usable_cores
from utils.runtime.cuda import host_compiler
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path

ROOT = Path(__file__).resolve().parent.parent
OURS = "jittor"
PACKAGES = ("numpy", "jittor", "torch", "onnxruntime", "openvino")
# An allocator that keeps freed memory: PyTorch's CPU training spends much of its time getting memory from the system.
TUNED_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
# Pairs that `preprocess` reads, and how many of them differ; all others are links to these.
PAIR_SIZE, DISTINCT = (480, 640), 8

Run = Callable[[], object]
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
Item = TypeVar("Item")


def random_inputs(batch: int, height: int, width: int) -> Arrays:
    """Images A and B (b, 1, H, W) in 0..1 and text features (b, 149, 768), the same at every call."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((batch, 1, height, width), dtype=np.float32) for _ in "AB")
    return a, b, rng.standard_normal((batch, *TEXT_SHAPE)).astype(np.float32)


def timed(run: Run) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def alternating(items: Sequence[Item], rounds: int) -> list[Item]:
    """Every item once per round; the first of one round is the last of the next."""
    return [item for number in range(rounds) for item in items[:: -1 if number % 2 else 1]]


def medians(runs: Sequence[Run], rounds: int) -> list[float]:
    """The median seconds of each of `runs`, timed alternately after one run that does not count."""
    times: dict[Run, list[float]] = {run: [] for run in runs}
    for run in tqdm(alternating(runs, rounds + 1), unit="run", leave=False):
        times[run].append(timed(run))
    return [median(seconds[1:]) for seconds in times.values()]


# --- inference, training: contenders in processes


def jittor_network(device: str = "cpu", tf32: bool = False) -> Callable[..., np.ndarray]:
    """Our network as a function from arrays to the fused images."""
    from net.Film import Net
    from utils.runtime.jittor_env import jt, use_device

    use_device(device, tf32)
    net = Net()

    def fuse(*arrays: np.ndarray) -> np.ndarray:
        with jt.no_grad():
            return net(*map(jt.array, arrays)).numpy()

    return fuse


def jittor_trainer(device: str = "cpu", tf32: bool = False) -> Callable[..., None]:
    """Our training step as a function of arrays."""
    from net.Film import Net
    from utils.runtime.jittor_env import jt, use_device
    from utils.training.losses import fusion_loss
    from utils.training.optim import Adam

    use_device(device, tf32)
    net = Net()
    optimizer = Adam(dict(net.named_parameters()), 1e-5)

    def step(*arrays: np.ndarray) -> None:
        a, b, text = map(jt.array, arrays)
        optimizer.step(fusion_loss(a, b, net(a, b, text)).total)
        jt.sync_all(True)

    return step


def torch_network(device: str = "cpu", compiled: bool = False) -> Callable[..., np.ndarray]:
    """The twin as a function from arrays to the fused images."""
    import torch

    from tools.torch_film import TwinNet

    net = TwinNet().eval().to(device)
    forward = torch.compile(net) if compiled else net

    @torch.inference_mode()
    def fuse(*arrays: np.ndarray) -> np.ndarray:
        return forward(*(torch.from_numpy(array).to(device) for array in arrays)).cpu().numpy()

    return fuse


def torch_trainer(device: str = "cpu", compiled: bool = False) -> Callable[..., None]:
    """The twin's training step as a function of arrays."""
    import torch

    from tools.torch_film import TwinNet, fusion_loss

    net = TwinNet().to(device)
    forward = torch.compile(net) if compiled else net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5)

    def step(*arrays: np.ndarray) -> None:
        a, b, text = (torch.from_numpy(array).to(device) for array in arrays)
        optimizer.zero_grad()
        fusion_loss(a, b, forward(a, b, text), 20)[0].backward()
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def with_threads(make: Callable[..., Callable], inputs: Arrays, threads: int, **options: object) -> Run:
    """A run of the function that `make` returns, with this number of PyTorch's threads."""
    import torch

    torch.set_num_threads(threads)
    return partial(make(**options), *inputs)


torch_inference = partial(with_threads, torch_network)
torch_training = partial(with_threads, torch_trainer)


def _exported(inputs: Arrays) -> str:
    """The twin as an ONNX file for one image size."""
    import torch

    from tools.torch_film import TwinNet

    path = Path(tempfile.mkdtemp(prefix="film_onnx_")) / "film.onnx"
    tensors = tuple(map(torch.from_numpy, inputs))
    torch.onnx.export(TwinNet().eval(), tensors, str(path), dynamo=True, external_data=False, verbose=False)
    return str(path)


def onnxruntime_inference(inputs: Arrays, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(_exported(inputs), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {x.name: value for x, value in zip(session.get_inputs(), inputs, strict=True)})


def openvino_inference(inputs: Arrays, threads: int) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return partial(openvino.Core().compile_model(_exported(inputs), "CPU", settings), list(inputs))


class Case(NamedTuple):
    """Contenders, and what they compute. Their processes all stay alive (`together`), or start again in each round."""

    contenders: dict[str, tuple[Callable[[Arrays, int], Run], str, dict[str, str]]]
    sizes: tuple[tuple[int, int], ...]
    batch: int
    rounds: int
    together: bool


# name -> (what makes a run of some inputs and a number of threads, the module it needs, its environment)
INFERENCE = {
    OURS: (lambda inputs, _: partial(jittor_network(), *inputs), "jittor", {}),
    "onnxruntime": (onnxruntime_inference, "onnxruntime", {}),
    "openvino": (openvino_inference, "openvino", {}),
    "torch eager": (torch_inference, "torch", {}),
    "torch.compile": (partial(torch_inference, compiled=True), "torch", {}),
}
TRAINING = {
    OURS: (lambda inputs, _: partial(jittor_trainer(), *inputs), "jittor", {}),
    "torch eager": (torch_training, "torch", {}),
    "torch eager, tuned allocator": (torch_training, "torch", TUNED_ALLOCATOR),
    "torch.compile": (partial(torch_training, compiled=True), "torch", {}),
}
CASES = {
    "inference": Case(INFERENCE, (STAGE_SIZE, (480, 640)), batch=1, rounds=5, together=True),
    # The trainings together do not fit in memory.
    "training": Case(TRAINING, (STAGE_SIZE,), batch=2, rounds=3, together=False),
}


class Worker:
    """A process with one contender, which runs once for every line that it receives."""

    def __init__(self, case: str, name: str, size: tuple[int, int], threads: int, root: Path = ROOT) -> None:
        self.case = case
        environment = {"OMP_NUM_THREADS": str(threads)} | CASES[case].contenders[name][2]
        self.process = programs.start(
            [sys.executable, "-m", "tools.benchmark", "worker", case, name, *map(str, (*size, threads))],
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
            cwd=root,
            env=os.environ | environment,
            text=True,
        )

    def run(self) -> tuple[float, int]:
        """Seconds of one run, and the peak memory so far (bytes).

        Raises:
            UserError: the process failed; the last line that it printed is the message.
        """
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line.startswith("{"):
                    answer = json.loads(line)
                    return answer["seconds"], answer["peak"]
        except BrokenPipeError:
            pass
        lines = self.process.stderr.read().strip().splitlines()
        raise UserError(f"{self.case}: {lines[-1][:200] if lines else f'exit code {self.process.wait()}'}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def work(case: str, name: str, numbers: Sequence[int]) -> None:
    """Be a worker for an image height, width and number of threads: answer each line with what `Worker.run` returns."""
    *size, threads = numbers
    run = CASES[case].contenders[name][0](random_inputs(CASES[case].batch, *size), threads)
    for _ in sys.stdin:
        answer = {"seconds": timed(run), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        print(json.dumps(answer), flush=True)


def compare(case: str, size: tuple[int, int], only: Sequence[str], threads: int, rounds: int) -> dict[str, dict]:
    """Time the contenders `only` alternately, and print medians, ratios, peak memory and the time of the first run.

    Returns:
        By contender: seconds of the first run (`first`) and of all rounds (`seconds`), and the `peak` memory in bytes;
        or, if it `failed`, why.
    """
    contenders, together = CASES[case].contenders, CASES[case].together
    results: dict[str, dict] = {name: {"seconds": [], "peak": 0} for name in only}
    for name in only:
        if not find_spec(contenders[name][1]):
            results[name] = {"failed": f"{contenders[name][1]} is not installed"}
    workers: dict[str, Worker] = {}
    for name in tqdm(alternating(only, rounds), desc=f"{case} {size[0]}x{size[1]}", unit="run"):
        result = results[name]
        if "failed" in result:
            continue
        try:
            if name not in workers:
                workers[name] = Worker(case, name, size, threads)
                result.setdefault("first", workers[name].run()[0])
            # Loads its data into the caches again, or, in a new process, gets its memory from the system.
            workers[name].run()
            seconds, peak = workers[name].run()
            result["seconds"].append(seconds)
            result["peak"] = max(result["peak"], peak)
        except UserError as error:
            result = results[name] = {"failed": str(error)}
        if "failed" in result or not together:
            workers.pop(name).close()
    for worker in workers.values():
        worker.close()
    print(f"\n{case}, {size[0]}x{size[1]}, {threads} threads, medians of {rounds} alternating rounds")
    print(f"{'':<30}{'seconds':>9}{'of ours':>9}{'peak GB':>9}{'first':>9}")
    for name, result in results.items():
        if "failed" in result:
            print(f"{name:<30}left out: {result['failed']}")
            continue
        seconds = median(result["seconds"])
        ratio = f"{seconds / median(ours):.2f}" if (ours := results.get(OURS, {}).get("seconds")) else ""
        print(f"{name:<30}{seconds:>9.3f}{ratio:>9}{result['peak'] / 1e9:>9.2f}{result['first']:>9.1f}")
    return results


def compare_sizes(case: str, json_file: Path | None, **options: object) -> None:
    """`compare` at each size of the case; write machine, versions and all rounds to `json_file`.

    Raises:
        UserError: `json_file` exists, or cannot be written.
    """
    if json_file and json_file.exists():
        raise UserError(f"{json_file}: exists; choose another name")
    started = busy_and_total()
    sizes = [{"size": size, "contenders": compare(case, size, **options)} for size in CASES[case].sizes]
    if json_file:
        (busy, total), used = busy_and_total() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        others = max(0.0, busy - used.ru_utime - used.ru_stime) / total
        record = {"case": case, **surroundings(), "threads": options["threads"], "others": others, "sizes": sizes}
        with atomic_path(json_file) as temporary:
            temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")


def surroundings() -> dict[str, object]:
    """What the figures depend on: the date, the code, the processor, the instruction sets, and the versions."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    versions = {
        "python": platform.python_version(),
        "compiler": doctor.output_of(host_compiler(), "-dumpfullversion").strip(),
    }
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": doctor.output_of("git", "-C", ROOT, "describe", "--always", "--dirty").strip(),
        "processor": names[0] if names else platform.machine(),
        "simd": doctor.cpu_simd(),
        "kernels": doctor.compiler_simd(),
        "cores": usable_cores(),
        "versions": versions,
    }


# --- start, sizes, loading


def starts(threads: int) -> None:
    """Time processes that fuse one image or make one training step, before and after their kernels are compiled.

    They run in a copy of the code: Jittor's cache keys include the folder of the kernels.
    """
    seconds: dict[str, list[float]] = {"inference": [], "training": []}
    with tempfile.TemporaryDirectory() as folder:
        for package in ("net", "utils", "tools"):
            shutil.copytree(ROOT / package, Path(folder) / package)
        for case in tqdm([*seconds] * 2, desc="start", unit="start"):
            started = time.perf_counter()
            worker = Worker(case, OURS, STAGE_SIZE, threads, Path(folder))
            worker.run()
            seconds[case].append(time.perf_counter() - started)
            worker.close()
    print(f"\n{'from the start of a process to':<30}{'first, s':>10}{'second, s':>11}")
    for case, label in (("inference", "its first fused image"), ("training", "its first training step")):
        print(f"{label:<30}{seconds[case][0]:>10.1f}{seconds[case][1]:>11.1f}")
    print(f"compiling the kernels of both: {sum(first - second for first, second in seconds.values()):.1f} s")


def new_sizes(threads: int, count: int) -> None:
    """Fuse images of `count` sizes and equal area; print the time of a size's first image over that of a later one.

    Also counts the kernels that Jittor compiles for them after the first image.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from utils.runtime.jittor_env import jt

    fuse = jittor_network()

    def seconds(*size: int) -> float:
        return timed(lambda: fuse(*random_inputs(1, *size)))

    def kernels() -> int:
        return sum(1 for _ in Path(jt.flags.cache_path).joinpath("jit").glob("*.so"))

    seconds(251, 333)
    seconds(251, 333)
    before = kernels()
    ratios = []
    for step in tqdm(range(count), desc="sizes", unit="size"):
        height = 200 + 7 * step
        size = (height, 83583 // height)
        ratios.append(seconds(*size) / min(seconds(*size), seconds(*size)))
    print(f"\nan image of a new size over one of a known size: median {median(ratios):.2f}, highest {max(ratios):.2f}")
    print(f"kernels compiled for {count} new sizes: {kernels() - before}")


def waiting_for_data(threads: int, steps: int) -> None:
    """Train some steps from an H5 file as train.py does, and print the share of the time spent waiting for data."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from utils.data.h5 import H5Dataset, Sample, write_h5
    from utils.data.loader import Loader

    step = jittor_trainer()
    batch_size = CASES["training"].batch
    a, b, text = random_inputs(1, *STAGE_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.h5"
        write_h5(path, (Sample(f"{i}", a[0], b[0], text[0]) for i in range(batch_size * (steps + 1))))
        with H5Dataset(path) as dataset:
            loader = Loader(dataset, batch_size, shuffle=True, drop_last=True)
            started = time.perf_counter()
            for batch in tqdm(loader, desc="loading", unit="step"):
                step(batch.image_a, batch.image_b, batch.text)
            seconds = time.perf_counter() - started
    print(f"\nwaited for data {loader.waited:.3f} s of {seconds:.1f} s: {loader.waited / seconds:.2%}")


def streaming(threads: int, pairs: int, rounds: int) -> None:
    """Fuse a data set as test.py does, and its pairs by the network alone; print the ratio of the times."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import cv2

    from net.Film import Net
    from utils.data.h5 import H5Dataset, Sample, write_h5
    from utils.evaluation.inference import fuse_unstretched
    from utils.evaluation.stream import fuse_dataset
    from utils.runtime.jittor_env import use_device

    use_device("cpu")
    net = Net()
    rng = np.random.default_rng(0)

    def image() -> np.ndarray:
        smooth = cv2.GaussianBlur(rng.random(PAIR_SIZE), (0, 0), 12)
        noisy = cv2.normalize(smooth, None, 20, 230, cv2.NORM_MINMAX) + rng.normal(0, 1.5, PAIR_SIZE)
        return np.round(noisy).clip(0, 255).astype(np.float32)[None] / np.float32(255)

    text = random_inputs(1, 1, 1)[2][0]
    samples = [Sample(f"{number}", image(), image(), text) for number in range(pairs)]
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "Random_test.h5", Path(folder) / "out"
        write_h5(path, samples)

        def alone() -> None:
            for sample in samples:
                fuse_unstretched(net, sample.image_a[None], sample.image_b[None], sample.text[None])

        def streamed() -> None:
            with H5Dataset(path) as dataset, redirect_stdout(None):
                fuse_dataset(net, dataset, out, out, {})

        network, whole = (seconds / pairs for seconds in medians([alone, streamed], rounds))
    print(f"\na pair of {PAIR_SIZE[0]}x{PAIR_SIZE[1]}, read, fused, written and measured: {whole:.3f} s")
    print(f"the network alone: {network:.3f} s, {network / whole:.1%}")


# --- metrics, text


def metrics_of_a_pair(rounds: int) -> None:
    """Time the metrics of one 480x640 pair, and their plain formulas, on one core."""
    import cv2

    from tools import plain_metrics
    from utils.evaluation import metrics

    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    images = [cv2.GaussianBlur(rng.random((480, 640)), (0, 0), 2) for _ in range(3)]
    images = [np.round((x - x.min()) / np.ptp(x) * 255) for x in images]
    print(f"{'':<14}{'ms':>9}{'plain ms':>11}{'ratio':>8}   medians of {rounds} alternating rounds, 480x640, one core")
    for name in ("viff", "qabf", "evaluate_pair"):
        fast, plain = medians([partial(getattr(module, name), *images) for module in (metrics, plain_metrics)], rounds)
        print(f"{name:<14}{fast * 1e3:>9.1f}{plain * 1e3:>11.1f}{plain / fast:>8.1f}")


def encoding_of_texts(encoder: str, threads: int, rounds: int) -> None:
    """Time our text encoder on the paragraphs of the sample, and transformers called with one text at a time."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from utils.text.encoder import TextEncoder

    torch.set_num_threads(threads)
    texts = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("VLFDataset/Text/*/Sample/*.txt"))]
    ours = TextEncoder(encoder)
    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    padding = {"padding": "max_length", "max_length": TEXT_SHAPE[0], "truncation": True}

    @torch.inference_mode()
    def one_at_a_time() -> None:
        for text in texts:
            tokens = tokenizer(text, **padding, return_tensors="pt")
            model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])

    def batched() -> None:
        list(ours.encode(ours.tokenize(texts)))

    plain, fast = (seconds / len(texts) * 1e3 for seconds in medians([one_at_a_time, batched], rounds))
    print(f"\na text: {fast:.0f} ms batched, {plain:.0f} ms one at a time, {plain / fast:.2f} times the rate")


# --- preprocess


def make_pairs(root: Path, count: int) -> None:
    """Write a data set `Pairs` in the layout of VLFDataset: PNGs about as large as those of MSRS, and text features."""
    import cv2

    from utils.data.stored import STORED_SHAPE
    from utils.data.tasks import TASKS

    rng = np.random.default_rng(0)
    names = [f"{number:04}" for number in range(count)]
    base, features = root / "Image" / "IVF" / "Pairs", root / "TextFeature" / "IVF" / "Pairs"
    for folder, channels, noise in zip(TASKS["IVF"].folders, (1, 3), (1.5, 1.0), strict=True):
        (base / folder).mkdir(parents=True)
        for number, name in enumerate(names):
            path, shape = base / folder / f"{name}.png", (*PAIR_SIZE, channels)
            if number >= DISTINCT:
                path.symlink_to(f"{names[number % DISTINCT]}.png")
                continue
            smooth = cv2.GaussianBlur(rng.random(shape), (0, 0), 12)
            smooth = cv2.normalize(smooth, None, 20, 230, cv2.NORM_MINMAX).reshape(shape)
            cv2.imwrite(str(path), (smooth + rng.normal(0, noise, shape)).clip(0, 255).astype(np.uint8))
    features.mkdir(parents=True)
    feature = rng.standard_normal(STORED_SHAPE).astype(np.float32)
    for name in names:
        np.save(features / f"{name}.npy", feature)
    (base / "train.txt").write_text("".join(f"{name}.png\n" for name in names))


def plain_preprocess(root: Path, path: Path) -> None:
    """Write the H5 file of `make_pairs` by the steps of the official script, pair by pair (film.md, section 4)."""
    import cv2
    import h5py

    from utils.data.tasks import TASKS

    base = root / "Image" / "IVF" / "Pairs"
    with h5py.File(path, "w") as file:
        for line in tqdm((base / "train.txt").read_text().splitlines()):
            name = Path(line).stem
            for key, folder in zip(("imageA", "imageB"), TASKS["IVF"].folders, strict=True):
                image = cv2.imread(str(base / folder / line)).astype("float32")
                image = np.round(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
                file[f"{key}/{name}"] = cv2.resize(image, STAGE_SIZE[::-1])[None] / 255.0
            file[f"text/{name}"] = np.load(root / "TextFeature" / "IVF" / "Pairs" / f"{name}.npy")


def busy_and_total() -> np.ndarray:
    """Processor seconds of all cores since the machine started: busy ones, and all (proc(5))."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return np.array([sum(ticks) - ticks[3] - ticks[4], sum(ticks)]) / os.sysconf("SC_CLK_TCK")


def measured(command: Sequence[str], cores: Sequence[int]) -> tuple[float, float, float]:
    """Run a Python command of this project on these cores.

    Returns:
        Seconds, peak memory (MB), and the share of the machine that other processes used meanwhile.
    """
    before, started = busy_and_total(), time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = programs.start([sys.executable, *command], cwd=ROOT, **quiet)
    os.sched_setaffinity(process.pid, cores)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{' '.join(command)}: failed")
    seconds, (busy, total) = time.perf_counter() - started, busy_and_total() - before
    return seconds, usage.ru_maxrss * 1024 / 1e6, max(0.0, busy - usage.ru_utime - usage.ru_stime) / total


def preprocess(pairs: int, rounds: int, cores: Sequence[int]) -> None:
    """Time data_process.py and `plain_preprocess` alternately, including their start, on the same pairs and cores.

    The ratio means something only if other processes used little of the processor; their share is printed too.

    Raises:
        UserError: one of the commands failed, or their files differ.
    """
    import h5py

    # In memory if possible: the disk is not what is measured.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        root, our_file, plain_file = Path(folder), Path(folder) / "Pairs_train.h5", Path(folder) / "plain.h5"
        make_pairs(root, pairs)
        commands = (
            ("-m", "tools.benchmark", "plain", str(root), str(plain_file)),
            ("data_process.py", "--dataset", "Pairs", "--root", str(root), "--out", str(root)),
        )
        runs = {command: [] for command in commands}
        for command in tqdm(alternating(commands, rounds), desc=f"{len(cores)} cores", unit="run"):
            runs[command].append(measured(command, cores))
        with h5py.File(our_file) as ours, h5py.File(plain_file) as plain:
            for name in (f"{group}/{name}" for group in plain for name in plain[group]):
                if not np.array_equal(ours[name], plain[name]):
                    raise UserError(f"{our_file}: {name} is not what the plain form writes")
    (plain_seconds, seconds), (_, peak), others = np.array([*runs.values()]).transpose(2, 0, 1)
    plain_rate, rate = (pairs / np.median(times) for times in (plain_seconds, seconds))
    print(
        f"{len(cores)} cores: {np.median(plain_seconds / seconds):.2f} times the plain rate ({rate:.0f} and "
        f"{plain_rate:.0f} pairs/s), peak {peak.max():.0f} MB for {pairs} pairs; others took {np.median(others):.0%} "
        "of the processor"
    )


def preprocess_on_cores(pairs: int, rounds: int) -> None:
    """`preprocess` on one core, on two and on all."""
    cores = sorted(os.sched_getaffinity(0))
    for count in sorted({1, 2, len(cores)} & {*range(len(cores) + 1)}):
        preprocess(pairs, rounds, cores[:count])


def get_args_parser() -> argparse.ArgumentParser:
    """The command line. Its result holds `run`, the function of the case, and the function's arguments by name."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description="Time FILM and other ways to compute it."
    )
    commands = parser.add_subparsers(metavar="CASE", required=True)

    def case(name: str, run: Callable[..., None], threads: bool = True, rounds: int = 0, **about: str) -> Callable:
        sub = commands.add_parser(name, **about)
        sub.set_defaults(run=run)
        if threads:
            sub.add_argument("--threads", type=int, default=usable_cores(), help="threads of every contender")
        if rounds:
            sub.add_argument("--rounds", type=int, default=rounds, help="timed runs of each (default: %(default)s)")
        return sub.add_argument

    for name, (contenders, *_, rounds, _) in CASES.items():
        add = case(name, partial(compare_sizes, name), rounds=rounds, help=f"contenders: {', '.join(contenders)}")
        add("--json", dest="json_file", type=Path, metavar="FILE", help="write machine, versions and all rounds here")
        add("--only", nargs="+", choices=tuple(contenders), default=tuple(contenders), metavar="NAME")
    case("start", starts, help="compiling the kernels, and a start with compiled kernels")
    add = case("sizes", new_sizes, help="does an image of a new size take longer?")
    add("--count", type=int, default=20, help="how many sizes")
    add = case("loading", waiting_for_data, help="how long does training wait for its data?")
    add("--steps", type=int, default=8, help="training steps")
    add = case("stream", streaming, rounds=5, help="test.py's loop over a data set, and the network alone")
    add("--pairs", type=int, default=8, help="pairs of 480x640 (default: %(default)s)")
    case("metrics", metrics_of_a_pair, threads=False, rounds=5, help="the metrics of a pair, and their plain formulas")
    add = case("text", encoding_of_texts, rounds=5, help="paragraphs in batches, and one at a time")
    add("--encoder", type=not_empty, required=True, help="folder or name of a text encoder, as in data_process.py")
    add = case("preprocess", preprocess_on_cores, threads=False, rounds=7, help="data_process.py, and a plain form")
    add("--pairs", type=int, default=300, help="pairs of 480x640 (default: %(default)s)")
    # Without a help text, these processes of the cases above are not listed.
    add = case("worker", work, threads=False)
    add("case")
    add("name")
    add("numbers", type=int, nargs=3)
    add = case("plain", plain_preprocess, threads=False)
    add("root", type=path_type)
    add("path", type=path_type)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = vars(get_args_parser().parse_args(argv))
    options.pop("run")(**options)


if __name__ == "__main__":
    sys.exit(run_command(main))
