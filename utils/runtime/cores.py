"""How many threads compute: as many as this process has cores, by its affinity and the limits of its containers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# OpenMP's variable: Jittor, PyTorch and the processes that this one starts read it.
VARIABLE = "OMP_NUM_THREADS"


def given() -> int | None:
    """The number of threads in `VARIABLE`; None if it is not set, or holds no number."""
    number = os.environ.get(VARIABLE, "").split(",")[0]  # a list has a number for each level of nesting
    return int(number) or None if number.isdigit() else None


def count() -> int:
    """The number of threads that compute: the given one, else one per core that this process may use."""
    return given() or usable()


def usable(system: Path = Path("/")) -> int:
    """The cores that this process may use: those of its affinity (taskset), but no more than its containers allow.

    Containers limit processor time by cgroups; a fraction of a core counts as a core.

    Args:
        system: the folder with proc/ and sys/.
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, math.ceil(min(_quotas(system), default=cores))))


def _quotas(system: Path) -> Iterator[float]:
    """The processor time per second that the cgroups of this process allow, where they set a limit (cgroups(7)).

    The limits of a cgroup's parents apply too. A container may see its own cgroup as the root, under another name.
    """
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        home, files = system / "sys/fs/cgroup", ("cpu.max",)
        if controllers:  # version 1
            if "cpu" not in controllers.split(","):
                continue
            home, files = home / "cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        folder = home / name.lstrip("/")
        for each in (folder, *folder.parents[: len(folder.parts) - len(home.parts)]):
            with suppress(OSError):
                quota, period = " ".join((each / file).read_text() for file in files).split()
                if quota.isdigit():  # else "max" or -1: no limit
                    yield int(quota) / int(period)
