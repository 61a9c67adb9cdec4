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
from utils.runtime import cuda

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def computing(on_standin, folder) -> Callable[..., str]:
    """computing(*ARGUMENTS, **settings) runs Python on the stand-in, which computes, and returns what it printed."""
    # Some sections also compute on the CPU; test_dry_run.py finds no operator for the CPU in the folder of its own.
    always = {"STANDIN_COMPUTE": "1", "HOME": str(folder / "computing")}

    def run(*arguments: str | Path, **settings: str) -> str:
        done = on_standin(*arguments, **always, **settings)
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
    code = f"import json; from tools.gpu_sections import *; print(json.dumps(list({call})))"
    # In Jittor's pool an operator's arrays can be neighbours, and what is read behind one of them is in another one.
    # train.py runs with the pool, as users have it.
    pool = {} if section == "trajectory" else {"use_sfrl_allocator": "0"}
    printed = computing("-c", code, **pool)
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
    """mistakes.cu, compiled; its kernels are also described and translated, as compile.py does it with operators."""
    folder = tmp_path_factory.mktemp("mistakes")
    source = Path(__file__).with_name("mistakes.cu")
    command = [nvcc, "-ccbin", cuda.host_compiler(), "-arch=sm_90", "--cudart=shared", f"-L{toolkit / 'lib64'}"]
    command += ["--keep", "--keep-dir", folder, "-Xptxas", "-v", source, "-o", folder / "mistakes"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    note = "import sys; from pathlib import Path; from compile import *; note_kernels(Path(sys.argv[1]), sys.argv[2])"
    subprocess.run([sys.executable, "-c", note, folder / "mistakes", done.stderr], cwd=standin.HERE, check=True)
    subprocess.run([sys.executable, standin.HERE / "ptx.py", folder / "mistakes.ptx"], check=True, timeout=300)
    return folder / "mistakes"


OUTSIDE = r" at 0x\w+, byte {} of an array of 400 bytes"


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("none", ""),
        ("read", r"shift.*: ld.global.f32" + OUTSIDE.format(400)),
        ("read before", r"shift.*: ld.global.f32" + OUTSIDE.format(-4)),
        ("read four", r"shift_quads.*: ld.global.v4.[fu]32" + OUTSIDE.format(400)),
        ("misaligned", r"shift_quads.*: ld.global.v4.[fu]32" + OUTSIDE.format(4)),
        ("write", r"shift.*: st.global.f32" + OUTSIDE.format(400)),
        ("add", r"add.*: (atom|red).global.add.f32" + OUTSIDE.format(400)),
        ("shared write", r"reverse.*: st.shared.f32" + OUTSIDE.format(400)),
        ("shared read", r"reverse.*: ld.shared.f32" + OUTSIDE.format(400)),
        ("local write", r"keep.*: st.local.f32" + OUTSIDE.format(400)),
        ("local read", r"keep.*: ld.local.f32" + OUTSIDE.format(400)),
        ("parameter", r"look_up.*: ld.(param|local).f32" + OUTSIDE.format(400)),
        ("wait", r"threads wait for others that never come: \w*wait"),
        ("threads", r"block: \w*wait.*\(2048, 1, 1\)"),
        ("bounds", r"launch bounds: \w*bounded.*\(128, 1, 1\)"),
        ("registers", r"registers: \w*many_registers.*\(1024, 1, 1\)"),
        ("blocks", r"grid: \w*bounded.*\(1, 65536, 1\)"),
        ("shared memory", r"shared memory: \w*bounded.*49153"),
    ],
)
def test_a_mistake_is_noticed(toolkit, mistakes, mistake, said):
    """One element past an array, a barrier that not all threads reach, and launches that are not possible."""
    settings = {"LD_LIBRARY_PATH": str(toolkit / "lib64"), "STANDIN_COMPUTE": "1"}
    done = subprocess.run([mistakes, mistake], env=settings, capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stderr.splitlines() if line.startswith("stand-in: ")]
    if mistake == "none":
        assert lines == []
        # x is 0..99, and x[0] becomes 1; reversed, plus 1, minus 0..99
        assert [float(word) for word in done.stdout.split()[:100]] == [*(100 - 2 * i for i in range(99)), 2 - 99]
    else:
        assert len(lines) == 1
        assert re.search(said, lines[0])


KERNEL = """.entry kernel()
{{
.reg .pred %p<9>;
.reg .b16 %rs<9>;
.reg .b32 %r<9>;
.reg .f32 %f<9>;
.reg .b64 %rd<9>;
{}
ret;
}}
"""


