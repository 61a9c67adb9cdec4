"""A model of how fused images scale with threads, from the timings of the parallel regions.

    python -m tools.scaling                    # 1 to 64 threads, 288x384
    python -m tools.scaling --threads 1 2 8    # others

It needs no more cores than there are. Each number of threads is run here, and of every parallel region (OpenMP) the
processor time of its slowest thread is taken, from one barrier to the next: threads that share a core wait, but waiting
is not processor time. The model's time of an image is the sum of these, plus the time of the main thread outside all
regions. So it contains how evenly the work is divided, the rows that neighbouring bands both compute, and the serial
parts. It leaves out memory, which all threads share, and the time to wake threads. Loops with dynamic schedule are
dealt out in turn: on a shared core the first thread would take all their work. With as many threads as cores, the clock
can check the model.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from net.shapes import STAGE_SIZE
from tools.benchmark import ROOT, jittor_network, random_inputs
from utils.runtime import cores, programs
from utils.runtime.cli import HelpFormatter, positive_int, run_command
from utils.runtime.cuda import host_compiler
from utils.runtime.errors import UserError

# Takes the place of the functions that GCC calls for a parallel region, for a barrier and for a loop with dynamic
# schedule.
INTERPOSER = r"""
#include <algorithm>
#include <dlfcn.h>
#include <omp.h>
#include <time.h>
#include <vector>

struct Region { void* code; double longest, total, main; };
static std::vector<Region> regions;
static double seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}
// A thread's part of a region: the time that it has taken up to each barrier, and up to the end.
struct Part { double start; std::vector<double> times; };
static thread_local Part* part = nullptr;
struct Body { void (*code)(void*); void* data; std::vector<Part> parts; };
static void timed(void* p) {
    Body* body = (Body*)p;
    part = &body->parts[omp_get_thread_num()];
    part->start = seconds();
    body->code(body->data);
    part->times.push_back(seconds() - part->start);
    part = nullptr;
}
static void at_barrier(void (*real)()) {
    Part* mine = part;
    if (mine) mine->times.push_back(seconds() - mine->start);
    real();
    if (mine) mine->start = seconds();
}

extern "C" {
typedef void Parallel(void (*)(void*), void*, unsigned, unsigned);
void GOMP_parallel(void (*code)(void*), void* data, unsigned threads, unsigned flags) {
    static Parallel* real = (Parallel*)dlsym(RTLD_NEXT, "GOMP_parallel");
    Body body{code, data, std::vector<Part>(omp_get_max_threads())};
    double start = seconds();
    real(timed, &body, threads, flags);
    Region region{(void*)code, 0, 0, seconds() - start};
    for (size_t i = 0; i < body.parts[0].times.size(); i++) {
        double longest = 0;
        for (Part& each : body.parts)
            if (i < each.times.size()) longest = std::max(longest, each.times[i]), region.total += each.times[i];
        region.longest += longest;
    }
    regions.push_back(region);
}
// The barriers: of their own, and at the end of a loop with dynamic schedule.
void GOMP_barrier() {
    static void (*real)() = (void (*)())dlsym(RTLD_NEXT, "GOMP_barrier");
    at_barrier(real);
}
void GOMP_loop_end() {
    static void (*real)() = (void (*)())dlsym(RTLD_NEXT, "GOMP_loop_end");
    at_barrier(real);
}
// A loop of signed and one of unsigned indices.
typedef unsigned long long ull;
bool GOMP_loop_static_start(long, long, long, long, long*, long*);
bool GOMP_loop_static_next(long*, long*);
bool GOMP_loop_nonmonotonic_dynamic_start(long a, long b, long step, long chunk, long* first, long* last) {
    return GOMP_loop_static_start(a, b, step, chunk, first, last);
}
bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) { return GOMP_loop_static_next(first, last); }
bool GOMP_loop_ull_static_start(bool, ull, ull, ull, ull, ull*, ull*);
bool GOMP_loop_ull_static_next(ull*, ull*);
bool GOMP_loop_ull_nonmonotonic_dynamic_start(bool up, ull a, ull b, ull step, ull chunk, ull* first, ull* last) {
    return GOMP_loop_ull_static_start(up, a, b, step, chunk, first, last);
}
bool GOMP_loop_ull_nonmonotonic_dynamic_next(ull* first, ull* last) { return GOMP_loop_ull_static_next(first, last); }

// Jittor loads a kernel with RTLD_DEEPBIND, so that it would find the functions of libgomp first.
void* dlopen(const char* file, int flags) {
    static void* (*real)(const char*, int) = (void* (*)(const char*, int))dlsym(RTLD_NEXT, "dlopen");
    return real(file, flags & ~RTLD_DEEPBIND);
}

// At its start, Jittor limits the threads to the number of cores.
void omp_set_num_threads(int) {}

