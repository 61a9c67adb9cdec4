"""The GPU path without a GPU: the stand-in computes what nvcc made of the kernels; is it right? (README.md)"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cuda import standin
from tests.golden.make import GOLDEN
from tests.golden.rule import text_feature
from tools.gpu_sections import GRAY_LEVELS, WEIGHTS
from utils.data.h5 import Sample, write_h5
from utils.evaluation.evaluate import differences

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def computing(on_standin, folder) -> Callable[..., str]:
    """computing(*ARGUMENTS) runs Python on the stand-in, which computes, and returns what it printed."""
    # Some sections also compute on the CPU; test_dry_run.py finds no operator for the CPU in the folder of its own.
    settings = {"STANDIN_COMPUTE": "1", "HOME": str(folder / "computing")}

    def run(*arguments: str | Path) -> str:
        done = on_standin(*arguments, **settings)
        assert done.returncode == 0, done.stderr[-6000:]
        assert "stand-in: " not in done.stderr, done.stderr[done.stderr.index("stand-in: ") :][:2000]
        return done.stdout

    return run


@pytest.mark.parametrize("section", ["golden", "primitives", "trajectory"])
def test_a_section_of_the_gpu_report(computing, section, tmp_path):
    """The network, losses and gradients; every operation, forward and backward; training steps next to PyTorch."""
    arguments = {"primitives": ", quick=False", "trajectory": f", folder={str(tmp_path)!r}, quick=True"}
    if section == "trajectory":
        pytest.importorskip("torch")
    call = f"{section}('cuda'{arguments.get(section, '')})"
    printed = computing("-c", f"import json; from tools.gpu_sections import *; print(json.dumps(list({call})))")
    rows = json.loads(printed.splitlines()[-1])
    for row in rows:
        print(row)  # pytest -s shows how close the values are
    assert rows
    assert [row for row in rows if not (row["value"] is not None and row["value"] <= row["tolerance"])] == []


def test_images_are_those_of_the_cpu(computing, tmp_path):
    """The PNG that test.py writes of a pair of 48x64."""
    with np.load(GOLDEN) as small:
        a, b = (small[f"image_{side}"][None].astype(np.float32) / 255 for side in "ab")
    write_h5(tmp_path / "Small_test.h5", [Sample("pair", a, b, text_feature()[0])])
    options = ["test.py", "--dataset", "Small", "--ckpt_path", WEIGHTS, "--h5_dir", str(tmp_path)]
    computing(*options, "--device", "cuda", "--out_dir", tmp_path / "cuda")
    cpu = [sys.executable, *options, "--device", "cpu", "--out_dir", str(tmp_path / "cpu")]
    subprocess.run(cpu, cwd=ROOT, check=True, capture_output=True, timeout=600)
    images = [{"pair": tmp_path / device / "Small" / "Gray" / "pair.png"} for device in ("cpu", "cuda")]
    largest = differences(*images)["pair"].largest
    print("gray levels:", largest)
    assert largest <= GRAY_LEVELS


@pytest.fixture(scope="module")
def mistakes(nvcc, toolkit, tmp_path_factory) -> Path:
    """mistakes.cu, compiled; its kernels are also translated."""
    folder = tmp_path_factory.mktemp("mistakes")
    source = Path(__file__).with_name("mistakes.cu")
    flags = ["-arch=compute_90", "--cudart=shared", f"-L{toolkit / 'lib64'}", "--keep", "--keep-dir", folder]
    subprocess.run([nvcc, *flags, source, "-o", folder / "mistakes"], check=True, timeout=300)
    subprocess.run([sys.executable, standin.HERE / "ptx.py", folder / "mistakes.ptx"], check=True, timeout=300)
    return folder / "mistakes"


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("none", ""),
        ("read", r"shift.*: ld.global.f32 at 0x\w+, byte 400 of an array of 400 bytes"),
        ("read before", r"shift.*: ld.global.f32 at 0x\w+, byte -4 of an array of 400 bytes"),
        ("write", r"shift.*: st.global.f32 at 0x\w+, byte 400 of an array of 400 bytes"),
        ("shared", r"reverse.*: st.shared.f32 at 0x\w+, byte 400 of an array of 400 bytes"),
        ("local", r"keep.*: st.local.f32 at 0x\w+, byte 400 of an array of 400 bytes"),
        ("wait", r"threads wait for others that never come: \w*wait"),
        ("threads", r"block: \w*wait.*\(2048, 1, 1\)"),
    ],
)
def test_a_mistake_is_noticed(toolkit, mistakes, mistake, said):
    """One element past an array, a barrier that not all threads reach, and a launch that is not possible."""
    settings = {"LD_LIBRARY_PATH": str(toolkit / "lib64"), "STANDIN_COMPUTE": "1"}
    done = subprocess.run([mistakes, mistake], env=settings, capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stderr.splitlines() if line.startswith("stand-in: ")]
    if mistake == "none":
        assert lines == []
        assert [float(word) for word in done.stdout.split()[:100]] == [*range(100, 0, -1)]
    else:
        assert len(lines) == 1
        assert re.search(said, lines[0])
