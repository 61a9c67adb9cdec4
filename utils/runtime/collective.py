"""Collective operations of several processes (`utils.runtime.processes`) with Jittor's MPI; one process sends nothing.

Every process must make the same calls in the same order, because each call waits for all processes. Results are
computed immediately: Jittor could run lazy operations in a different order in each process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils.runtime import processes
from utils.runtime.errors import UserError

if TYPE_CHECKING:
    from utils.runtime.jittor_env import jt


def total(values: np.ndarray) -> np.ndarray:
    """The sum over the processes of a float32 or int32 array, which must have the same shape in all of them."""
    if processes.count() == 1:
        return values
    from utils.runtime.jittor_env import jt

    # On the CPU, where these small arrays are.
    with jt.flag_scope(use_cuda=0):
        return jt.array(values).mpi_all_reduce("add").numpy()


def barrier() -> None:
    """Wait until every process has called this."""
    total(np.zeros(1, np.float32))


def agree(values: np.ndarray, wish: bool) -> tuple[list[float], bool]:
    """The mean of float32 `values` (n,) over the processes, and whether `wish` is true in any of them."""
    *sums, wishes = total(np.append(values, np.float32(wish))).tolist()
    return [value / processes.count() for value in sums], wishes > 0


def gather(rows: np.ndarray, length: int) -> np.ndarray:
    """Collect the rows that the processes computed for their `share` of the items.

    Args:
        rows: float64 (own, m), one row per item of this process's share.
        length: the number of items of all processes.

    Returns:
        (length, m), one row per item, with the same bits in every process.
    """
    result = np.zeros((length, rows.shape[1]))
    processes.share(result)[:] = rows
    # As integers: adding zeros then keeps every bit of a float64, also of NaN.
    return total(result.view(np.int32)).view(np.float64)


def mean_of_gradients(gradients: list[jt.Var]) -> list[jt.Var]:
    """The mean of each gradient over the processes, sent as one message."""
    if processes.count() == 1:
        return gradients
    from utils.runtime.jittor_env import jt

    flat = jt.concat([gradient.flatten() for gradient in gradients]).mpi_all_reduce("mean")
    flat.sync()
    ends = np.cumsum([gradient.numel() for gradient in gradients]).tolist()
    starts = [0, *ends[:-1]]
    return [flat[i:j].reshape(g.shape) for i, j, g in zip(starts, ends, gradients, strict=True)]


def sum_over_all(x: jt.Var) -> jt.Var:
    """The sum of a scalar over the processes; `mean_of_gradients` then returns the gradients of this sum."""
    if processes.count() == 1:
        return x
    from utils.runtime.jittor_env import jt

    own = x * processes.count()
    return own + (jt.array(total(x.numpy())) - own).detach()


def assert_equal(numbers: Sequence[float], what: str) -> None:
    """Raise `UserError`, which names `what`, unless `numbers` (as float64) have the same bits in every process."""
    own = np.asarray(numbers, np.float64)[None]
    all_of_them = gather(own, processes.count())
    if not (all_of_them.view(np.int64) == own.view(np.int64)).all():
        raise UserError(f"{what}: differs between processes; each machine needs the same files")
