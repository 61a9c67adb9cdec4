"""The loader: its order, what it reads ahead, and what augmentation does."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from net.shapes import TEXT_SHAPE
from tests.utils.data.test_h5 import sample, write
from utils.data.h5 import H5Dataset, Sample, write_h5
from utils.data.loader import Augmentation, Loader
from utils.runtime.errors import UserError


def names(loader: Loader) -> list[str]:
    return [name for batch in loader for name in batch.names]


def test_order_follows_from_seed_and_epoch(tmp_path):
    with H5Dataset(write(tmp_path / "x.h5", 9)) as dataset:
        plain = names(Loader(dataset, 2, shuffle=False, drop_last=True))
        assert plain == [f"{i:02d}" for i in range(8)]
        shuffled = [names(Loader(dataset, 2, True, True, seed=s, epoch=e)) for s, e in ((1, 0), (1, 0), (1, 1), (2, 0))]
        assert shuffled[0] == shuffled[1]
        assert len({tuple(order) for order in shuffled}) == 3
        assert len(set(shuffled[0])) == 8
        assert len(names(Loader(dataset, 2, True, False))) == 9


def test_batches_are_stacked(tmp_path):
    with H5Dataset(write(tmp_path / "x.h5", 4)) as dataset:
        loader = Loader(dataset, 2, shuffle=False, drop_last=True)
        assert len(loader) == 2
        batch = list(loader)[1]
    assert batch.names == ("02", "03")
    assert batch.image_a.shape == (2, 1, 4, 6)
    assert batch.text.shape == (2, *TEXT_SHAPE)
    assert batch.image_a[1].max() == np.float32(0.03)
    assert batch.image_b[1].max() == np.float32(0.03) + np.float32(0.25)


def test_sizes_that_differ_within_a_batch_are_named(tmp_path):
    write_h5(tmp_path / "x.h5", [sample("a"), sample("b", (5, 6))])
    with H5Dataset(tmp_path / "x.h5") as dataset:
        assert len(names(Loader(dataset, 1, False, True))) == 2
        with pytest.raises(UserError, match=r"a is \(4, 6\), b \(5, 6\)"):
            list(Loader(dataset, 2, shuffle=False, drop_last=True))


def test_the_next_batch_is_read_while_this_one_is_used(tmp_path):
    """The consumer holds batch 0 until batch 1 has been read; `waited` counts the 0.2 s that batch 0 takes."""
    read = [threading.Event() for _ in range(3)]

    class Watched(H5Dataset):
        def __getitem__(self, index):
            time.sleep(0.2 if index == 0 else 0)
            read[index].set()
            return super().__getitem__(index)

    with Watched(write(tmp_path / "x.h5", 3)) as dataset:
        loader = Loader(dataset, 1, shuffle=False, drop_last=True)
        batches = iter(loader)
        next(batches)
        assert loader.waited > 0.15
        assert read[1].wait(timeout=10)
        assert [batch.names for batch in batches] == [("01",), ("02",)]


def test_leaving_early_ends_the_reader(tmp_path):
    before = threading.active_count()
    with H5Dataset(write(tmp_path / "x.h5", 10)) as dataset:
        batches = iter(Loader(dataset, 1, shuffle=False, drop_last=True))
        next(batches)
        batches.close()
    assert threading.active_count() == before


def test_augmentation_cuts_the_same_part_of_both_images_and_repeats_itself(tmp_path):
    """Image A holds each pixel's number, B the number plus 1000: what is cut out tells where it was."""
    numbers = np.arange(6 * 8, dtype=np.float32).reshape(1, 6, 8)
    text = np.zeros(TEXT_SHAPE, np.float32)
    write_h5(tmp_path / "x.h5", [Sample(f"{i:02d}", numbers, numbers + 1000, text) for i in range(40)])

    def parts(epoch: int) -> np.ndarray:
        cut = Augmentation((3, 4), flip=True)
        loader = Loader(dataset, 4, shuffle=False, drop_last=True, seed=1, epoch=epoch, augmentation=cut)
        batches = list(loader)
        assert all((batch.image_b == batch.image_a + 1000).all() for batch in batches)
        return np.concatenate([batch.image_a[:, 0] for batch in batches])

    with H5Dataset(tmp_path / "x.h5") as dataset:
        first = parts(0)
        assert np.array_equal(first, parts(0))
        assert not np.array_equal(first, parts(1))
        whole = next(iter(Loader(dataset, 4, False, True, augmentation=Augmentation(flip=True)))).image_a
        assert {tuple(row) for row in whole[:, 0, 0]} <= {tuple(range(8)), tuple(range(7, -1, -1))}
        with pytest.raises(UserError, match=r"00: is 6x8, smaller than --crop 7 4"):
            next(iter(Loader(dataset, 4, False, True, augmentation=Augmentation((7, 4)))))
    assert first.shape == (40, 3, 4)
    for part in first:
        rising = part if part[0, 0] < part[0, 1] else part[:, ::-1]
        top, left = divmod(int(rising[0, 0]), 8)
        assert np.array_equal(rising, numbers[0, top : top + 3, left : left + 4])
    corners = {(int(part.min()), part[0, 0] < part[0, 1]) for part in first}
    assert len({corner for corner, _ in corners}) > 8  # of 20 places
    assert {rises for _, rises in corners} == {True, False}
