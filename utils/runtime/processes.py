"""Several processes that work together: ``mpirun -np N python train.py ...`` (Jittor's MPI, which is OpenMPI's).

Only process 0 prints and writes files. Without mpirun there is one process. Messages between processes are in
`utils.runtime.collective`; this module imports only the standard library.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.runtime import cores
from utils.runtime.errors import UserError

# A failed process other than 0 waits this long before it prints: usually process 0 reports the same error first.
PRECEDENCE_SECONDS = 2.0


def _number(name: str, default: int) -> int:
    """The number in an environment variable, which mpirun sets; anything else there has no effect."""
    text = os.environ.get(name, "")
    return int(text) if re.fullmatch(r"\d{1,6}", text, re.ASCII) else default


def count() -> int:
    """The number of processes."""
    return max(1, _number("OMPI_COMM_WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process, from 0."""
    return _number("OMPI_COMM_WORLD_RANK", 0)


def is_main() -> bool:
    """Whether this is process 0, which prints and writes files."""
    return rank() == 0


def by_mpirun() -> bool:
    """Whether an mpirun that Jittor can use has started this process."""
    return _number("OMPI_COMM_WORLD_SIZE", 0) > 0


def local_count() -> int:
    """The number of processes on this machine."""
    return max(1, _number("OMPI_COMM_WORLD_LOCAL_SIZE", 1))


def local_rank() -> int:
    """The number of this process among those on this machine, from 0."""
    return _number("OMPI_COMM_WORLD_LOCAL_RANK", 0)


class Nobody:
    """Replaces an object that only process 0 has: every method does nothing and returns None."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None

    def __enter__(self) -> Nobody:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def prepare() -> None:
    """Set the environment variables for Jittor's MPI, GPU and threads; to be called before Jittor is imported.

    By default Jittor starts MPI wherever it finds mpicc, even for one process, and then downloads and builds NCCL.

    Raises:
        UserError: started by an mpirun that Jittor cannot use, or mpicc is missing.
    """
    use_threads()
    os.environ["use_mpi"] = str(int(by_mpirun()))
    if not by_mpirun():
        os.environ.pop("OMPI_COMM_WORLD_SIZE", None)  # Jittor takes any value for an mpirun
        if _number("PMI_SIZE", 1) > 1:
            raise UserError(
                "mpirun: not OpenMPI's, the only one that Jittor supports (Debian: apt install openmpi-bin)"
            )
        return
    if shutil.which(os.environ.get("mpicc_path") or "mpicc") is None:
        raise UserError("mpicc: not found; Jittor compiles its MPI with it (Debian: apt install libopenmpi-dev)")
    # mpirun sends SIGUSR1 to process groups, also to the processes that Jittor forks on import; they inherit this.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if {"nccl_include_path", "nccl_lib_path"} <= os.environ.keys():
        return  # Jittor's NCCL chooses the device of each process, and must see all devices
    os.environ["use_nccl"] = "0"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible is not None else range(len([*Path("/dev").glob("nvidia[0-9]*")]))
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(devices[local_rank() % len(devices)])


def use_threads(number: int | None = None) -> None:
    """Let `number` threads compute in this process; to be called before Jittor or PyTorch is imported.

    By default it is one per usable core, divided among the processes of this machine. Nothing is changed if the
    environment sets the number, or if mpirun has bound the process to cores.
    """
    if number:
        import cv2  # here, because everything else in this module needs only the standard library

        cv2.setNumThreads(number)
    elif cores.given():
        return
    elif _is_bound():
        os.environ.pop(cores.VARIABLE, None)  # no number: OpenMP would complain about it
        return
    os.environ[cores.VARIABLE] = str(number or max(1, cores.usable() // local_count()))


def _is_bound() -> bool:
    """Whether mpirun has bound this process to certain cores (its default with up to two processes: one core each)."""
    return "OMPI_MCA_orte_bound_at_launch" in os.environ


def describe() -> str:
    """One line with the number of processes and threads; empty for one process."""
    if count() == 1:
        return ""
    line = f"processes: {count()}, {local_count()} of them on this machine, {cores.count()} threads each"
    return line + "; mpirun bound them to cores, --bind-to none prevents it" * _is_bound()


def share(items: Sequence) -> Sequence:
    """The items of this process: every `count`-th, from its `rank`."""
    return items[rank() :: count()]


def silence_others() -> None:
    """Let only process 0 print and draw progress bars."""
    if not is_main():
        nowhere = Path(os.devnull).open("w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        sys.stdout = sys.stderr = nowhere


def leave(code: int, message: str, by_agreement: bool = False) -> int:
    """Print why this process ends (if all end `by_agreement`, only process 0 prints), and return its exit code.

    One of several processes does not return: it ends here without MPI_Finalize, which would wait for the others.
    mpirun sees the exit code and ends them too.
    """
    if count() == 1:
        print(message, file=sys.stderr)
        return code
    if not is_main():
        time.sleep(PRECEDENCE_SECONDS)
        if by_agreement:
            os._exit(code)
        message = f"\nprocess {rank()} of {count()}: {message}"  # this line may contain process 0's progress bar
    print(message, file=sys.__stderr__, flush=True)
    sys.stdout.flush()
    os._exit(code)
