"""The weight of the gradient loss in each epoch."""

from __future__ import annotations

from collections.abc import Sequence

from utils.runtime.cli import not_negative, positive_int


def stage(text: str) -> str:
    """The type of the option --grad_stages, ``EPOCH:WEIGHT``: the weight (at least 0) from this epoch (at least 1) on.

    It stays a text: the options of a run are compared and recorded as they were given.
    """
    epoch, weight = text.split(":")
    positive_int(epoch)
    not_negative(weight)
    return text


def weight_at(epoch: int, stages: Sequence[str], otherwise: float) -> float:
    """The gradient weight of an epoch (from 1): each of `stages` is ``EPOCH:WEIGHT``; before the first, `otherwise`.

    >>> [weight_at(epoch, ["2:5", "4:10"], 20) for epoch in (1, 2, 3, 4)]
    [20, 5.0, 5.0, 10.0]
    """
    reached = [(int(start), float(weight)) for start, weight in (s.split(":") for s in stages) if int(start) <= epoch]
    return max(reached)[1] if reached else otherwise
