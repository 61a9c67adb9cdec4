"""Signals between two steps: the first ends the run after the step, the second immediately."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from utils.runtime import collective, processes
from utils.runtime.errors import Stopped
from utils.training.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_waits_for_the_step_and_the_second_does_not(number):
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening():
        assert not stop.due
        stop.raise_if_due()
        os.kill(os.getpid(), number)
        assert stop.due
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) == before
    with pytest.raises(Stopped) as stopped:
        stop.raise_if_due()
    assert stopped.value.signal == number


def test_one_process_has_the_losses_of_the_batch():
    assert StopRequest().mean(np.array([1.5, 0.25], np.float32)) == [1.5, 0.25]


def test_several_processes_stop_once_all_know(monkeypatch):
    """Two processes, of which the other has the losses 3 and 1, and the signal."""
    monkeypatch.setattr(processes, "count", lambda: 2)
    messages = []

    def total(values):
        messages.append(values.tolist())
        return values + np.array([3, 1, 1], np.float32)

    monkeypatch.setattr(collective, "total", total)
    stop = StopRequest()
    assert not stop.due
    assert stop.mean(np.array([1, 2], np.float32)) == [2, 1.5]
    assert stop.due
    assert messages == [[1, 2, 0]]  # one message, without a request by this process
    with pytest.raises(Stopped) as stopped:
        stop.raise_if_due()
    assert stopped.value.signal == signal.SIGINT
