"""CUDA on this machine: what is installed, why Jittor cannot use it, and a toolkit folder in the form Jittor expects.

Nothing here imports Jittor. `look` inspects the machine, `problem` names what is missing, and `toolkit_for_jittor`
makes the folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from utils.runtime import programs

Version = tuple[int, int]

DEVICES = ("auto", "cpu", "cuda")  # the choices of --device

# What Jittor 1.3.11 requires when it starts with CUDA (jittor/compile_extern.py; cuDNN, cuFFT and cuSPARSE only
# without conv_opt=1): library -> (its header, the wheel that contains both).
LIBRARIES = {
    "cudart": ("cuda_runtime.h", "nvidia-cuda-runtime"),
    "cublas": ("cublas_v2.h", "nvidia-cublas"),
    "cublasLt": ("cublasLt.h", "nvidia-cublas"),
    "curand": ("curand.h", "nvidia-curand"),
}
CURAND_SO_VERSION = 10  # in CUDA 10 to 13; the other libraries have CUDA's own version

# FILM needs no cuDNN (conv_opt), CUB (use_cub: see jittor-1.3.11.patch), cuTT, CUTLASS or NCCL; Jittor would download
# the last three.
SETTINGS = {"conv_opt": "1", "use_cub": "0", "use_cutt": "0", "use_cutlass": "0"}

# CUdevice_attribute
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver describes it."""

    name: str
    memory: int  # bytes
    capability: Version


@dataclass(frozen=True)
class Library:
    """Where a CUDA library and its header are."""

    file: Path
    include: Path


@dataclass(frozen=True)
class Cuda:
    """The parts of CUDA on this machine."""

    switched_off: bool = False  # nvcc_path='' in the environment
    on_bus: bool = False  # Linux lists an NVIDIA display controller
    driver: Version | None = None  # the newest CUDA version that the driver supports
    gpus: tuple[Gpu, ...] = ()
    nvcc: Path | None = None
    version: Version | None = None  # nvcc's
    oldest: Version = (0, 0)  # the oldest compute capability that nvcc compiles for
    compiler_refused: str = ""  # what nvcc says about the C++ compiler if it is too new or too old for it
    root: Path | None = None  # the toolkit's folder
    libraries: dict[str, Library] = field(default_factory=dict)

    @property
    def seems_there(self) -> bool:
        """Whether the user would expect the GPU to be used."""
        return self.on_bus or self.driver is not None or self.nvcc is not None


def text_of(version: Version | None) -> str:
    """(13, 0) -> '13.0'; None -> 'unknown'."""
    return "unknown" if version is None else ".".join(map(str, version))


def look() -> Cuda:
    """Find the parts of CUDA on this machine. nvcc runs (four times) only if a GPU is usable."""
    driver, gpus = driver_and_gpus()
    nvcc = find_nvcc()
    version = nvcc_version(nvcc) if nvcc and gpus else None
    root = toolkit_root(nvcc) if nvcc and version else None
    return Cuda(
        switched_off=os.environ.get("nvcc_path") == "",
        on_bus=nvidia_on_bus(),
        driver=driver,
        gpus=gpus,
        nvcc=nvcc,
        version=version,
        oldest=oldest_capability(nvcc) if nvcc and version else (0, 0),
        compiler_refused=compiler_refused(nvcc) if nvcc and version else "",
        root=root,
        libraries=find_libraries(root, version) if root and version else {},
    )


