"""Check whether this machine has what FILM needs, and whether it is as fast as it could be.

    python -m tools.doctor            one page
    python -m tools.doctor --json     the same as JSON

The exit code is 0 if FILM can run, else 1. Every problem is a line that says what to do. The page appears on a broken
machine too: nothing is imported before it is needed, and a check that raises an error becomes a line.

Speed: a small program measures the machine's best arithmetic rate and memory bandwidth (on a GPU: a large matrix
product and a large addition). These two rates and a kernel's operations and bytes give the least time that it can take
(roofline model). A kernel is 'ok' up to a certain multiple of that time.
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

from utils.runtime import cores, cuda, programs
from utils.runtime.cli import RawHelpFormatter, run_command
from utils.runtime.jittor_tree import cache_folder, jittor_home

OK, NOTE, SLOW, FAIL = "ok", "note", "slow", "FAIL"
PYTHONS = ((3, 11), (3, 14))
OLDEST_COMPILER = 9  # the first g++ that knows every instruction set of today's servers
BUSY = 0.8  # a program that gets less than this share of its threads' time competes with others
GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the page; `advice` says what to do about a problem."""

    name: str
    state: str
    text: str
    advice: str = ""


Check = Callable[[], Iterator[Finding]]


def output_of(*command: str | Path) -> str:
    """What a program prints; empty if it is missing or fails."""
    try:
        done = programs.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def first_line(text: str) -> str:
    """The first line of a program's output; empty if there is none."""
    return text.strip().splitlines()[0] if text.strip() else ""


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python() -> Iterator[Finding]:
    """Python's version and headers."""
    low, high = PYTHONS
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if low <= sys.version_info[:2] <= high:
        yield Finding("Python", OK, text)
    else:
        yield Finding("Python", FAIL, text, "make a virtual environment with Python 3.11 to 3.14")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        yield Finding("Python headers", FAIL, f"no {header}", "Debian, Ubuntu: apt install python3-dev")


def check_packages() -> Iterator[Finding]:
    """NumPy and Jittor."""
    for name, package in (("numpy", "numpy"), ("Jittor", "jittor")):
        version = installed(package)
        advice = "" if version else "pip install --no-deps -r requirements.lock"
        yield Finding(name, OK if version else FAIL, version or "not installed", advice)


def check_compiler() -> Iterator[Finding]:
    """The C++ compiler and its version."""
    path = shutil.which(cuda.host_compiler())
    if path is None:
        yield Finding("compiler", FAIL, f"no {cuda.host_compiler()}", "Debian, Ubuntu: apt install g++")
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
    """The oneDNN that Jittor will use."""
    # Jittor uses what it finds here, and downloads it otherwise.
    places = sorted((cache_folder() / "mkl").glob("dnnl*/lib/libmkldnn.so"))
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
    """The GPUs, the driver, the parts of the toolkit, and whether Jittor can use them."""
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
        yield Finding("cuDNN", OK, f"{cudnn[0] if cudnn else 'none'}; FILM does not need it")
    if problem is None:
        yield Finding("CUDA", OK, "everything that FILM needs is installed; see Jittor for whether it works")
    elif found.seems_there:
        yield Finding("CUDA", NOTE, f"not used: {problem}", "the CPU is used; with --device cuda this is an error")
    else:
        yield Finding("CUDA", OK, "no NVIDIA GPU; the CPU is used")


def check_mpi() -> Iterator[Finding]:
    """MPI, for several processes."""
    for program in ("mpicc", "mpirun"):
        path = shutil.which(program)
        if path is None:
            yield Finding(program, OK, "none; only needed for several processes (apt install libopenmpi-dev)")
        else:
            yield Finding(program, OK, f"{first_line(output_of(path, '--version'))} at {path}")


def check_cache() -> Iterator[Finding]:
    """The size of Jittor's cache, and the disk space left for it."""
    folder = cache_folder()
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    yield Finding("cache", OK, f"{folder}, {size / (1 << 20):.0f} MiB in {len(files)} files")
    free = shutil.disk_usage(folder if folder.is_dir() else jittor_home()).free
    if free < GIB:
        yield Finding("disk", NOTE, f"{free / GIB:.1f} GiB free", "compiled kernels need about 1 GiB")


@dataclass(frozen=True)
class Yardstick:
    """The best that this machine does: float32 operations and bytes per second; and the share of time it gave us."""

    operations: float
    bytes: float
    share: float = 1.0


