"""Signals that ask a command to end: every command cleans up, and a closed terminal is no error."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.runtime import signals
from utils.runtime.errors import Stopped

ROOT = Path(__file__).resolve().parents[3]
# A command that works in a temporary folder.
COMMAND = """
import sys, tempfile, time
from pathlib import Path
from utils.runtime.cli import run_command
def main(argv):
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        {work}
sys.exit(run_command(main))
"""
WORK = 'print("begun", flush=True); time.sleep(60)'
# A training that prints after its step, then writes a checkpoint.
TRAINING = """from utils.training.stop import StopRequest
        stop = StopRequest()
        with stop.listening():
            print("begun", flush=True)
            while not stop.due:
                time.sleep(0.02)
        print("step", flush=True)
        Path(sys.argv[1], "checkpoint").touch()
        stop.raise_if_due()"""


def start(folder: Path, work: str, *before: str, **options: object) -> subprocess.Popen[str]:
    code = COMMAND.format(work=work)
    return subprocess.Popen([*before, sys.executable, "-c", code, folder], cwd=ROOT, text=True, **options)


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_a_command_cleans_up_and_says_how_it_ended(tmp_path, number):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(tmp_path, WORK, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert "Traceback" not in process.stderr.read()
    assert not list(tmp_path.iterdir())


def test_a_closed_terminal_ends_a_training_with_its_checkpoint(tmp_path):
    """The terminal hangs up, and with it all output fails."""
    ours, theirs = pty.openpty()
    terminal = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    with start(tmp_path, TRAINING, "setsid", "--ctty", **terminal) as process:
        os.close(theirs)
        assert os.read(ours, 5) == b"begun"
        os.close(ours)
        assert process.wait(30) == 128 + signal.SIGHUP
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path):
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(tmp_path, WORK.replace("60", "1"), "nohup", **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0


def test_signals_inside_a_block():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped, signals.handling(signals.raise_stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert stopped.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("work", [signals.leave_to_parent, lambda: None], ids=["compiles", "has just begun"])
def test_a_forked_process_leaves_the_decision_to_the_command(work):
    """Ctrl-C and a hang-up reach the processes in which Jittor compiles, too; they continue, and SIGTERM ends them."""
    with signals.handling(signals.raise_stopped):
        child = os.fork()
        if not child:
            try:
                work()
                time.sleep(60)
            finally:
                os._exit(1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        time.sleep(0.2)
        os.kill(child, number)
    time.sleep(0.2)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_the_processes_of_jittor_do_so():
    """Without it, one in ten commands did not end: Python runs a handler only between two of its own instructions."""
    code = """
import signal, sys
from utils.runtime import jittor_env
sys.modules["jittor_utils"].pool_initializer()
print([int(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str([int(signal.SIG_DFL), int(signal.SIG_IGN), int(signal.SIG_IGN)])
