"""Signals that end a training between two steps, in all processes at the same step."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager

import numpy as np

from utils.runtime import collective, processes, signals
from utils.runtime.errors import Stopped


class StopRequest:
    """Set by the first signal, so that the run ends after the current step; the second one ends it immediately.

    Several processes stop at the same step, once all know that one got a signal; further signals have no effect.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._agreed = False

    @property
    def due(self) -> bool:
        """Whether the run ends after the current step."""
        return self._signal is not None if processes.count() == 1 else self._agreed

    def mean(self, values: np.ndarray) -> list[float]:
        """The mean of the losses (n,) over the processes; the same message carries a request to stop."""
        means, self._agreed = collective.agree(values, self._signal is not None)
        return means

    def raise_if_due(self) -> None:
        """Raise `Stopped` if the run was asked to stop."""
        if self.due:
            raise Stopped(self._signal or signal.SIGINT)

    def listening(self) -> AbstractContextManager[None]:
        """Handle the `STOP_SIGNALS` of `utils.runtime.signals` within a ``with`` block."""
        return signals.handling(self._handle)

    def _handle(self, number: int) -> None:
        if self._signal is not None and processes.count() == 1:
            raise Stopped(number)
        self._signal = number
