"""The signals that ask a command to end."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from utils.runtime.errors import Stopped

STOP_SIGNALS = (
    signal.SIGINT,  # Ctrl-C
    signal.SIGTERM,  # kill, and a machine that shuts down
    signal.SIGHUP,  # a terminal or ssh session that closes
    signal.SIGUSR1,  # mpirun forwards it without a time limit; Slurm can send it before a job's time is up
)


@contextmanager
def handling(handler: Callable[[int], None]) -> Iterator[None]:
    """Call `handler` with the number of each of the STOP_SIGNALS that arrives within a ``with`` block.

    A signal that is ignored stays ignored: nohup ignores SIGHUP, and a shell ignores SIGINT for its background jobs.
    SIGUSR1 is the exception, because `utils.runtime.processes.prepare` ignores it until a training can answer it.
    """
    owner = os.getpid()

    def handle(number: int, _: object) -> None:
        if os.getpid() != owner:  # a forked process, before `leave_to_parent`
            leave_to_parent()
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGHUP:
            _leave_terminal()
        handler(number)

    handled = [n for n in STOP_SIGNALS if n == signal.SIGUSR1 or signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def leave_to_parent() -> None:
    """In a process that Jittor has forked to compile: end on SIGTERM, as Jittor ends it, and ignore the others.

    A terminal sends Ctrl-C to it too, but the command decides when it ends. Jittor takes its end by another signal than
    SIGTERM for a crash. A handler in Python would be called too late, or never, while the process waits for work.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def raise_stopped(number: int) -> None:
    """The handler of a command that has nothing to finish: it cleans up and ends, as after Ctrl-C."""
    raise Stopped(number)


def _leave_terminal() -> None:
    """Discard all further output, unless it goes to a file: writing to a closed terminal or pipe is an error."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                discard = os.open(os.devnull, os.O_WRONLY)
                os.dup2(discard, descriptor)
                os.close(discard)
