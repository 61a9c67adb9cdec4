"""Work ahead: in order, bounded, and over at the first error."""

from __future__ import annotations

import threading
import time

import pytest

from utils.runtime.threads import map_ahead


def test_results_come_in_the_order_of_the_items():
    """Although later items are done sooner."""

    def work(i: int) -> int:
        time.sleep(0.02 if i % 3 == 0 else 0)
        return i * i

    assert list(map_ahead(work, range(20), threads=3)) == [i * i for i in range(20)]
    assert list(map_ahead(work, [])) == []


def test_no_more_than_two_items_a_thread_are_under_way():
    """Items are drawn only as results are taken: memory stays flat."""
    drawn = []

    def items():
        for i in range(100):
            drawn.append(i)
            yield i

    results = map_ahead(lambda i: i, items(), threads=2)
    for taken in range(10):
        assert next(results) == taken
        assert len(drawn) - taken <= 4
    results.close()
    assert len(drawn) < 20


def test_several_threads_work():
    """Two calls that wait for each other end only if they run at once."""
    barrier = threading.Barrier(2, timeout=10)
    assert len(list(map_ahead(lambda _: barrier.wait(), range(4), threads=2))) == 4


def test_the_first_error_ends_it():
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise ValueError(i)
        return i

    taken = []
    with pytest.raises(ValueError, match="3"):
        for result in map_ahead(work, range(1000), threads=2):
            taken.append(result)
    assert taken == [0, 1, 2]
    assert len(begun) < 20
