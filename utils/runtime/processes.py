"""Several processes that work together: ``mpirun -np N python train.py ...`` (Jittor's MPI, which is OpenMPI's).

Process 0 speaks and writes for all. Without mpirun there is one process, and everything here does nothing. What they
tell each other is in `utils.runtime.collective`; this module needs nothing but Python.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.runtime.errors import UserError

# How long a process that fails lets process 0, which most often fails of the same, speak first.
PRECEDENCE_SECONDS = 2.0


def count() -> int:
    """How many processes work together."""
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))


def is_main() -> bool:
    """Whether this is the process that speaks and writes."""
    return rank() == 0


def local_count() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))


def local_rank() -> int:
    """Which of those on this machine this is, from 0."""
    return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", 0))


class Nobody:
    """Stands in for what only process 0 has: every method does nothing and returns None."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None

    def __enter__(self) -> Nobody:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def prepare() -> None:
    """Set the environment from which Jittor takes its MPI, its GPU and its threads; to be called before its import.

    Jittor would start its MPI wherever there is an mpicc, also for one process, and then download and build NCCL.

    Raises:
        UserError: started by an mpirun that Jittor cannot use.
    """
    together = "OMPI_COMM_WORLD_SIZE" in os.environ
    os.environ["use_mpi"] = str(int(together))
    if not together:
        if int(os.environ.get("PMI_SIZE", 1)) > 1:
            raise UserError("mpirun: not OpenMPI's, the only one that Jittor knows (Debian: apt install openmpi-bin)")
        return
    if shutil.which(os.environ.get("mpicc_path") or "mpicc") is None:
        raise UserError("mpicc: not found; Jittor compiles its MPI with it (Debian: apt install libopenmpi-dev)")
    # mpirun hands SIGUSR1 to whole groups of processes; those that Jittor forks on import inherit this, and survive.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if "OMP_NUM_THREADS" not in os.environ and not _is_bound():
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // local_count()))
    if {"nccl_include_path", "nccl_lib_path"} <= os.environ.keys():
        return  # Jittor's NCCL gives each process its device, and has to see all of them for that
    os.environ["use_nccl"] = "0"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible is not None else range(len([*Path("/dev").glob("nvidia[0-9]*")]))
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(devices[local_rank() % len(devices)])


def _is_bound() -> bool:
    """Whether mpirun has bound this process to cores of its own (for up to two processes it does: to one core)."""
    return "OMPI_MCA_orte_bound_at_launch" in os.environ


def describe() -> str:
    """One line on how many processes there are; empty for one."""
    if count() == 1:
        return ""
    threads = os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    line = f"processes: {count()}, {local_count()} of them on this machine, {threads} threads each"
    return line + "; mpirun bound each to these cores, --bind-to none frees them" * _is_bound()


def share(items: Sequence) -> Sequence:
    """What of `items` is this process's: every `count`-th."""
    return items[rank() :: count()]


def silence_others() -> None:
    """Let process 0 alone print and draw progress bars."""
    if not is_main():
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def leave(code: int, message: str, by_agreement: bool = False) -> int:
    """Print why this process fails (process 0 alone where all leave `by_agreement`), and return its exit code.

    One of several does not return, but ends here, without the farewell of MPI, which would wait for the others:
    mpirun sees the exit code and ends them too.
    """
    if count() == 1:
        print(message, file=sys.stderr)
        return code
    if not is_main():
        time.sleep(PRECEDENCE_SECONDS)
        if by_agreement:
            os._exit(code)
        message = f"\nprocess {rank()} of {count()}: {message}"  # the bar of process 0 may stand in this line
    print(message, file=sys.__stderr__, flush=True)
    sys.stdout.flush()
    os._exit(code)
