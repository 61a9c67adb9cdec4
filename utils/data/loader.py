"""Batches of an H5 file for training and testing, read in advance by a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from utils.data.h5 import H5Dataset, Sample
from utils.runtime.errors import UserError

AHEAD = 2  # batches to read in advance
ALL = slice(None)


@dataclass(frozen=True)
class Batch:
    """Several pairs: images (b, 1, H, W) in 0..1 and text features (b, 149, 768), float32."""

    names: tuple[str, ...]
    image_a: np.ndarray
    image_b: np.ndarray
    text: np.ndarray


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training pairs, the same for both images of a pair.

    Args:
        crop: height and width of a crop at a random place; empty for the full images.
        flip: flip half of the pairs, on average, left to right.
    """

    crop: tuple[int, int] | tuple[()] = ()
    flip: bool = False

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with cropped and flipped images.

        Raises:
            UserError: the images are smaller than the crop.
        """
        height, width = sample.image_a.shape[1:]
        part_height, part_width = self.crop or (height, width)
        if part_height > height or part_width > width:
            size = f"{height}x{width}, smaller than --crop {part_height} {part_width}"
            raise UserError(f"{sample.name}: is {size}; choose a smaller crop")
        top, left = (int(random.integers(free + 1)) for free in (height - part_height, width - part_width))
        step = -1 if self.flip and random.integers(2) else 1
        a, b = (
            np.ascontiguousarray(image[:, top : top + part_height, left : left + part_width][:, :, ::step])
            for image in (sample.image_a, sample.image_b)
        )
        return replace(sample, image_a=a, image_b=b)


class Loader:
    """The batches of an epoch; a thread reads the next ones while the caller computes.

    The order depends only on `seed` and `epoch`. `part` is the slice of each batch to read: with several processes,
    each reads its part of the same batches. `augmentation` is applied to each sample. After an iteration, `waited` is
    the number of seconds that the caller waited for data.
    """

    def __init__(
        self,
        dataset: H5Dataset,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int = 0,
        epoch: int = 0,
        part: slice = ALL,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.augmentation = augmentation
        self._seed = [abs(seed), epoch]
        order = np.arange(len(dataset))
        if shuffle:
            order = np.random.default_rng(self._seed).permutation(order)
        end = len(order) // batch_size * batch_size if drop_last else len(order)
        self.batches = [order[i : i + batch_size][part] for i in range(0, end, batch_size)]
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """The batches in order.

        Raises:
            UserError: a sample cannot be read, or the samples of a batch differ in size.
        """
        self.waited = 0.0
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
        stopped = threading.Event()
        reader = threading.Thread(target=self._read, args=(ready, stopped), daemon=True, name="h5-reader")
        reader.start()
        try:
            while True:
                started = time.perf_counter()
                item = ready.get()
                self.waited += time.perf_counter() - started
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            reader.join()

    def _read(self, ready: queue.Queue[Batch | BaseException | None], stopped: threading.Event) -> None:
        """Fill the queue until the epoch ends, an error occurs, or the caller stops."""

        def put(item: Batch | BaseException | None) -> None:
            while not stopped.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        try:
            for indices in self.batches:
                if stopped.is_set():
                    return
                put(self._collate([self._sample(int(i)) for i in indices]))
            put(None)
        except BaseException as error:  # raised again in the thread that iterates
            put(error)

    def _sample(self, index: int) -> Sample:
        """A sample; its augmentation depends only on the seed, the epoch and the index."""
        sample = self.dataset[index]
        if self.augmentation is None:
            return sample
        return self.augmentation(sample, np.random.default_rng([*self._seed, index]))

    def _collate(self, samples: list[Sample]) -> Batch:
        first = samples[0]
        for sample in samples:
            if sample.image_a.shape != first.image_a.shape:
                sizes = f"{first.name} is {first.image_a.shape[1:]}, {sample.name} {sample.image_a.shape[1:]}"
                way_out = "the pairs of a batch need one size (data_process.py --size small, or batch size 1)"
                raise UserError(f"{self.dataset.path}: {sizes}; {way_out}")
        arrays = (np.stack([getattr(s, key) for s in samples]) for key in ("image_a", "image_b", "text"))
        return Batch(tuple(s.name for s in samples), *arrays)