# FMAs on 16 independent vectors keep the arithmetic units of every CPU busy. Then b[i] = a[i] + 1 for the memory.
YARDSTICK = r"""
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <vector>
#include <omp.h>
typedef float vec __attribute__((vector_size(64)));
int main() {
    const int threads = omp_get_max_threads(), rounds = 400000;
    const long n = 1 << 24;
    std::vector<float> a(n, 1), b(n, 2), sums(threads);
    double flops = 0, bytes = 0, wall = omp_get_wtime(), cpu = clock();
    for (int repeat = 0; repeat < 5; repeat++) {
        double start = omp_get_wtime();
        #pragma omp parallel
        {
            vec x[16], m = vec{} + 0.999f, c = vec{} + 0.001f * omp_get_thread_num();
            for (int j = 0; j < 16; j++) x[j] = vec{} + (float)j;
            for (int i = 0; i < rounds; i++)
                for (int j = 0; j < 16; j++) x[j] = x[j] * m + c;
            for (int j = 0; j < 16; j++) sums[omp_get_thread_num()] += x[j][0];
        }
        flops = std::max(flops, 2.0 * 16 * 16 * rounds * threads / (omp_get_wtime() - start));
        start = omp_get_wtime();
        #pragma omp parallel for
        for (long i = 0; i < n; i++) b[i] = a[i] + 1;
        bytes = std::max(bytes, 8.0 * n / (omp_get_wtime() - start));
    }
    double share = (clock() - cpu) / CLOCKS_PER_SEC / (omp_get_wtime() - wall) / threads;
    float sum = b[n / 2];
    for (float s : sums) sum += s;
    printf("%g %g %g %g\n", flops, bytes, share, sum);
}
"""


def cpu_yardstick() -> Yardstick:
    """Compile and run YARDSTICK on all cores this process may use."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "yardstick.cc", Path(folder) / "yardstick"
        source.write_text(YARDSTICK)
        options = {"check": True, "capture_output": True, "text": True, "timeout": 120}
        programs.run([cuda.host_compiler(), "-O3", "-march=native", "-fopenmp", "-w", source, "-o", program], **options)
        printed = programs.run([program], env=os.environ | {cores.VARIABLE: str(cores.usable())}, **options).stdout
    return Yardstick(*map(float, printed.split()[:3]))


def best_time(compute: Callable[[], Any], repeats: int = 4) -> float:
    """The shortest of several runs, in seconds; the first compiles and does not count.

    `compute` returns new Vars at each call, since Jittor computes a Var only once.
    """
    from utils.runtime.jittor_env import jt

    times = []
    for _ in range(repeats + 1):
        jt.sync_all(True)
        started = time.perf_counter()
        jt.sync(compute(), True)
        jt.sync_all(True)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def gpu_yardstick() -> Yardstick:
    """A product of 4096x4096 matrices, and y = x + 1 over 256 MiB, by Jittor."""
    from utils.runtime.jittor_env import jt

    n = 4096
    a, x = jt.ones((n, n)), jt.ones((1 << 26,))
    product, addition = best_time(lambda: [jt.matmul(a, a)]), best_time(lambda: [x + 1])
    return Yardstick(2 * n**3 / product, 8 * x.numel() / addition)


@dataclass(frozen=True)
class Kernel:
    """A computation of FILM: float32 operations, least bytes moved, and the multiple of the bound that is still ok."""

    name: str
    operations: float
    bytes: float
    allowance: float
    compute: Callable[[], Any]

    def bound(self, yardstick: Yardstick) -> float:
        """The least time this can take, in seconds."""
        return max(self.operations / yardstick.operations, self.bytes / yardstick.bytes)


def kernels() -> list[Kernel]:
    """A few kernels of FILM at the size of its training images, 288x384."""
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

    # Per pixel of the block: 1x1 convolutions, 3x3 windows, attention of 8 heads of 4 channels, norms and GELU.
    pointwise = 2 * dim * (3 * dim + dim + 2 * hidden + hidden)
    block_operations = pixels * (pointwise + 18 * (3 * dim + 2 * hidden) + 4 * dim * dim // 8 + 20 * (dim + hidden))

    def backward() -> list[jt.Var]:
        return jt.grad((block(x) * x).sum(), [x, *block.parameters()])

    # The backward pass repeats the forward pass, then computes two products for each one in it.
    return [
        Kernel("matrix product", 2 * n**3, 12 * n * n, 3, lambda: [jt.matmul(a, a)]),
        Kernel("1x1 convolution", 6 * dim**2 * pixels, 16 * dim * pixels, 4, lambda: [ops.pointwise_conv(x, weight)]),
        Kernel("3x3 convolution", 18 * dim * pixels, 4 * (1 + dim) * pixels, 4, lambda: [ops.conv3x3(image, windows)]),
        Kernel("block, forward", block_operations, 16 * dim * pixels, 6, lambda: [block(x)]),
        Kernel("block, backward too", 4 * block_operations, 32 * dim * pixels, 6, backward),
    ]


@dataclass(frozen=True)
class Circumstances:
    """What could make kernels slow here."""

    reference: bool = False  # FILM_REFERENCE=1
    threads: int = 1
    cores: int = 1
    share: float = 1.0  # of its threads' time that the yardstick got
    load: float = 0.0  # the system's load average
    cpu_simd: str = ""  # widest instruction set of the CPU
    compiler_simd: str = ""  # widest one that the compiler uses
    debug: bool = False
    gpu: bool = False


SIMD = {"avx512f": "__AVX512F__", "avx2": "__AVX2__"}  # /proc/cpuinfo -> the compiler's macro, widest first


def cpu_simd() -> str:
    """The widest instruction set of `SIMD` that the CPU has; empty if none."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(re.findall(r"\w+", cpuinfo.read_text())) if cpuinfo.is_file() else set()
    return next((name for name in SIMD if name in flags), "")


