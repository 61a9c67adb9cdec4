"""Programs that this project starts end with the process that started them, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.runtime import programs

ROOT = Path(__file__).resolve().parents[3]
# Each starts a program that sleeps, prints its process id and waits.
PARENTS = {
    "start": "from utils.runtime import programs; p = programs.start(SLEEP); print(p.pid, flush=True); p.wait()",
    "run": "from utils.runtime import programs;"
    "programs.run([*SLEEP[:2], 'import os; print(os.getpid(), flush=True);' + SLEEP[2]])",
    "benchmark": "from tools.benchmark import Worker; w = Worker('inference', 'torch eager', (8, 8), 1);"
    "print(w.process.pid, flush=True); w.process.wait()",
}
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to ask (a zombie) does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("parent", PARENTS)
def test_a_program_ends_with_a_parent_that_is_killed(parent):
    code = f"SLEEP = {SLEEP!r}\n{PARENTS[parent]}"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        assert is_alive(child)
        process.kill()
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(child)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_program_ends_with_its_block(monkeypatch, deaf):
    """Also one that ignores the request; and an error in the block is not held up by it."""
    monkeypatch.setattr(programs, "PATIENCE_SECONDS", 0.5)
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" * deaf
    command = [*SLEEP[:2], f"{ignore}print(flush=True); {SLEEP[2]}"]
    with pytest.raises(KeyError), programs.running(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        raise KeyError
    assert process.returncode == -(signal.SIGKILL if deaf else signal.SIGTERM)
