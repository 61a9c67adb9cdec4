"""Jittor on this machine: the one place that imports it.

Every module writes ``from utils.jittor_env import jt``. A plain ``import jittor`` ends the process on machines with an
nvcc but no CUDA runtime or driver, and on machines without network (it downloads oneDNN). This module settles both
before the import, and turns what still goes wrong into one line.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import signal
import sysconfig
import tempfile
import threading
from pathlib import Path
from types import ModuleType

from utils import processes
from utils.errors import UserError

DEVICES = ("auto", "cpu", "cuda")

# The folder in which Jittor 1.3.11 looks for oneDNN before it downloads one (jittor/compile_extern.py, install_mkl).
ONEDNN_FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"
# name in that folder -> (the wheel that holds it, the file of the wheel that marks it)
ONEDNN_PARTS = {
    "include": ("onednn-devel-cpu-gomp", "dnnl.hpp"),
    "lib/libmkldnn.so": ("onednn-cpu-gomp", "libdnnl.so.2"),
    "lib/libdnnl.so.2": ("onednn-cpu-gomp", "libdnnl.so.2"),
}


def link_onednn(home: Path) -> None:
    """Link the oneDNN of this environment's wheels to where Jittor (with this `home`) takes it without a download.

    What is there and whole stays. A link whose target is gone (a deleted environment) is replaced. Each link is
    renamed into place, so processes that start at once do not see a half-made one. Without the wheels (they exist for
    Linux on x86-64) nothing is done and Jittor downloads its own.
    """
    folder = home / ".cache" / "jittor" / "mkl" / ONEDNN_FOLDER
    for name, (package, marker) in ONEDNN_PARTS.items():
        link = folder / name
        if link.exists():
            continue
        target = _file_of(package, marker)
        if target is None:
            return
        if name == "include":
            target = target.parent
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mktemp(prefix=".link", dir=link.parent))
        temporary.symlink_to(target)
        temporary.replace(link)


def _file_of(package: str, name: str) -> Path | None:
    """Where the installed `package` holds a file called `name`; None if it does not."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(file.locate()).resolve()
        if file.name == name and path.is_file():
            return path
    return None


def cuda_problem() -> str | None:
    """Why Jittor could not use CUDA here, in a few words; None where compiler, runtime, driver and device are there."""
    nvcc = os.environ.get("nvcc_path")
    if nvcc == "":
        return "switched off by nvcc_path=''"
    nvcc = nvcc or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return "no nvcc"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return f"nvcc at {nvcc}, but no NVIDIA driver"
    devices = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(devices)) != 0 or devices.value == 0:
        return "an NVIDIA driver, but no device that answers"
    runtime = Path(nvcc).resolve().parent.parent / "lib64" / "libcudart.so"
    if not runtime.exists() and nvcc != "/usr/bin/nvcc":
        return f"nvcc at {nvcc}, but no CUDA runtime at {runtime}"
    return None


def _check_compiler() -> None:
    """Jittor compiles its kernels: without a C++ compiler and Python's headers nothing runs."""
    compiler = os.environ.get("cc_path") or "g++"
    if shutil.which(compiler) is None:
        raise UserError(f"{compiler}: no C++ compiler; Jittor needs one (Debian and Ubuntu: apt install g++)")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise UserError(f"{header}: no Python headers; Jittor needs them (Debian and Ubuntu: apt install python3-dev)")


class _CompileProgress:
    """Stands in for Jittor's own progress line, which its silence would swallow: a first start takes minutes."""

    def __init__(self, message: str, total: int) -> None:
        from tqdm import tqdm

        # What is compiled already goes by in an instant, and needs no bar.
        self._bar = tqdm(total=total, desc="Jittor compiles itself, once on this machine", unit="file", delay=2)

    def update(self, index: int) -> None:
        self._bar.update(index + 1 - self._bar.n)
        if self._bar.n == self._bar.total:
            self._bar.close()


def _bring_up(use_cuda: bool) -> ModuleType:
    """Prepare the machine, import Jittor (with or without its CUDA part), and return it.

    Raises:
        UserError: no compiler, no headers, or an import that fails (with its reason in one line).
    """
    _check_compiler()
    if not use_cuda:
        os.environ["nvcc_path"] = ""
    # Jittor names its cache after the git branch its files lie in: a virtual environment inside a checkout would
    # compile everything anew on every branch.
    os.environ.setdefault("cache_name", "default")
    if "log_v" not in os.environ:
        os.environ.setdefault("log_silent", "1")
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        import jittor_utils

        jittor_utils.DelayProgress = _CompileProgress
        link_onednn(Path(jittor_utils.home()))
        import jittor
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"jittor: cannot be started ({reason[0] if reason else type(error).__name__}); "
            "`log_v=1 log_silent=0` in the environment shows its own log"
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Jittor ends the process on Ctrl-C without cleaning up; Python's KeyboardInterrupt lets us finish properly.
        signal.signal(signal.SIGINT, interrupt or signal.default_int_handler)
    # Its optimizer would send each gradient in a message of its own; utils/processes.py sends them in one.
    jittor.in_mpi = False
    return jittor


def use_device(name: str) -> str:
    """Choose where Jittor computes, and return one line that says so.

    Args:
        name: 'auto' (a GPU where one works, else the CPU), 'cpu' or 'cuda'.

    Raises:
        UserError: 'cuda' on a machine where it cannot be had.
    """
    if name not in DEVICES:
        raise UserError(f"device {name!r}: expected one of {', '.join(DEVICES)}")
    problem = _CUDA_PROBLEM or (None if jt.has_cuda else "Jittor was built without it")
    if name == "cuda" and problem:
        raise UserError(f"--device cuda: no CUDA here ({problem}); use --device cpu or auto")
    jt.flags.use_cuda = int(name != "cpu" and problem is None)
    if jt.flags.use_cuda:
        return f"device: cuda (Jittor {jt.__version__})"
    why = f"; CUDA not used: {problem}" if name == "auto" and problem else ""
    return f"device: cpu, {os.cpu_count()} cores (Jittor {jt.__version__}{why})"


processes.prepare()
_CUDA_PROBLEM = cuda_problem()
jt = _bring_up(use_cuda=_CUDA_PROBLEM is None)