def problem(cuda: Cuda) -> str | None:
    """Why Jittor cannot use CUDA, in one line; None if nothing is missing."""
    if cuda.switched_off:
        return "switched off by nvcc_path=''"
    if cuda.driver is None:
        if cuda.nvcc:
            return f"nvcc at {cuda.nvcc}, but no NVIDIA driver"
        return "an NVIDIA GPU, but no driver" if cuda.on_bus else "no NVIDIA GPU"
    if not cuda.gpus:
        hidden = "CUDA_VISIBLE_DEVICES" in os.environ
        return "an NVIDIA driver, but no usable device" + (" (CUDA_VISIBLE_DEVICES is set)" if hidden else "")
    if cuda.nvcc is None:
        return f"{cuda.gpus[0].name}, but no nvcc: install the CUDA toolkit, or set nvcc_path"
    if cuda.version is None or cuda.root is None:
        return f"{cuda.nvcc} does not work: `nvcc --version` prints no version"
    # Within a major version, older drivers run the code of newer toolkits ("minor version compatibility").
    if cuda.driver[0] < cuda.version[0]:
        return (
            f"the driver supports CUDA up to {text_of(cuda.driver)}, nvcc is {text_of(cuda.version)}: install a newer "
            "driver, or set nvcc_path to the nvcc of an older toolkit"
        )
    if cuda.oldest == (0, 0):
        return f"{cuda.nvcc} is {text_of(cuda.version)}, which is too old: CUDA 11.8, 12 or 13 is needed"
    if cuda.compiler_refused:
        return (
            f"nvcc {text_of(cuda.version)} does not accept {host_compiler()} ({cuda.compiler_refused}): install "
            "another version, and set cc_path, for example cc_path=g++-11"
        )
    if cuda.gpus[0].capability < cuda.oldest:
        return (
            f"{cuda.gpus[0].name} has compute capability {text_of(cuda.gpus[0].capability)}, "
            f"nvcc {text_of(cuda.version)} compiles for {text_of(cuda.oldest)} and newer: set nvcc_path to the nvcc of "
            "an older toolkit"
        )
    for name, (header, wheel) in LIBRARIES.items():
        if name not in cuda.libraries:
            return f"nvcc at {cuda.nvcc}, but no lib{name}.so with {header} (for CUDA 13: `pip install {wheel}`)"
    return None


def out_of_memory(message: str) -> str | None:
    """What to tell the user if the message of an exception is Jittor's about a full GPU; None if it is another."""
    found = re.search(r"Unable to alloc cuda device memory for size\D*(\d+)", message)
    if found is None:
        return None
    return (
        f"out of device memory: {int(found[1]):,} bytes more do not fit; smaller images or batches need less "
        "(train.py: --batch_size, --crop), or use --device cpu"
    )


