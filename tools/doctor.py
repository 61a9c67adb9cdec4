"""What this machine has of what FILM needs, and whether it computes as fast as it could.

    python -m tools.doctor            one page
    python -m tools.doctor --json     the same as JSON

The exit code is 0 where FILM can run, else 1; every line that stands in the way names the way out. It works on a broken
machine: nothing is imported before it is needed, and a check that fails itself says so in its line.

How fast is fast: a small program, compiled on the spot, measures what this machine's arithmetic units and its memory
give at best right now (on a GPU: a large matrix product and a large addition). From the operations and bytes of a
kernel follows the least time it can take (the roofline bound). A kernel is 'ok' up to `allowance` times that.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.runtime import cuda
from utils.runtime.cli import run_command
from utils.runtime.jittor_tree import jittor_home

OK, NOTE, SLOW, FAIL = "ok", "note", "slow", "FAIL"
PYTHONS = ((3, 11), (3, 14))
OLDEST_COMPILER = 9  # the first g++ that knows every instruction set of today's servers
BUSY = 0.8  # share of its threads' time that an undisturbed program gets
GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the page; `advice` says what to do unless all is well."""

    name: str
    state: str
    text: str
    advice: str = ""


Check = Callable[[], Iterator[Finding]]


def output_of(*command: str | Path) -> str:
    """What a program prints; empty where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def compiler() -> str:
    return os.environ.get("cc_path") or "g++"


def check_python() -> Iterator[Finding]:
    low, high = PYTHONS
    version = sys.version_info[:2]
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if low <= version <= high:
        yield Finding("Python", OK, text)
    else:
        yield Finding("Python", FAIL, text, "make a virtual environment with Python 3.11 to 3.14")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        yield Finding("Python headers", FAIL, f"no {header}", "Debian, Ubuntu: apt install python3-dev")


def check_packages() -> Iterator[Finding]:
    for name, package in (("numpy", "numpy"), ("Jittor", "jittor")):
        version = installed(package)
        advice = "" if version else "pip install --no-deps -r requirements.lock"
        yield Finding(name, OK if version else FAIL, version or "not installed", advice)


def check_compiler() -> Iterator[Finding]:
    path = shutil.which(compiler())
    if path is None:
        yield Finding("compiler", FAIL, f"no {compiler()}", "Debian, Ubuntu: apt install g++")
        return
    version = first_line(output_of(path, "--version"))
    number = re.search(r"(\d+)\.\d+", output_of(path, "-dumpfullversion") or version)
    if not version:
        yield Finding("compiler", FAIL, f"{path} does not run", "reinstall it, or set cc_path to one that works")
    elif number and "clang" not in version and int(number[1]) < OLDEST_COMPILER:
        yield Finding("compiler", NOTE, f"{version} at {path}", f"old: g++ {OLDEST_COMPILER} or newer is faster")
    else:
        yield Finding("compiler", OK, f"{version} at {path}")


def check_onednn() -> Iterator[Finding]:
    # Jittor takes what lies here, and else downloads it
    places = sorted((jittor_home() / ".cache" / "jittor" / "mkl").glob("dnnl*/lib/libmkldnn.so"))
    library = next((path for path in places if path.exists()), Path())
    wheel = installed("onednn-cpu-gomp")
    if library.is_symlink():
        version = f"version {wheel}, " if wheel else ""
        yield Finding("oneDNN", OK, f"{version}of the wheel onednn-cpu-gomp, {library.resolve()}")
    elif library.is_file():
        yield Finding("oneDNN", OK, f"Jittor's own download (2.2.0), {library}")
    elif wheel:
        yield Finding("oneDNN", OK, f"version {wheel} of the wheel onednn-cpu-gomp; linked at Jittor's first start")
    else:
        text = "none; Jittor downloads its own (2.2.0) at its first start"
        yield Finding("oneDNN", NOTE, text, "without network: pip install --no-deps -r requirements.lock")


def check_cuda() -> Iterator[Finding]:
    found = cuda.look()
    problem = cuda.problem(found)
    for gpu in found.gpus:
        capability = cuda.text_of(gpu.capability)
        yield Finding("GPU", OK, f"{gpu.name}, {gpu.memory / GIB:.1f} GiB, compute capability {capability}")
    if found.driver:
        yield Finding("driver", OK, f"up to CUDA {cuda.text_of(found.driver)}")
    if found.nvcc:
        version = found.version or cuda.nvcc_version(found.nvcc)
        yield Finding("nvcc", OK if version else NOTE, f"{cuda.text_of(version)} at {found.nvcc}")
        root = found.root or cuda.toolkit_root(found.nvcc)
        libraries = found.libraries or (cuda.find_libraries(root, version) if version else {})
        for name in cuda.LIBRARIES:
            library = libraries.get(name)
            yield Finding(name, OK, str(library.file)) if library else Finding(name, NOTE, "not found")
        cudnn = [path for lib in ("lib64", "lib") for path in (root / lib).glob("libcudnn.so*")]
        yield Finding("cuDNN", OK, f"{cudnn[0] if cudnn else 'none'}; FILM does without")
    if problem is None:
        yield Finding("CUDA", OK, "all that FILM needs is there; whether it computes: see Jittor")
    elif found.seems_there:
        yield Finding("CUDA", NOTE, f"not used: {problem}", "the CPU computes; --device cuda asks for the GPU")
    else:
        yield Finding("CUDA", OK, "no NVIDIA GPU; the CPU computes")


def check_mpi() -> Iterator[Finding]:
    for program in ("mpicc", "mpirun"):
        path = shutil.which(program)
        if path is None:
            yield Finding(program, OK, "none; only needed for several processes (apt install libopenmpi-dev)")
        else:
            yield Finding(program, OK, f"{first_line(output_of(path, '--version'))} at {path}")


def check_cache() -> Iterator[Finding]:
    folder = jittor_home() / ".cache" / "jittor"
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    yield Finding("cache", OK, f"{folder}, {size / (1 << 20):.0f} MiB in {len(files)} files")
    free = shutil.disk_usage(folder if folder.is_dir() else Path.home()).free
    if free < GIB:
        yield Finding("disk", NOTE, f"{free / GIB:.1f} GiB free", "compiled kernels need about 1 GiB")


@dataclass(frozen=True)
class Yardstick:
    """What this machine gives at best: float32 operations and bytes a second, and the share of its time it gave us."""

    operations: float
    bytes: float
    share: float = 1.0


# Two FMA chains would wait for each other; 16 vectors keep the units of every CPU busy. Then out[i] = in[i] + 1.
YARDSTICK = r"""
#include <cstdio>
#include <ctime>
#include <vector>
#include <omp.h>
typedef float vec __attribute__((vector_size(64)));
static double now(clockid_t id) { timespec t; clock_gettime(id, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
int main() {
    const int threads = omp_get_max_threads(), rounds = 400000;
    const long n = 1 << 24;
    std::vector<float> a(n, 1), b(n, 2), sums(threads);
    double best_flops = 0, best_bytes = 0, wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    for (int repeat = 0; repeat < 5; repeat++) {
        double start = now(CLOCK_MONOTONIC);
        #pragma omp parallel
        {
            vec x[16], m = vec{} + 0.999f, c = vec{} + 0.001f * omp_get_thread_num();
            for (int j = 0; j < 16; j++) x[j] = vec{} + (float)j;
            for (int i = 0; i < rounds; i++)
                for (int j = 0; j < 16; j++) x[j] = x[j] * m + c;
            for (int j = 0; j < 16; j++) sums[omp_get_thread_num()] += x[j][0];
        }
        double flops = 2.0 * 16 * 16 * rounds * threads / (now(CLOCK_MONOTONIC) - start);
        if (flops > best_flops) best_flops = flops;
        start = now(CLOCK_MONOTONIC);
        #pragma omp parallel for
        for (long i = 0; i < n; i++) b[i] = a[i] + 1;
        double bytes = 8.0 * n / (now(CLOCK_MONOTONIC) - start);
        if (bytes > best_bytes) best_bytes = bytes;
    }
    double share = (now(CLOCK_PROCESS_CPUTIME_ID) - cpu) / (now(CLOCK_MONOTONIC) - wall) / threads;
    float sum = b[n / 2];
    for (float s : sums) sum += s;
    printf("%g %g %g %g\n", best_flops, best_bytes, share, sum);
}
"""


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_yardstick() -> Yardstick:
    """Compile and run YARDSTICK on all cores this process may use."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "yardstick.cc", Path(folder) / "yardstick"
        source.write_text(YARDSTICK)
        subprocess.run(
            [compiler(), "-O3", "-march=native", "-fopenmp", "-w", source, "-o", program],
            check=True,
            capture_output=True,
            timeout=120,
        )
        environment = os.environ | {"OMP_NUM_THREADS": str(cores())}
        printed = subprocess.run([program], check=True, capture_output=True, text=True, timeout=120, env=environment)
    operations, moved, share, _ = map(float, printed.stdout.split())
    return Yardstick(operations, moved, share)


def best_time(compute: Callable[[], Any], repeats: int = 4) -> float:
    """The shortest of several runs, in seconds; the first compiles and does not count.

    `compute` gives a Var or several; a new one each time, since Jittor computes a Var once.
    """
    from utils.runtime.jittor_env import jt

    best = float("inf")
    for repeat in range(repeats + 1):
        jt.sync_all(True)
        started = time.perf_counter()
        jt.sync(compute(), True)
        jt.sync_all(True)
        if repeat:
            best = min(best, time.perf_counter() - started)
    return best


def gpu_yardstick() -> Yardstick:
    """A matrix product of 4096 and y = x + 1 over 256 MiB, by Jittor."""
    from utils.runtime.jittor_env import jt

    n = 4096
    a, x = jt.ones((n, n)), jt.ones((1 << 26,))
    product, addition = best_time(lambda: [jt.matmul(a, a)]), best_time(lambda: [x + 1])
    return Yardstick(2 * n**3 / product, 8 * x.numel() / addition)


@dataclass(frozen=True)
class Kernel:
    """A computation of FILM's with its float32 operations and least bytes moved, and how far from the bound is 'ok'."""

    name: str
    operations: float
    bytes: float
    allowance: float
    compute: Callable[[], Any]

    def bound(self, yardstick: Yardstick) -> float:
        """The least time this can take, in seconds."""
        return max(self.operations / yardstick.operations, self.bytes / yardstick.bytes)


def kernels() -> list[Kernel]:
    """A few kernels of FILM's at the size of its training images, 288x384."""
    from net import ops
    from net.restormer import TransformerBlock
    from net.shapes import STAGE_SIZE
    from utils.runtime.jittor_env import jt

    n, dim, hidden = 1024, 32, 128
    pixels = STAGE_SIZE[0] * STAGE_SIZE[1]
    a = jt.random((n, n))
    image, x = jt.random((1, 1, *STAGE_SIZE)), jt.random((1, dim, *STAGE_SIZE))
    weight, windows = jt.random((3 * dim, dim, 1, 1)), jt.random((dim, 1, 3, 3))
    block = TransformerBlock(dim)
    jt.sync([a, image, x, weight, windows, *block.parameters()], True)

    # a pixel of the block: 1x1 convolutions, 3x3 windows, channel attention of 8 heads of 4 channels, norms and GELU
    pointwise = 2 * dim * (3 * dim + dim + 2 * hidden + hidden)
    block_operations = pixels * (pointwise + 18 * (3 * dim + 2 * hidden) + 4 * dim * dim // 8 + 20 * (dim + hidden))

    def backward() -> list[jt.Var]:
        return jt.grad((block(x) * x).sum(), [x, *block.parameters()])

    return [
        Kernel("matrix product", 2 * n**3, 12 * n * n, 3, lambda: [jt.matmul(a, a)]),
        Kernel(
            "1x1 convolution",
            2 * dim * 3 * dim * pixels,
            4 * 4 * dim * pixels,
            4,
            lambda: [ops.pointwise_conv(x, weight)],
        ),
        Kernel(
            "3x3 convolution",
            18 * dim * pixels,
            4 * (1 + dim) * pixels,
            4,
            lambda: [ops.conv3x3(image, windows)],
        ),
        Kernel("block, forward", block_operations, 16 * dim * pixels, 6, lambda: [block(x)]),
        # backward computes the inside again, then two products for each of the forward pass
        Kernel("block, backward too", 4 * block_operations, 32 * dim * pixels, 6, backward),
    ]


@dataclass(frozen=True)
class Circumstances:
    """What could make kernels slow here."""

    reference: bool = False  # FILM_REFERENCE=1
    threads: int = 1
    cores: int = 1
    share: float = 1.0  # of its time that the yardstick got
    load: float = 0.0  # programs that want to run, of others too
    cpu_simd: str = ""  # the widest instruction set of the CPU
    compiler_simd: str = ""  # the widest that the compiler uses for it
    debug: bool = False
    gpu: bool = False


SIMD = {"avx512f": "__AVX512F__", "avx2": "__AVX2__"}  # /proc/cpuinfo -> the compiler's macro, widest first


def circumstances(share: float) -> Circumstances:
    """Look around, with Jittor up."""
    from net import ops
    from utils.runtime.jittor_env import jt

    cpuinfo = Path("/proc/cpuinfo")
    flags = set(re.findall(r"\w+", cpuinfo.read_text())) if cpuinfo.is_file() else set()
    macros = output_of(compiler(), "-march=native", "-dM", "-E", "-x", "c", "/dev/null")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Circumstances(
        reference=ops.reference_in_use(),
        threads=int(threads) if threads.isdigit() else cores(),
        cores=cores(),
        share=share,
        load=os.getloadavg()[0],
        cpu_simd=next((name for name in SIMD if name in flags), ""),
        compiler_simd=next((name for name, macro in SIMD.items() if macro in macros), ""),
        debug=os.environ.get("debug") == "1" or "-O0" in jt.flags.cc_flags or " -G " in jt.flags.nvcc_flags,
        gpu=bool(jt.flags.use_cuda),
    )


def likely_cause(seen: Circumstances) -> tuple[str, str]:
    """Why a kernel is slow, most likely, and what to do; the surest sign first."""
    if seen.debug:
        return "Jittor is a debug build", "unset debug and cc_flags, delete Jittor's cache"
    if seen.reference:
        return "FILM_REFERENCE=1 switches FILM's kernels off", "unset it"
    if not seen.gpu and seen.threads < seen.cores:
        return f"{seen.threads} of {seen.cores} cores in use", "unset OMP_NUM_THREADS"
    if not seen.gpu and (seen.share < BUSY or seen.load > seen.cores * 1.5):
        return (
            f"other programs are running (load {seen.load:.1f} on {seen.cores} cores)",
            "try again when they are done",
        )
    if seen.cpu_simd != seen.compiler_simd:
        other = seen.compiler_simd or "none of them"
        return f"the CPU has {seen.cpu_simd}, the compiler uses {other}", "install a newer g++"
    if not seen.gpu and not seen.cpu_simd:
        return "the CPU has no AVX2", "FILM runs here, slowly; another machine will help"
    return "nothing known", "open an issue with the output of --json"


def judge(kernel: Kernel, seconds: float, yardstick: Yardstick, seen: Circumstances) -> Finding:
    """'ok' within the kernel's allowance, else 'slow' with cause and way out."""
    bound = kernel.bound(yardstick)
    text = f"{seconds * 1e3:.1f} ms; at best {bound * 1e3:.1f} ms, {seconds / bound:.1f} times"
    if seconds <= kernel.allowance * bound:
        return Finding(kernel.name, OK, text)
    cause, advice = likely_cause(seen)
    return Finding(kernel.name, SLOW, f"{text} (ok: up to {kernel.allowance:g}): {cause}", advice)


def check_speed(device: str) -> Iterator[Finding]:
    """Bring Jittor up, then time the kernels."""
    from utils.runtime.jittor_env import jt, use_device

    yield Finding("Jittor starts", OK, use_device(device))
    yardstick = gpu_yardstick() if jt.flags.use_cuda else cpu_yardstick()
    seen = circumstances(yardstick.share)
    text = f"at best {yardstick.operations / 1e9:.0f} GFLOP/s and {yardstick.bytes / 1e9:.1f} GB/s"
    if jt.flags.use_cuda:
        yield Finding("this GPU", OK, text)
    else:
        simd = seen.cpu_simd or "no AVX2"
        text += f" on {seen.cores} cores, {simd}, load {seen.load:.1f}"
        busy = yardstick.share < BUSY
        yield Finding("this CPU", NOTE if busy else OK, text, f"busy: {yardstick.share:.0%} for us" if busy else "")
    for kernel in kernels():
        yield judge(kernel, best_time(kernel.compute), yardstick, seen)


def checks(device: str) -> dict[str, Check]:
    """The sections of the page; the last needs all before it."""
    return {
        "software": check_python,
        "packages": check_packages,
        "compiler": check_compiler,
        "oneDNN": check_onednn,
        "GPU": check_cuda,
        "MPI": check_mpi,
        "cache": check_cache,
        "speed": lambda: check_speed(device),
    }


def examine(sections: dict[str, Check]) -> Iterator[Finding]:
    """All findings. A check that breaks off is a finding; 'speed' is only tried where nothing stands in its way."""
    failed = False
    for name, check in sections.items():
        if name == "speed" and failed:
            yield Finding(name, NOTE, "not measured", "first see to the lines above")
            continue
        try:
            for finding in check():
                failed |= finding.state == FAIL
                yield finding
        # Jittor may also exit where something is wrong with it.
        except (Exception, SystemExit) as error:
            reason = first_line(str(error)) or type(error).__name__
            state = FAIL if name == "speed" else NOTE
            failed |= state == FAIL
            yield Finding(name, state, f"cannot be told: {reason}", "see to that first" if state == FAIL else "")


def line_of(finding: Finding) -> str:
    advice = f"\n{'':28}-> {finding.advice}" if finding.advice else ""
    return f"{finding.state:5} {finding.name:20}  {finding.text}{advice}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the page.

    Raises:
        SystemExit: with 1, FILM cannot run here.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="what to time (default: auto)"
    )
    args = parser.parse_args(argv)
    findings = []
    for finding in examine(checks(args.device)):
        findings.append(finding)
        if not args.json:
            print(line_of(finding), flush=True)
    runs = all(finding.state != FAIL for finding in findings)
    if args.json:
        print(json.dumps({"runs": runs, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print("\nFILM can run here." if runs else "\nFILM cannot run here: see the lines marked FAIL.")
    if not runs:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(run_command(main))
