"""What is found of CUDA, and what is said where something is missing. The driver and the toolkit are made here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from utils.runtime import cuda, jittor_env
from utils.runtime.cuda import Cuda, Gpu, Library, find_libraries, problem, toolkit_for_jittor
from utils.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
GPU = Gpu("Test GPU", 8 << 30, (9, 0))
LIBRARY = Library(Path("/x/lib"), Path("/x/include"))
WHOLE = Cuda(
    driver=(13, 0),
    gpus=(GPU,),
    nvcc=Path("/x/bin/nvcc"),
    version=(13, 0),
    oldest=(7, 5),
    root=Path("/x"),
    libraries=dict.fromkeys(cuda.LIBRARIES, LIBRARY),
)


def test_a_whole_machine_has_no_problem():
    assert problem(WHOLE) is None
    assert problem(replace(WHOLE, driver=(13, 2), version=(12, 4))) is None
    assert problem(replace(WHOLE, driver=(12, 2), version=(12, 8))) is None, "minor versions are compatible"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"switched_off": True}, "switched off by nvcc_path=''"),
        ({"driver": None}, "nvcc at /x/bin/nvcc, but no NVIDIA driver"),
        ({"driver": None, "nvcc": None, "on_bus": True}, "an NVIDIA GPU, but no driver"),
        ({"driver": None, "nvcc": None}, "no NVIDIA GPU"),
        ({"gpus": ()}, "no usable device"),
        ({"nvcc": None}, "Test GPU, but no nvcc"),
        ({"version": None}, "/x/bin/nvcc does not work"),
        ({"driver": (12, 4)}, "the driver supports CUDA up to 12.4, nvcc is 13.0"),
        ({"version": (10, 2), "oldest": (0, 0)}, "nvcc is 10.2, which is too old: CUDA 11.8, 12 or 13 is needed"),
        (
            {"version": (11, 8), "compiler_refused": "gcc versions later than 11 are not supported"},
            "(gcc versions later than 11 are not supported): install another version, and set cc_path",
        ),
        (
            {"gpus": (replace(GPU, capability=(6, 1)),)},
            "Test GPU has compute capability 6.1, nvcc 13.0 compiles for 7.5 and newer",
        ),
        (
            {"libraries": {"cudart": LIBRARY}},
            "no libcublas.so with cublas_v2.h (for CUDA 13: `pip install nvidia-cublas`",
        ),
        ({"libraries": {}}, "no libcudart.so"),
    ],
)
def test_each_broken_state_is_named_in_one_line(change, said):
    line = problem(replace(WHOLE, **change))
    assert said in line
    assert "\n" not in line


def test_auto_is_silent_only_where_nothing_looks_like_a_gpu():
    assert not Cuda().seems_there
    for sign in ({"on_bus": True}, {"driver": (13, 0)}, {"nvcc": Path("/x")}):
        assert Cuda(**sign).seems_there


DRIVER = r"""
#include <cstdlib>
#include <cstring>
static int env(const char* name) { const char* v = getenv(name); return v ? atoi(v) : 0; }
extern "C" {
int cuDriverGetVersion(int* v) { *v = env("FAKE_VERSION"); return 0; }
int cuInit(unsigned) { return env("FAKE_INIT"); }
int cuDeviceGetCount(int* n) { *n = env("FAKE_COUNT"); return 0; }
int cuDeviceGet(int* d, int i) { *d = i; return 0; }
int cuDeviceGetName(char* s, int n, int) { strncpy(s, "Fake GPU", n); return 0; }
int cuDeviceTotalMem_v2(size_t* m, int) { *m = 3ul << 30; return 0; }
int cuDeviceGetAttribute(int* v, int attribute, int) { *v = attribute == 75 ? 8 : 6; return 0; }
}
"""
NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.1";;
--dryrun) echo "#$ TOP={top}" >&2;;
--list-gpu-arch) echo "compute_120"; echo "compute_75"; echo "compute_90";;
esac
"""


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory) -> Path:
    """A folder with a libcuda.so.1 that says what FAKE_... in the environment asks it to."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.cc").write_text(DRIVER)
    subprocess.run(
        ["g++", "-shared", "-fPIC", folder / "driver.cc", "-o", folder / "libcuda.so.1"], check=True, timeout=60
    )
    return folder


def make_toolkit(folder: Path, version: str, libraries: dict[str, str]) -> Path:
    """A toolkit with these libraries (name -> file name), and an nvcc that is a script on the way to it."""
    for name in ("bin", "include", "lib64"):
        (folder / name).mkdir(parents=True)
    for library, file in libraries.items():
        (folder / "lib64" / file).touch()
        (folder / "include" / cuda.LIBRARIES[library][0]).touch()
    for path in (folder / "bin" / "nvcc", folder.parent / "nvcc"):
        path.write_text(NVCC.format(version=version, top=folder / "bin" / ".."))
        path.chmod(0o755)
    return folder.parent / "nvcc"


ALL_OF_12 = {
    "cudart": "libcudart.so.12",
    "cublas": "libcublas.so.12",
    "cublasLt": "libcublasLt.so.12",
    "curand": "libcurand.so.10",
}


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        ({"FAKE_VERSION": "12040", "FAKE_COUNT": "1"}, None),
        ({"FAKE_VERSION": "11080", "FAKE_COUNT": "1"}, "the driver supports CUDA up to 11.8, nvcc is 12.4"),
        ({"FAKE_VERSION": "12040", "FAKE_COUNT": "0"}, "no usable device"),
        ({"FAKE_VERSION": "12040", "FAKE_INIT": "100"}, "no usable device"),
    ],
)
def test_driver_and_toolkit_are_asked(tmp_path, fake_driver, driver, said):
    nvcc = make_toolkit(tmp_path / "toolkit", "12.4", ALL_OF_12)
    code = (
        "from utils.runtime.cuda import look, problem; found = look(); print(found.gpus, found.version, problem(found))"
    )
    environment = os.environ | driver | {"LD_LIBRARY_PATH": str(fake_driver), "nvcc_path": str(nvcc)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    if said is None:
        expected = Gpu("Fake GPU", 3 << 30, (8, 6))
        assert done.stdout == f"({expected},) (12, 4) None\n"
    else:
        assert said in done.stdout


def test_nvcc_that_fails_is_no_toolkit(tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    assert cuda.nvcc_version(nvcc) is None
    assert cuda.oldest_capability(nvcc) == (0, 0)


def test_nvcc_says_for_which_gpus_it_compiles(tmp_path):
    assert cuda.oldest_capability(make_toolkit(tmp_path / "toolkit", "12.4", ALL_OF_12)) == (7, 5)


def test_nvcc_says_which_compilers_it_does_not_accept(tmp_path):
    """As the headers of CUDA 11.8 do with g++ 12."""
    nvcc = make_toolkit(tmp_path / "toolkit", "11.8", {})
    assert cuda.compiler_refused(nvcc) == ""
    error = "#error -- unsupported GNU version! gcc versions later than 11 are not supported! The nvcc flag can"
    nvcc.write_text(f'#!/bin/sh\necho "crt/host_config.h:132:2: error: {error}" >&2\nexit 1\n')
    assert cuda.compiler_refused(nvcc) == "gcc versions later than 11 are not supported"


def test_libraries_may_come_from_wheels_of_the_same_version(tmp_path, monkeypatch):
    make_toolkit(tmp_path / "toolkit", "13.0", {"cudart": "libcudart.so.13"})
    wheel = tmp_path / "site" / "nvidia"
    for folder, version in (("cublas", 12), ("cu13", 13)):
        for library in ("cublas", "cublasLt"):
            for name in (f"lib/lib{library}.so.{version}", f"include/{cuda.LIBRARIES[library][0]}"):
                (wheel / folder / name).parent.mkdir(parents=True, exist_ok=True)
                (wheel / folder / name).touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = find_libraries(tmp_path / "toolkit", (13, 0))
    assert found["cublas"].file == wheel / "cu13" / "lib" / "libcublas.so.13"
    assert found["cudart"].file == tmp_path / "toolkit" / "lib64" / "libcudart.so.13"
    assert find_libraries(tmp_path / "toolkit", (12, 8))["cublas"].file == wheel / "cublas" / "lib" / "libcublas.so.12"


def test_jittor_gets_a_toolkit_in_its_terms(tmp_path):
    """nvcc, headers and libraries side by side, under the names without version; the second time nothing is made."""
    nvcc = make_toolkit(tmp_path / "toolkit", "12.4", ALL_OF_12)
    root = tmp_path / "toolkit"
    found = replace(WHOLE, nvcc=nvcc, version=(12, 4), root=root, libraries=find_libraries(root, (12, 4)))
    made = toolkit_for_jittor(found, tmp_path / "made")
    assert cuda.nvcc_version(made) == (12, 4)
    for name, file in ALL_OF_12.items():
        assert (made.parent.parent / "lib64" / f"lib{name}.so").resolve().name == file
        assert (made.parent.parent / "lib64" / file).exists()
    assert (made.parent.parent / "include" / "cublas_v2.h").is_file()
    # what a child process sees, whose nvcc_path is the one just made
    assert toolkit_for_jittor(replace(found, nvcc=made), tmp_path / "made") == made
    assert len(list((tmp_path / "made").iterdir())) == 1


@pytest.mark.skipif(not Path("/usr/local/cuda/include/cuda_runtime.h").is_file(), reason="no CUDA headers here")
def test_jittors_helper_compiles_with_this_toolkit(tmp_path):
    """Jittor's own helper_cuda.h names members that CUDA 13 took away; jittor-1.3.11.patch leaves them out."""
    nvcc = Path("/usr/local/cuda/bin/nvcc")
    version, root = cuda.nvcc_version(nvcc), cuda.toolkit_root(nvcc)
    found = replace(WHOLE, nvcc=nvcc, version=version, root=root, libraries=find_libraries(root, version))
    include = toolkit_for_jittor(found, tmp_path).parent.parent / "include"
    source = tmp_path / "a.cc"
    source.write_text('#define IS_CUDA\n#include <cuda_runtime.h>\n#include "helper_cuda.h"\n')
    jittor = Path(jittor_env.jt.__file__).parent
    folders = [f"-I{folder}" for folder in (include, jittor / "extern" / "cuda" / "inc", jittor / "src")]
    done = subprocess.run(
        ["g++", "-std=c++14", "-fsyntax-only", "-w", *folders, source], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_a_gpu_is_tried_once_and_what_came_of_it_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["jittor_utils"], "home", lambda: str(tmp_path))
    monkeypatch.delenv(jittor_env.TRUST, raising=False)
    tries = []

    def fails(machine: Cuda) -> str:
        tries.append(machine)
        return "no kernel image"

    monkeypatch.setattr(jittor_env, "try_gpu", fails)
    line = jittor_env._problem(WHOLE)
    assert "no kernel image" in line
    assert jittor_env._problem(WHOLE) == line
    assert len(tries) == 1
    # another driver is another machine, and the way out that the line names works
    monkeypatch.setattr(jittor_env, "try_gpu", lambda machine: None)
    assert jittor_env._problem(replace(WHOLE, driver=(13, 1))) is None
    Path(line.split("delete ")[1].split(" to try")[0]).unlink()
    assert jittor_env._problem(WHOLE) is None


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        ("print('reason: no kernel image\\nmore'); raise SystemExit(1)", "no kernel image"),
        ("raise SystemExit('Segfault\\nterminate called without an active exception')", "Segfault"),
        ("import os; os._exit(3)", "its process ended with exit code 3"),
        ("pass", None),
    ],
)
def test_the_reason_of_a_failed_try_is_found(monkeypatch, trial, reason):
    monkeypatch.setattr(jittor_env, "_TRIAL", trial)
    assert jittor_env.try_gpu(WHOLE) == reason


def test_a_try_that_fails_gives_its_last_line(monkeypatch):
    """Here without a GPU: Jittor, started without CUDA, refuses the device."""
    if jittor_env.CUDA_PROBLEM is None:
        pytest.skip("this machine has a GPU that works")
    reason = jittor_env.try_gpu(WHOLE)
    assert reason
    assert "\n" not in reason


def test_cuda_in_name_only_is_refused_or_told(monkeypatch):
    monkeypatch.setattr(jittor_env, "CUDA", WHOLE)
    monkeypatch.setattr(jittor_env, "CUDA_PROBLEM", "the driver is too old")
    with pytest.raises(UserError, match=r"--device cuda: no CUDA here \(the driver is too old\)"):
        jittor_env.use_device("cuda")
    assert "CUDA not used: the driver is too old" in jittor_env.use_device("auto")
    assert "CUDA" not in jittor_env.use_device("cpu")
    monkeypatch.setattr(jittor_env, "CUDA", Cuda())
    assert "CUDA" not in jittor_env.use_device("auto")