void scaling_clear() { regions.clear(); }
long scaling_count() { return regions.size(); }
Region* scaling_regions() { return regions.data(); }
const char* scaling_file(void* code) {
    Dl_info info;
    return dladdr(code, &info) ? info.dli_fname : "";
}
}
"""


class Region(ctypes.Structure):
    """A parallel region: its code, and processor seconds of its slowest thread, of all threads, and of the main thread
    with what it takes to start and stop them."""

    _fields_ = (
        ("code", ctypes.c_void_p),
        ("longest", ctypes.c_double),
        ("total", ctypes.c_double),
        ("main", ctypes.c_double),
    )


class Image(NamedTuple):
    """Seconds of one fused image: by the clock, outside all regions, and of regions by operation.

    `regions` is operation -> (the sum of its slowest threads, the sum of all threads).
    """

    clock: float
    serial: float
    regions: dict[str, tuple[float, float]]

    @property
    def modelled(self) -> float:
        """Seconds of the image with a core for each thread."""
        return self.serial + sum(longest for longest, _ in self.regions.values())


def build(folder: Path) -> Path:
    """Compile INTERPOSER."""
    source, library = folder / "scaling.cc", folder / "libscaling.so"
    source.write_text(INTERPOSER)
    programs.run([host_compiler(), "-O2", "-w", "-fPIC", "-shared", "-fopenmp", source, "-o", library], check=True)
    return library


def work(height: int, width: int, rounds: int) -> None:
    """Print an `Image` for each round. For a process that was started with the interposer."""
    from net.ops import cpu
    from net.ops.binding import KernelOperation

    library = ctypes.CDLL(None)
    library.scaling_regions.restype = ctypes.POINTER(Region)
    library.scaling_file.restype = ctypes.c_char_p
    library.scaling_file.argtypes = [ctypes.c_void_p]
    forward = {op.forward: name.lstrip("_") for name, op in vars(cpu).items() if isinstance(op, KernelOperation)}

    def operation(code: int) -> str:
        """The operation whose source is next to the library that Jittor compiled from it."""
        path = Path(library.scaling_file(code).decode()).with_suffix(".cc")
        source = path.read_text(encoding="utf-8") if path.is_file() else ""
        return next((name for text, name in forward.items() if text in source), "others")

    fuse, inputs = jittor_network(), random_inputs(1, height, width)
    fuse(*inputs)
    for _ in range(rounds):
        library.scaling_clear()
        clock, main = time.perf_counter(), time.thread_time()
        fuse(*inputs)
        clock, main = time.perf_counter() - clock, time.thread_time() - main
        found = library.scaling_regions()[: library.scaling_count()]
        regions: dict[str, tuple[float, float]] = {}
        for region in found:
            name = operation(region.code)
            longest, total = regions.get(name, (0, 0))
            regions[name] = longest + region.longest, total + region.total
        print(json.dumps(Image(clock, main - sum(region.main for region in found), regions)), flush=True)


def images(library: Path, threads: int, size: Sequence[int], rounds: int) -> list[Image]:
    """Fuse `rounds` images with this number of threads.

    Raises:
        UserError: the process failed.
    """
    # Passive: a thread that waits takes no processor time.
    environment = {cores.VARIABLE: str(threads), "OMP_WAIT_POLICY": "passive", "LD_PRELOAD": str(library)}
    command = [sys.executable, "-m", "tools.scaling", "--worker", *map(str, (*size, rounds))]
    done = programs.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{threads} threads: {(done.stderr.strip().splitlines() or ['failed'])[-1][:200]}")
    return [Image(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


def report(found: dict[int, list[Image]], usable: int) -> str:
    """A table of the numbers of threads, and one of the operations with the most threads. Medians of the rounds."""
    times = {threads: median(image.modelled for image in each) for threads, each in found.items()}
    fewest, most = min(times), max(times)
    lines = [f"{'threads':>7}{'model, s':>10}{'clock, s':>10}{'speed-up':>10}{'serial':>8}"]
    for threads, seconds in times.items():
        clock = f"{median(image.clock for image in found[threads]):.3f}" if threads <= usable else "-"
        serial = median(image.serial for image in found[threads]) / seconds
        speedup = times[fewest] / seconds * fewest
        lines.append(f"{threads:>7}{seconds:>10.4f}{clock:>10}{speedup:>10.1f}{serial:>8.1%}")
    lines += ["", f"{'operation':<24}{f'of {most} threads':>16}{'balance':>9}{'arithmetic':>12}"]
    for name in found[most][0].regions:
        longest, total = (median(image.regions[name][k] for image in found[most]) for k in range(2))
        single = median(image.regions[name][1] for image in found[fewest])
        share, balance = longest / times[most], total / longest / most
        lines.append(f"{name:<24}{share:>16.1%}{balance:>9.0%}{total / single:>11.2f}x")
    lines.append("balance: the mean thread over the slowest; arithmetic: of all threads, over that with the fewest")
    return "\n".join(lines)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.scaling",
        description="Model how a fused image scales with threads.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--threads", type=positive_int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], metavar="N", help="how many")
    add("--size", type=positive_int, nargs=2, default=STAGE_SIZE, metavar=("H", "W"), help="size of the image")
    add("--rounds", type=positive_int, default=5, help="images per number of threads")
    add("--worker", type=int, nargs=3, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.worker:
        work(*args.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        found = {threads: images(library, threads, args.size, args.rounds) for threads in sorted(args.threads)}
    print(report(found, cores.usable()))


if __name__ == "__main__":
    sys.exit(run_command(main))
