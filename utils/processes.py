"""Several processes that work together: ``mpirun -np N python train.py ...`` (Jittor's MPI, which is OpenMPI's).

Process 0 speaks and writes for all. Without mpirun there is one process, and everything here does nothing.

Every process must make the same calls of `agree`, `total`, `gather`, `mean_of_gradients` and `norm_over_all` in the
same order: each waits for all. Each is computed at once and not lazily, because Jittor might run two that wait in
another order.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import UserError

if TYPE_CHECKING:
    from utils.jittor_env import jt

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


def total(values: np.ndarray) -> np.ndarray:
    """The sum over the processes of an array of float32 or int32, which must have one shape in all of them."""
    if count() == 1:
        return values
    from utils.jittor_env import jt

    # On the CPU: the small things that are added here come from there.
    with jt.flag_scope(use_cuda=0):
        return jt.array(values).mpi_all_reduce("add").numpy()


def meet() -> None:
    """Wait until every process is here."""
    total(np.zeros(1, np.float32))


def agree(values: np.ndarray, wish: bool) -> tuple[list[float], bool]:
    """The mean of float32 `values` (n,) over the processes, and whether one of them has the `wish`; in one message."""
    *sums, wishes = total(np.append(values, np.float32(wish))).tolist()
    return [value / count() for value in sums], wishes > 0


def share(items: Sequence) -> Sequence:
    """What of `items` is this process's: every `count`-th."""
    return items[rank() :: count()]


def gather(rows: np.ndarray, length: int) -> np.ndarray:
    """Put together what the processes made of their `share`.

    Args:
        rows: float64 (own, m), one row for each item of this process's share.
        length: how many items there are in all.

    Returns:
        (length, m), a row for each item, the same bits in every process.
    """
    whole = np.zeros((length, rows.shape[1]))
    share(whole)[:] = rows
    # As integers: beside zeros their sum is any float64, also NaN, bit by bit.
    return total(whole.view(np.int32)).view(np.float64)


def mean_of_gradients(gradients: list[jt.Var]) -> list[jt.Var]:
    """The mean of each gradient over the processes, sent as one message."""
    if count() == 1:
        return gradients
    from utils.jittor_env import jt

    flat = jt.concat([gradient.flatten() for gradient in gradients]).mpi_all_reduce("mean")
    flat.sync()
    ends = np.cumsum([gradient.numel() for gradient in gradients]).tolist()
    starts = [0, *ends[:-1]]
    return [flat[i:j].reshape(g.shape) for i, j, g in zip(starts, ends, gradients, strict=True)]


def sum_over_all(x: jt.Var) -> jt.Var:
    """The sum of a scalar over the processes, with the gradient that makes `mean_of_gradients` that of the sum."""
    if count() == 1:
        return x
    from utils.jittor_env import jt

    own = x * count()
    return own + (jt.array(total(x.numpy())) - own).detach()


def assert_equal(numbers: Sequence[float], what: str) -> None:
    """Check that `numbers`, float64, have the same bits in every process.

    Raises:
        UserError: they have not; `what` says what they stand for.
    """
    own = np.asarray(numbers, np.float64)[None]
    all_of_them = gather(own, count())
    if not (all_of_them.view(np.int64) == own.view(np.int64)).all():
        raise UserError(f"{what}: not the same in all processes; each machine needs the same files")


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