@pytest.mark.parametrize(
    "line",
    [
        "sin.approx.f32 %f1, %f2;",
        "rcp.approx.ftz.f32 %f1, %f2;",
        "sqrt.approx.f32 %f1, %f2;",
        "ex2.approx.f32 %f1, %f2;",
        "div.full.f32 %f1, %f2, %f3;",
        "add.ftz.f32 %f1, %f2, %f3;",
        "fma.rz.f32 %f1, %f2, %f3, %f4;",
        "cvt.rzi.s32.f32 %r1, %f1;",
        "mov.b64 {%r1, %r2}, %rd1;",
        "mov.b64 %rd1, {%r1, %r2};",
        "setp.lt.s32 %p1|%p2, %r1, %r2;",
        "setp.lt.and.s32 %p1, %r1, %r2, %p3;",
        "ld.f32 %f1, [%rd1];",
        "ld.const.f32 %f1, [%rd1];",
        "ld.volatile.global.f32 %f1, [%rd1];",
        "ld.global.nc.L1::no_allocate.f32 %f1, [%rd1];",
        "prefetch.global.L2 [%rd1];",
        "bar.sync 1;",
        "shfl.sync.idx.b32 %r1, %r2, 0, 31, -1;",
        "mov.u32 %r1, %laneid;",
        "{add.f16 %rs1, %rs2, %rs3;",
        "call.uni (%r1),",
        ".shared .align 4 .f32 array[4];",
        ".global .align 4 .b8 table[16];",
    ],
)
def test_an_unknown_instruction_is_refused_by_name(tmp_path, line):
    """Nothing is left out, and no word of an instruction that says how to compute is ignored."""
    (tmp_path / "kernel.ptx").write_text(KERNEL.format(line))
    command = [sys.executable, standin.HERE / "ptx.py", tmp_path / "kernel.ptx"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].endswith(f"kernel.ptx is not translated: {line}")


def values_of(expressions: list[str], folder: Path) -> list[float]:
    """The values of C++ expressions in ptx.h."""
    calls = "".join(f'printf("%a\\n", (double)({expression}));' for expression in expressions)
    source = f'#include <cstdio>\n#include "ptx.h"\nint main() {{ using namespace ptx; {calls} }}\n'
    command = ["g++", "-O1", "-march=native", "-ffp-contract=off", "-fno-operator-names", "-w", f"-I{standin.HERE}"]
    subprocess.run([*command, "-xc++", "-", "-o", folder / "values"], input=source, text=True, check=True, timeout=60)
    printed = subprocess.run([folder / "values"], check=True, capture_output=True, text=True, timeout=60).stdout
    return [float.fromhex(line) for line in printed.splitlines()]


def test_instructions_round_as_on_a_gpu(tmp_path):
    """Values at the limits of their rules; ex2.approx is inexact."""
    exact = {
        # 1 + 2^-11 - 2^-80, rounded down, has 2^-11 - 2^-23 behind the 1; to nearest, 2^-11.
        "fma_rm<f32>(1, 1 + 0x1p-11f, -0x1p-80f)": 1 + 2**-11 - 2**-23,
        "fma<f32>(1, 1 + 0x1p-11f, -0x1p-80f)": 1 + 2**-11,
        # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: only what is not rounded in between has the last term.
        "fma<f32>(1 + 0x1p-12f, 1 + 0x1p-12f, -1 - 0x1p-11f)": 2**-24,
        "add<f32>(mul<f32>(1 + 0x1p-12f, 1 + 0x1p-12f), -1 - 0x1p-11f)": 0,
        "mul<f32>(0x1p-100f, 0x1p-40f)": 2**-140,  # subnormal numbers count
        "ex2_approx_ftz<f32>(-127)": 0,  # but not here
        "ex2_approx_ftz<f32>(0)": 1,
        "ex2_approx_ftz<f32>(-INFINITY)": 0,
        "copysign<f32>(min<f32>(0.0f, -0.0f), 1)": -1,
        "cvt_sat<f32, f32>(NAN)": 0,
        "max<f32>(NAN, -1)": -1,
        "setp_ne<f32>(NAN, 1)": 0,
        "setp_neu<f32>(NAN, 1)": 1,
        "shr<s32>(-8, 40)": -1,
        "shl<b32>(1, 32)": 0,
        "mul_hi<s64>(-1, 1)": -1,
    }
    assert dict(zip(exact, values_of([*exact], tmp_path), strict=True)) == exact
    powers = [3.3, -5.7, 1 / 3, 0.7, -0.9, 1.1, 2.9, -3.1]
    computed = values_of([f"ex2_approx_ftz<f32>({x.hex()})" for x in map(float, np.float32(powers))], tmp_path)
    errors = np.array(computed) / 2.0 ** np.float32(powers).astype(np.float64) - 1
    assert np.all(np.abs(np.abs(errors) - 2**-22) <= 2**-23)
    assert errors.min() < 0 < errors.max()
