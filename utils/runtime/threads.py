"""A parallel map over many items that keeps few of them in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np

from utils.runtime import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """Yield `function` of every item, in order; several threads compute the next results in advance.

    At most two results per thread are in progress or waiting, so memory does not grow with the number of items. If
    `function` raises, its error is raised in place of the result, and items that have not been started are dropped.

    Threads, not processes, because decoding, NumPy and OpenCV release the interpreter lock, and because Jittor ends
    the main process when a child process dies.

    Args:
        function: must be thread-safe.
        threads: their number; by default one more than `cores.count()`, so that no core is idle while a thread waits
            for the interpreter lock.
    """
    keep_freed_memory()
    threads = threads or cores.count() + 1
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

    Image processing allocates many arrays of a few MB. By default glibc maps each of them again, with a page fault per
    4 KiB, for which threads wait for each other. Freeing one block just below 32 MiB raises glibc's thresholds to their
    maximum (mallopt(3), M_MMAP_THRESHOLD); other C libraries are not affected.
    """
    np.empty((32 << 20) - (1 << 16), np.uint8)
