"""The table of tasks."""

from __future__ import annotations

from utils.data.tasks import TASKS


def test_the_official_tasks():
    """film.md, section 4."""
    folders = {name: (task.folders, task.resized) for name, task in TASKS.items()}
    assert folders == {
        "IVF": (("IR", "VI"), True),
        "MIF": (("MRI", "T"), False),
        "MEF": (("OVER", "UNDER"), True),
        "MFF": (("NEAR", "FAR"), True),
    }
