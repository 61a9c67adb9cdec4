"""Jittor's switches in the environment: the table is complete, and what is ignored is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from utils.runtime.jittor_switches import IGNORED, TAKEN, ignore_others

ROOT = Path(__file__).resolve().parents[3]
IGNORED_NAMES = [name for names in IGNORED.values() for name in names.split()]
# Not Jittor's own, read for other systems or kinds of runs, or only written.
OF_OTHERS = {"PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CONDA_PREFIX", "TERM", "SWAIT", "JTCUDA_VERSION"}
OF_OTHERS |= {"JPY_PARENT_PID", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}


def test_every_switch_of_jittor_is_decided():
    """The flags of its C++ sources, and what these and its Python files read from the environment."""
    package = find_spec("jittor")
    if package is None:
        pytest.skip("no Jittor")
    jittor = Path(package.origin).parent
    python = [*jittor.glob("*.py"), *(jittor.parent / "jittor_utils").glob("*.py")]
    texts = [path.read_text("utf-8", errors="replace") for path in python]
    read = {name for text in texts for name in re.findall(r"(?:environ(?:\.get)?[\[(]|getenv\()['\"](\w+)", text)}
    read |= {f"{name}" for text in texts for name in re.findall(r"env_or_(?:try_)?find\(['\"](\w+)", text)}
    sources = [path.read_text("utf-8", errors="replace") for path in (jittor / "src").rglob("*.cc")]
    for source in sources:
        read |= set(re.findall(r"\bgetenv\(\"(\w+)\"", source))
        read |= set(re.findall(r"^DEFINE_FLAG(?:_WITH_SETTER)? ?\([\w<> ]+, (\w+)", source, re.MULTILINE))
    assert len(read) > 90
    assert read - OF_OTHERS - {*TAKEN.split(), *IGNORED_NAMES} == set()
    assert not {*TAKEN.split()} & {*IGNORED_NAMES}


def test_what_is_ignored_is_named(monkeypatch):
    monkeypatch.setattr(os, "environ", {"use_cuda": "1", "cc_path": "clang", "PATH": "", "no_grad": "1"})
    line = ignore_others()
    assert line == "ignored in the environment: use_cuda=1 (--device decides), no_grad=1 (it would change results)"
    assert os.environ == {"cc_path": "clang", "PATH": ""}
    assert ignore_others() == ""


@pytest.mark.parametrize(("value", "named"), [("0", False), ("1", True)])
def test_a_child_process_inherits_our_own_choice_without_a_line(monkeypatch, value, named):
    monkeypatch.setattr(os, "environ", {"use_mpi": value})
    assert bool(ignore_others()) is named


def test_jittor_starts_and_computes_in_spite_of_its_switches():
    """use_cuda=1 alone aborts Jittor where there is no GPU; the others would change the result of 1/3 or abort."""
    switches = {"use_cuda": "1", "no_grad": "1", "auto_mixed_precision_level": "5", "compile_options": "x"}
    code = (
        "from utils.runtime.jittor_env import jt, use_device; use_device('cpu')\n"
        "x = jt.array([3.0]); print(jt.grad(1 / x, x).item(), jt.flags.use_cuda)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | switches,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    gradient, use_cuda = done.stdout.split()
    assert float(gradient) == pytest.approx(-1 / 9, rel=1e-6)
    assert use_cuda == "0"
    line = done.stderr.splitlines()[0]  # the next ones are Jittor's progress, if it compiles these operators
    assert all(f"{name}={value} (" in line for name, value in switches.items())
