"""Work on many items at once, with little in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """`function` of every item, in order, computed by several threads ahead of whoever takes the results.

    At most two results a thread are under way or waiting, so memory does not grow with the number of items. The first
    error ends the iteration where its item stands; what has not begun by then is not begun.

    Threads suffice where the work is decoding, NumPy or OpenCV, which let go of the interpreter. (Jittor ends the
    whole process when a child process dies.)

    Args:
        function: may be called from several threads at once.
        threads: how many; by default one more than the cores that this process may use, because a thread that waits
            for the interpreter should not leave a core idle.
    """
    keep_freed_memory()
    threads = threads or len(os.sched_getaffinity(0)) + 1
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@cache
def keep_freed_memory() -> None:
    """Let the C library keep freed memory, up to 64 MiB, instead of returning it to the system at each free.

    Work on images goes through many arrays of a few MB. By glibc's defaults each of them costs a page fault for every
    4 KiB, and threads wait for each other in those. To free one block just below 32 MiB lifts the limits as far as
    they go (mallopt(3), M_MMAP_THRESHOLD); elsewhere it does nothing.
    """
    np.empty((32 << 20) - (1 << 16), np.uint8)
