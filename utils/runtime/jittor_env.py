"""Start Jittor on this machine: the only module that imports it.

Other modules write ``from utils.runtime.jittor_env import jt``. A plain ``import jittor`` ends the process on two
kinds of machines: with an nvcc but no CUDA runtime or driver, and without network, because it downloads oneDNN, cuTT
and CUTLASS. This module prevents both before the import, and reports any other failure in one line.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import signal
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

from utils.runtime import cores, cuda, jittor_switches, jittor_tree, onednn, processes, programs, signals
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
SWITCH_SECONDS = 0.1

# Below Jittor's home: the CUDA toolkit as Jittor expects it, and whether it worked.
CUDA_FOLDER = Path(".cache/jittor/film_cuda")
# Set for the process that tries CUDA: it uses what was found without a further check.
TRUST = "FILM_TRUST_CUDA"


def _check_compiler() -> None:
    """Raise a UserError if the C++ compiler or Python's headers are missing: Jittor compiles its kernels."""
    compiler = cuda.host_compiler()
    if shutil.which(compiler) is None:
        raise UserError(f"{compiler}: no C++ compiler; Jittor needs one (Debian and Ubuntu: apt install g++)")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise UserError(f"{header}: no Python headers; Jittor needs them (Debian and Ubuntu: apt install python3-dev)")


class _CompileProgress:
    """A progress bar in place of Jittor's own, which `log_silent` hides: the first start takes minutes."""

    def __init__(self, message: str, total: int) -> None:
        from tqdm import tqdm

        # With `delay` no bar appears if everything is compiled already.
        self._bar = tqdm(total=total, desc="Jittor compiles itself, once on this machine", unit="file", delay=2)

    def update(self, index: int) -> None:
        self._bar.update(index + 1 - self._bar.n)
        if self._bar.n == self._bar.total:
            self._bar.close()


def _begin_compiling(initializer: Callable[[], None]) -> None:
    """What a process that Jittor forks to compile does first: `initializer` is Jittor's own."""
    signals.leave_to_parent()
    initializer()


def _bring_up(machine: cuda.Cuda | None) -> ModuleType:
    """Prepare the environment, import Jittor (with the CUDA of `machine`, or without if it is None), and return it.

    Raises:
        UserError: no compiler, no headers, no Jittor, or an import that fails (with its reason in one line).
    """
    _check_compiler()
    if importlib.util.find_spec("jittor") is None:
        # --no-deps: Jittor asks for numpy<2, which has no wheels for Python 3.13.
        raise UserError("jittor: not installed; pip install --no-deps jittor==1.3.11.0")
    # Jittor names its cache after the current git branch. With a virtual environment inside a checkout, it would
    # compile everything again on every branch.
    os.environ.setdefault("cache_name", "default")
    if "log_v" not in os.environ:
        os.environ.setdefault("log_silent", "1")
    handlers = {number: signal.getsignal(number) for number in signals.STOP_SIGNALS}
    try:
        import jittor_utils

        jittor_utils.DelayProgress = _CompileProgress
        jittor_utils.pool_initializer = partial(_begin_compiling, jittor_utils.pool_initializer)
        # Jittor runs python3.x-config, which may be missing or belong to another Python.
        paths = sysconfig.get_paths()
        jittor_utils._py3_include_path = f'-I"{paths["include"]}" -I"{paths["platinclude"]}"'
        jittor_utils._py3_extension_suffix = sysconfig.get_config_var("EXT_SUFFIX")
        # Jittor would note $JITTOR_HOME as the default of all later starts.
        home = jittor_tree.jittor_home().absolute()
        jittor_utils._jittor_home = str(home)
        onednn.link(home)
        os.environ.update(cuda.environment(machine, home / CUDA_FOLDER) if machine else {"nvcc_path": ""})
        with warnings.catch_warnings():
            # Python 3.12 and later warn about escapes such as "\s" in its docstrings.
            warnings.simplefilter("ignore", SyntaxWarning)
            import jittor
    except SystemExit:
        # Jittor ends the process, without an error, when it has compiled a part of itself again that it had loaded.
        raise UserError("jittor: compiled itself again for other compiler settings; run the command again") from None
    except Exception as error:
        raise UserError(
            f"jittor: cannot be started ({one_line(error)}); "
            "`log_v=1 log_silent=0` in the environment shows its own log"
            + ("; with `nvcc_path=` it starts without CUDA" if machine else "")
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Jittor ends the process on some of them without cleaning up; with Python's handlers we finish properly.
        for number, handler in handlers.items():
            signal.signal(number, handler)
    # Jittor keeps the interpreter lock while it computes. Each thread that waits for the lock wakes up once in this
    # interval (by default 5 ms), and takes a core from the kernels.
    sys.setswitchinterval(SWITCH_SECONDS)
    # Its optimizer would send one message per gradient; utils/runtime/collective.py sends all gradients in one.
    jittor.in_mpi = False
    return jittor


def one_line(error: Exception | str) -> str:
    """The first line of a message, without the colours of Jittor's log."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def compute_on_gpu() -> None:
    """Compute small known results on the GPU with cuBLAS, cuRAND, a Jittor operator and a kernel.

    Raises:
        Exception: a computation does not compile, does not run, or has a wrong result.
    """
    _set_device(use_cuda=True, tf32=False)
    source = "twice<<<1, 32>>>(in0_p, in0->num, out0_p);"
    header = (
        "__global__ void twice(const float* x, int n, float* y) { int i = threadIdx.x; if (i < n) y[i] = 2 * x[i]; }"
    )
    results = {
        "matrix product": (jt.matmul(jt.ones((3, 5)), jt.ones((5, 2))), 5),
        "random numbers": (jt.random((4,)) < 2, 1),
        "sum": ((jt.ones((7,)) * 3).sum(), 21),
        "kernel": (jt.code((7,), "float32", [jt.ones((7,))], cuda_header=header, cuda_src=source), 2),
    }
    for name, (result, expected) in results.items():
        values = result.numpy()
        if (values != expected).any():
            raise RuntimeError(f"{name} on the GPU: {values.ravel()[0]} instead of {expected}")


# What another process does to try CUDA. It ends at once: destructors could add lines to its last one.
_TRIAL = """
import os
try:
    from utils.training.trial import try_the_gpu
    try_the_gpu()
except BaseException as error:
    print("reason: " + (str(error).strip() or type(error).__name__), flush=True)
    os._exit(1)
os._exit(0)
"""


def try_gpu(machine: cuda.Cuda) -> str | None:
    """Start Jittor with CUDA in another process and train there, a little. Return why it failed in one line, else None.

    It has to be another process, because Jittor ends the process on failure, and cannot be imported twice.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_"))}
    done = programs.run(
        [sys.executable, "-c", _TRIAL], cwd=ROOT, env=inherited | {TRUST: "1"}, capture_output=True, text=True
    )
    if done.returncode == 0:
        return None
    reasons = re.findall("^reason: (.+)", done.stdout, re.MULTILINE)
    # What a C++ library says about its own end is not the reason.
    said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("terminate called")]
    lines = [one_line(line) for line in reasons or said]
    return lines[-1] if lines else f"its process ended with exit code {done.returncode}"