def compiler_simd() -> str:
    """The widest instruction set of `SIMD` that kernels are compiled for; empty if none."""
    flags = os.environ.get("cc_flags", "").split()  # Jittor adds these
    macros = output_of(cuda.host_compiler(), "-march=native", *flags, "-dM", "-E", "-x", "c", "/dev/null")
    return next((name for name, macro in SIMD.items() if macro in macros), "")


def circumstances(share: float) -> Circumstances:
    """The circumstances now, after Jittor has started."""
    from net import ops
    from utils.runtime.jittor_env import jt

    return Circumstances(
        reference=ops.reference_in_use(),
        threads=cores.count(),
        cores=cores.usable(),
        share=share,
        load=os.getloadavg()[0],
        cpu_simd=cpu_simd(),
        compiler_simd=compiler_simd(),
        debug=os.environ.get("debug") == "1" or "-O0" in jt.flags.cc_flags or " -G " in jt.flags.nvcc_flags,
        gpu=bool(jt.flags.use_cuda),
    )


def likely_cause(seen: Circumstances) -> tuple[str, str]:
    """The most likely reason for a slow kernel, and what to do about it."""
    cpu = not seen.gpu
    # The surest sign first.
    causes = (
        (seen.debug, "Jittor is a debug build", "unset debug and cc_flags, delete Jittor's cache"),
        (seen.reference, "FILM_REFERENCE=1 switches FILM's kernels off", "unset it"),
        (cpu and seen.threads < seen.cores, f"{seen.threads} of {seen.cores} cores in use", "unset OMP_NUM_THREADS"),
        (
            cpu and (seen.share < BUSY or seen.load > seen.cores * 1.5),
            f"other programs are running (load {seen.load:.1f} on {seen.cores} cores)",
            "try again when they have finished",
        ),
        (
            seen.cpu_simd != seen.compiler_simd,
            f"the CPU has {seen.cpu_simd}, the compiler uses {seen.compiler_simd or 'none of them'}",
            "install a newer g++",
        ),
        (cpu and not seen.cpu_simd, "the CPU has no AVX2", "FILM runs here, slowly; another machine will help"),
        (True, "nothing known", "open an issue with the output of --json"),
    )
    return next((cause, advice) for applies, cause, advice in causes if applies)


def judge(kernel: Kernel, seconds: float, yardstick: Yardstick, seen: Circumstances) -> Finding:
    """'ok' within the kernel's allowance, else 'slow' with the likely cause and what to do."""
    bound = kernel.bound(yardstick)
    text = f"{seconds * 1e3:.1f} ms; at best {bound * 1e3:.1f} ms, {seconds / bound:.1f} times"
    if seconds <= kernel.allowance * bound:
        return Finding(kernel.name, OK, text)
    cause, advice = likely_cause(seen)
    return Finding(kernel.name, SLOW, f"{text} (ok: up to {kernel.allowance:g}): {cause}", advice)


def check_speed(device: str) -> Iterator[Finding]:
    """Start Jittor, then time the kernels."""
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
    """The sections of the page in order; the last runs only if the others found no failure."""
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
    """All findings. An error of a check is a finding too; 'speed' is only measured if no check before it failed."""
    failed = False
    for name, check in sections.items():
        if name == "speed" and failed:
            yield Finding(name, NOTE, "not measured", "first solve the problems above")
            continue
        try:
            for finding in check():
                failed |= finding.state == FAIL
                yield finding
        # If something is wrong with Jittor, it may also exit.
        except (Exception, SystemExit) as error:
            state, advice = (FAIL, "solve this first") if name == "speed" else (NOTE, "")
            yield Finding(name, state, f"unknown: {first_line(str(error)) or type(error).__name__}", advice)


def line_of(finding: Finding) -> str:
    """A finding as it is printed, with its advice on a second line."""
    advice = f"\n{'':28}-> {finding.advice}" if finding.advice else ""
    return f"{finding.state:5} {finding.name:20}  {finding.text}{advice}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the page.

    Raises:
        SystemExit: with 1, FILM cannot run here.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--device", choices=cuda.DEVICES, default="auto", help="what to time")
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
