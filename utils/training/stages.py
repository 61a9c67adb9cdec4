"""The weight of the gradient loss in each epoch."""

from __future__ import annotations

from collections.abc import Sequence


def weight_at(epoch: int, stages: Sequence[str], otherwise: float) -> float:
    """The gradient weight of an epoch (from 1): each of `stages` is ``EPOCH:WEIGHT``; before the first, `otherwise`.

    >>> [weight_at(epoch, ["2:5", "4:10"], 20) for epoch in (1, 2, 3, 4)]
    [20, 5.0, 5.0, 10.0]
    """
    reached = [(int(start), float(weight)) for start, weight in (s.split(":") for s in stages) if int(start) <= epoch]
    return max(reached)[1] if reached else otherwise