def nvidia_on_bus() -> bool:
    """Whether Linux lists a PCI display controller (class 03) by NVIDIA (vendor 10de)."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text()[:4] == "0x03":
                return True
        except OSError:
            continue
    return False


def driver_and_gpus() -> tuple[Version | None, tuple[Gpu, ...]]:
    """The CUDA version of the driver (None: no driver) and the usable devices."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, ()
    number = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(number))
    version = number.value // 1000, number.value % 1000 // 10
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return version, ()
    return version, tuple(_gpu(driver, index) for index in range(count.value))


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, memory, name = ctypes.c_int(0), ctypes.c_size_t(0), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = [ctypes.c_int(0), ctypes.c_int(0)]
    for value, attribute in zip(capability, (CAPABILITY_MAJOR, CAPABILITY_MINOR), strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return Gpu(name.value.decode(errors="replace"), memory.value, (capability[0].value, capability[1].value))


def find_nvcc() -> Path | None:
    """$nvcc_path if it is set, else nvcc on the PATH; if missing, the one in the toolkit's usual folders, else None."""
    places = (os.environ.get("nvcc_path") or "nvcc", "/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")
    found = next(filter(None, map(shutil.which, places)), None)
    return Path(found).absolute() if found else None


def _nvcc_output(nvcc: Path, *options: str) -> str:
    try:
        done = programs.run([nvcc, *options], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""


def nvcc_version(nvcc: Path) -> Version | None:
    """The version that nvcc prints: `release 13.0, V13.0.88` -> (13, 0); None if nvcc fails."""
    found = re.search(r"release (\d+)\.(\d+)", _nvcc_output(nvcc, "--version"))
    return (int(found[1]), int(found[2])) if found else None


def oldest_capability(nvcc: Path) -> Version:
    """The oldest compute capability that nvcc compiles for: `compute_75` -> (7, 5); (0, 0) if it does not say."""
    found = [int(number) for number in re.findall(r"compute_(\d+)", _nvcc_output(nvcc, "--list-gpu-arch"))]
    return divmod(min(found, default=0), 10)


def host_compiler() -> str:
    """The C++ compiler that Jittor uses, for nvcc's host code too."""
    return os.environ.get("cc_path") or "g++"


def compiler_refused(nvcc: Path) -> str:
    """What nvcc says about `host_compiler` if it does not accept its version, such as 'gcc versions later than 11 are
    not supported'; otherwise ''.
    """
    preprocess = [nvcc, "-ccbin", host_compiler(), "-E", "-x", "cu", os.devnull]
    try:
        done = programs.run(preprocess, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"unsupported \w+ version! ([^!]+)!", done.stderr)
    return found[1] if found else ""


def toolkit_root(nvcc: Path) -> Path:
    """The folder with include/ and lib64/. nvcc prints its path, even if the nvcc on the PATH is a script or a link."""
    found = re.search(r"TOP=(.+)", _nvcc_output(nvcc, "--dryrun", "-E", "-x", "cu", "/dev/null"))
    return Path(found[1]).resolve() if found else nvcc.resolve().parent.parent


def find_libraries(root: Path, version: Version) -> dict[str, Library]:
    """The LIBRARIES that exist in the toolkit at `root`, else in wheels of the same CUDA version."""
    machine = platform.machine()
    toolkit = [
        (root / "include", root / lib) for lib in ("lib64", f"targets/{machine}-linux/lib", f"lib/{machine}-linux-gnu")
    ]
    found: dict[str, Library] = {}
    for name, (header, wheel) in LIBRARIES.items():
        number = CURAND_SO_VERSION if name == "curand" else version[0]
        part = wheel.removeprefix("nvidia-").replace("-", "_")
        wheels = [
            (Path(path) / "nvidia" / folder / "include", Path(path) / "nvidia" / folder / "lib")
            for path in sys.path
            for folder in (f"cu{version[0]}", part)
        ]
        for include, lib in (*toolkit, *wheels):
            files = sorted(lib.glob(f"lib{name}.so.{number}*")) or sorted(lib.glob(f"lib{name}.so"))
            if files and (include / header).is_file():
                found[name] = Library(files[0], include)
                break
    return found


def environment(cuda: Cuda, folder: Path) -> dict[str, str]:
    """The environment variables that Jittor needs to start with this CUDA; values that the user has set are kept."""
    settings = dict(SETTINGS)
    if "OMPI_COMM_WORLD_SIZE" not in os.environ:
        settings["use_nccl"] = "0"
    settings = {name: os.environ.get(name, value) for name, value in settings.items()}
    return settings | {"nvcc_path": str(toolkit_for_jittor(cuda, folder))}


def toolkit_for_jittor(cuda: Cuda, folder: Path) -> Path:
    """Make a toolkit in the form that Jittor expects (bin/nvcc, include/, lib64/) in `folder`, and return its nvcc.

    Jittor takes headers and libraries only from the folder of nvcc. But cuBLAS and cuRAND may be in wheels, and nvcc
    may be a script elsewhere. The toolkit consists of links, and a script that calls the real nvcc. A toolkit in /usr
    (Debian) is used as it is: its headers must not be searched before those of the system.
    """
    assert cuda.nvcc and cuda.root and cuda.version
    if cuda.root == Path("/usr"):
        return cuda.nvcc
    links = {Path("include") / entry.name: entry for entry in sorted((cuda.root / "include").iterdir())}
    for name, library in cuda.libraries.items():
        for header in sorted(library.include.glob(f"{name}*")):
            links.setdefault(Path("include") / header.name, header)
        for alias in (f"lib{name}.so", library.file.name):
            links[Path("lib64") / alias] = library.file
    texts = {Path("bin/nvcc"): f'#!/bin/sh\nexec "{cuda.root}/bin/nvcc" "$@"\n'}
    digest = hashlib.sha1(repr((sorted(links.items()), sorted(texts.items()))).encode()).hexdigest()[:12]
    target = folder / f"{text_of(cuda.version)}-{digest}"
    if target.is_dir():
        return target / "bin" / "nvcc"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / "toolkit"
        for name in ("bin", "include", "lib64"):
            (made / name).mkdir(parents=True)
        for name, entry in links.items():
            (made / name).symlink_to(entry)
        for name, text in texts.items():
            (made / name).write_text(text)
        (made / "bin" / "nvcc").chmod(0o755)
        try:
            made.rename(target)
        except OSError:
            # Another process has made the same toolkit first.
            if not target.is_dir():
                raise
    return target / "bin" / "nvcc"