def _problem(machine: cuda.Cuda) -> str | None:
    """Why Jittor cannot use CUDA here; None if it can. If nothing is missing, CUDA is tried, once per machine."""
    found = cuda.problem(machine)
    if found or os.environ.get(TRUST) == "1":
        return found
    import jittor_utils

    # Everything that could change the result; not how nvcc was found.
    known = replace(machine, nvcc=None), importlib.metadata.version("jittor"), sys.version, platform.node()
    digest = hashlib.sha1(repr(known).encode()).hexdigest()[:12]
    memory = Path(jittor_utils.home()) / CUDA_FOLDER / f"tried-{digest}.txt"
    if not memory.is_file():
        print("CUDA is tried, once on this machine; Jittor is compiled for it (minutes)", file=sys.stderr)
        failure = try_gpu(machine) or ""
        with atomic_path(memory) as temporary:
            temporary.write_text(failure, encoding="utf-8")
    failure = memory.read_text(encoding="utf-8")
    return f"it did not work when it was tried ({failure}); delete {memory} to try again" if failure else None


def _set_device(use_cuda: bool, tf32: bool) -> None:
    """Set Jittor's device and the precision of matrix products."""
    jt.flags.use_cuda = int(use_cuda)
    if use_cuda:
        # cuBLAS in full float32 (CUBLAS_COMPUTE_32F), or with operands rounded to TF32.
        jt.flags.use_tensorcore = int(tf32)
        # Copy new arrays to the GPU without waiting for it. By default, Jittor waits, and copies back and forth.
        jt.flags.use_cuda_host_allocator = 0
        # exp, division and square root as exact as on the CPU.
        jt.flags.nvcc_flags = jt.flags.nvcc_flags.replace("--use_fast_math", "")


def use_device(name: str, tf32: bool = False) -> str:
    """Choose where Jittor computes, and return one line that says so.

    Args:
        name: 'auto' (a GPU if one works, else the CPU), 'cpu' or 'cuda'.
        tf32: matrix products on a GPU may round their operands to TF32 (10 bits of mantissa); no effect on a CPU.

    Raises:
        UserError: `name` is unknown, or 'cuda' is unavailable here.
    """
    if name not in cuda.DEVICES:
        raise UserError(f"device {name!r}: expected one of {', '.join(cuda.DEVICES)}")
    if name == "cuda" and CUDA_PROBLEM:
        raise UserError(f"--device cuda: no CUDA here ({CUDA_PROBLEM}); use --device cpu or auto")
    _set_device(name != "cpu" and CUDA_PROBLEM is None, tf32)
    if jt.flags.use_cuda:
        precision = "TF32" if tf32 else "float32"
        return f"device: cuda, {CUDA.gpus[0].name}, matrix products in {precision} (Jittor {jt.__version__})"
    why = f"; CUDA not used: {CUDA_PROBLEM}" if name == "auto" and CUDA_PROBLEM and CUDA.seems_there else ""
    return f"device: cpu, {cores.count()} threads (Jittor {jt.__version__}{why})"


if (_line := jittor_switches.ignore_others()) and processes.is_main():
    print(_line, file=sys.stderr)
processes.prepare()
jittor_tree.require_cache()
jittor_tree.prefer_patched()
CUDA = cuda.look()
CUDA_PROBLEM = _problem(CUDA)
jt = _bring_up(None if CUDA_PROBLEM else CUDA)
