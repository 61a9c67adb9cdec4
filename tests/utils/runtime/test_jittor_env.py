"""Bring-up: devices, and the machines on which a plain `import jittor` dies."""

from __future__ import annotations

import ctypes
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from utils.runtime.errors import UserError
from utils.runtime.jittor_env import jt, use_device

ROOT = Path(__file__).resolve().parents[3]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_convolution_and_matrix_product_run():
    """What oneDNN computes: a 1x1 convolution of ones sums the channels, a product of ones the columns."""
    assert jt.nn.conv2d(jt.ones((1, 3, 4, 4)), jt.ones((2, 3, 1, 1))).numpy().tolist() == [[[[3.0] * 4] * 4] * 2]
    assert (jt.matmul(jt.ones((2, 5)), jt.ones((5, 3))).numpy() == 5).all()


def test_the_device_is_told_in_one_line():
    line = use_device("cpu")
    assert line.startswith("device: cpu")
    assert "\n" not in line
    assert jt.flags.use_cuda == 0


def test_a_thread_that_waits_for_the_interpreter_lock_seldom_wakes_up():
    """While this thread keeps the lock for 0.5 s, as Jittor does when it computes: not 100 times, Python's default."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            time.sleep(0.001)

    def times_slept() -> int:
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)[1])

    thread = threading.Thread(target=work)
    thread.start()
    before = times_slept()
    ctypes.PyDLL(None).usleep(500_000)
    counted = times_slept() - before
    stop.set()
    thread.join()
    assert counted < 20


def test_unknown_device_is_an_error():
    with pytest.raises(UserError, match="cpu"):
        use_device("tpu")


def test_no_compiler_is_one_line(tmp_path):
    code = (
        "from utils.runtime.cli import run_command\n"
        "def main(argv):\n    import utils.runtime.jittor_env\n"
        "raise SystemExit(run_command(main))"
    )
    # Jittor, already up in this process, has left its compiler in the environment.
    done = run_python(code, PATH=str(tmp_path), cc_path="")
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "g++" in done.stderr


def test_a_start_that_jittor_ends_is_one_line(tmp_path):
    """With other compiler settings, such as $cc_flags, Jittor compiles a part again and ends with exit code 0."""
    (tmp_path / "jittor.py").write_text("raise SystemExit(0)")
    code = (
        "import sys\nfrom utils.runtime import cli, jittor_env\n"
        f"del sys.modules['jittor']\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "raise SystemExit(cli.run_command(lambda argv: jittor_env._bring_up(None)))"
    )
    done = run_python(code)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("for other compiler settings; run the command again")


@pytest.mark.parametrize(
    "order",
    ["import torch; from utils.runtime.jittor_env import jt", "from utils.runtime.jittor_env import jt; import torch"],
)
def test_torch_and_jittor_share_a_process_and_chatter_is_off(order):
    pytest.importorskip("torch")
    code = f"{order}\nprint(torch.ones(3, 3).matmul(torch.ones(3, 3)).sum().item(), jt.ones((3, 3)).sum().item())"
    run_python(code)  # the first time, operators are compiled, and that takes long enough to be shown
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "27.0 9.0\n"
    assert done.stderr == ""


def test_ctrl_c_raises_keyboard_interrupt():
    code = (
        "from utils.runtime.jittor_env import jt\nimport os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    [None for _ in range(10**6)]\n"
        "except KeyboardInterrupt:\n    print('caught')"
    )
    assert run_python(code).stdout == "caught\n"


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "int32", "float16", "float32"])
def test_arrays_of_every_type_come_back_as_they_were(dtype):
    values = (np.arange(24).reshape(2, 3, 4) % 2).astype(dtype)
    for array in (values, values[:, ::2], values.transpose(2, 0, 1), values[1:, :, 1:3]):
        back = jt.array(array).numpy()
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_64_bits_become_32(dtype):
    back = jt.array(np.arange(6, dtype=dtype)).numpy()
    assert back.dtype == np.dtype(dtype[:-2] + "32")
    assert back.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "scalar", [2, 2.0, np.int64(2), np.int32(2), np.float32(2), np.float64(2), np.array(2), True + 1]
)
def test_numbers_of_python_and_numpy_become_variables(scalar):
    assert (jt.ones((2,)) * jt.array(scalar)).numpy().tolist() == [2, 2]
    assert (jt.ones((2,)) + scalar).numpy().tolist() == [3, 3]


@pytest.mark.parametrize("index", [2, np.int64(2), np.int32(2), np.uint8(2)])
def test_numbers_of_python_and_numpy_are_indices(index):
    assert jt.array(np.arange(5, dtype="float32"))[index].item() == 2


def test_an_array_of_strings_is_refused():
    with pytest.raises(RuntimeError, match="not support"):
        jt.array(np.array(["a"]))


def test_variables_are_saved_loaded_and_pickled(tmp_path):
    values = np.arange(6, dtype="float32").reshape(2, 3)
    jt.save({"a": jt.array(values), "n": 3}, str(tmp_path / "x.pkl"))
    loaded = jt.load(str(tmp_path / "x.pkl"))
    assert loaded["n"] == 3
    assert np.array_equal(loaded["a"], values)
    assert np.array_equal(pickle.loads(pickle.dumps(jt.array(values))).numpy(), values)


def test_data_of_a_variable_is_its_memory():
    variable = jt.zeros((2, 2))
    variable.data[0, 1] = 5
    assert variable.numpy().tolist() == [[0, 5], [0, 0]]
