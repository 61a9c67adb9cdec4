"""What several processes (`utils.runtime.processes`) compute together, through Jittor's MPI. One sends no message.

Every process must make the same calls in the same order: each waits for all. Each is computed at once and not lazily,
because Jittor might run two that wait in another order.
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
    """The sum over the processes of an array of float32 or int32, which must have one shape in all of them."""
    if processes.count() == 1:
        return values
    from utils.runtime.jittor_env import jt

    # On the CPU: the small things that are added here come from there.
    with jt.flag_scope(use_cuda=0):
        return jt.array(values).mpi_all_reduce("add").numpy()


def meet() -> None:
    """Wait until every process is here."""
    total(np.zeros(1, np.float32))


def agree(values: np.ndarray, wish: bool) -> tuple[list[float], bool]:
    """The mean of float32 `values` (n,) over the processes, and whether one of them has the `wish`; in one message."""
    *sums, wishes = total(np.append(values, np.float32(wish))).tolist()
    return [value / processes.count() for value in sums], wishes > 0


def gather(rows: np.ndarray, length: int) -> np.ndarray:
    """Put together what the processes made of their `share`.

    Args:
        rows: float64 (own, m), one row for each item of this process's share.
        length: how many items there are in all.

    Returns:
        (length, m), a row for each item, the same bits in every process.
    """
    whole = np.zeros((length, rows.shape[1]))
    processes.share(whole)[:] = rows
    # As integers: beside zeros their sum is any float64, also NaN, bit by bit.
    return total(whole.view(np.int32)).view(np.float64)


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
    """The sum of a scalar over the processes, with the gradient that makes `mean_of_gradients` that of the sum."""
    if processes.count() == 1:
        return x
    from utils.runtime.jittor_env import jt

    own = x * processes.count()
    return own + (jt.array(total(x.numpy())) - own).detach()


def assert_equal(numbers: Sequence[float], what: str) -> None:
    """Check that `numbers`, float64, have the same bits in every process.

    Raises:
        UserError: they have not; `what` says what they stand for.
    """
    own = np.asarray(numbers, np.float64)[None]
    all_of_them = gather(own, processes.count())
    if not (all_of_them.view(np.int64) == own.view(np.int64)).all():
        raise UserError(f"{what}: not the same in all processes; each machine needs the same files")
