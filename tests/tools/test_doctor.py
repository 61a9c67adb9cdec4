"""The doctor on simulated broken machines: what it says, and that it always prints its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tools import doctor
from tools.doctor import FAIL, NOTE, OK, SLOW, Circumstances, Finding, Kernel, Yardstick, examine, judge, likely_cause
from utils.runtime import cuda
from utils.runtime.cuda import Cuda, Gpu


def states(check) -> dict[str, str]:
    return {finding.name: finding.state for finding in check()}


def findings_of(check) -> dict[str, Finding]:
    return {finding.name: finding for finding in check()}


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("cc_path", raising=False)
    (finding,) = doctor.check_compiler()
    assert finding.state == FAIL
    assert "g++" in finding.advice


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("echo 'g++ (Debian) 7.5.0'", NOTE),
        ("echo 'g++ (Debian) 12.2.0'", OK),
        ("exit 1", FAIL),
    ],
)
def test_compilers_that_are_old_or_broken(monkeypatch, tmp_path, script, state):
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("cc_path", str(compiler))
    assert states(doctor.check_compiler) == {"compiler": state}


def test_no_python_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert states(doctor.check_python)["Python headers"] == FAIL


@pytest.mark.parametrize(("numpy", "jittor"), [(None, "1.3.11.0"), ("1.26.4", None), ("2.4.6", None)])
def test_packages_that_are_missing(monkeypatch, numpy, jittor):
    monkeypatch.setattr(doctor, "installed", {"numpy": numpy, "jittor": jittor}.get)
    found = findings_of(doctor.check_packages)
    assert {finding.state for finding in found.values()} == {OK, FAIL}
    assert all("requirements.lock" in finding.advice for finding in found.values() if finding.state == FAIL)


def test_onednn_of_the_wheel_of_jittor_and_none(monkeypatch, tmp_path):
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "installed", lambda package: None)
    (finding,) = doctor.check_onednn()
    assert finding.state == NOTE
    monkeypatch.setattr(doctor, "installed", lambda package: "2022.2.1")
    (finding,) = doctor.check_onednn()
    assert "linked at Jittor's first start" in finding.text
    library = tmp_path / ".cache" / "jittor" / "mkl" / "dnnl_x" / "lib" / "libmkldnn.so"
    library.parent.mkdir(parents=True)
    library.symlink_to(tmp_path / "deleted.so")
    assert states(doctor.check_onednn) == {"oneDNN": OK}
    library.unlink()
    library.touch()
    (finding,) = doctor.check_onednn()
    assert "own download" in finding.text
    library.unlink()
    (tmp_path / "libdnnl.so.2").touch()
    library.symlink_to(tmp_path / "libdnnl.so.2")
    (finding,) = doctor.check_onednn()
    assert "2022.2.1" in finding.text
    assert "wheel" in finding.text


def test_gpus_that_are_used_unused_or_absent(monkeypatch):
    monkeypatch.setattr(cuda, "look", Cuda)
    assert findings_of(doctor.check_cuda)["CUDA"].text.startswith("no NVIDIA GPU")
    mismatch = Cuda(driver=(12, 4), gpus=(Gpu("Test GPU", 8 << 30, (9, 0)),), nvcc=Path("/x/nvcc"), version=(13, 0))
    monkeypatch.setattr(cuda, "look", lambda: replace(mismatch, root=Path("/x")))
    found = findings_of(doctor.check_cuda)
    assert "8.0 GiB, compute capability 9.0" in found["GPU"].text
    assert "supports CUDA up to 12.4, nvcc is 13.0" in found["CUDA"].text
    assert found["cublas"].state == NOTE
    assert found["CUDA"].state == NOTE, "FILM runs on the CPU"


def test_cache_and_its_size(monkeypatch, tmp_path):
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path))
    (tmp_path / ".cache" / "jittor").mkdir(parents=True)
    (tmp_path / ".cache" / "jittor" / "kernel.so").write_bytes(bytes(3 << 20))
    assert "3 MiB in 1 files" in findings_of(doctor.check_cache)["cache"].text


def test_the_doctor_uses_the_cache_of_the_scripts_and_compiles_nothing_again():
    """The core of Jittor, which this test's process has compiled at the latest; and Jittor's log is not shown."""
    from utils.runtime.jittor_env import jt

    core = next(Path(jt.flags.cache_path).glob("jittor_core*.so"))
    before = core.stat().st_mtime_ns
    code = (
        "from tools import doctor; print(next(doctor.check_speed('cpu')).state)\n"
        "from utils.runtime.jittor_env import jt; print(jt.flags.cache_path); print(next(doctor.check_cache()).text)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "cache_name"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(doctor.__file__).resolve().parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    state, used, named = done.stdout.splitlines()
    assert state == OK
    assert used == jt.flags.cache_path
    assert Path(used).is_relative_to(named.split(", ")[0])
    assert core.stat().st_mtime_ns == before
    assert done.stderr == ""


def test_a_check_that_raises_is_a_line_and_the_others_still_run():
    def breaks() -> Iterator[Finding]:
        raise OSError("disk on fire\nand more")
        yield

    def good() -> Iterator[Finding]:
        yield Finding("good", OK, "")

    found = list(examine({"a": breaks, "b": good}))
    assert [(f.name, f.state) for f in found] == [("a", NOTE), ("good", OK)]
    assert "disk on fire" in found[0].text
    assert "and more" not in found[0].text


@pytest.mark.parametrize("error", [RuntimeError("no OpenMP"), SystemExit(1)])
def test_jittor_that_does_not_start_is_a_failure(error):
    def speed() -> Iterator[Finding]:
        raise error
        yield

    (finding,) = examine({"speed": speed})
    assert finding.state == FAIL


def test_nothing_is_timed_after_a_failure():
    def missing() -> Iterator[Finding]:
        yield Finding("compiler", FAIL, "no g++")

    def speed() -> Iterator[Finding]:
        raise AssertionError("was called")
        yield

    assert [f.state for f in examine({"compiler": missing, "speed": speed})] == [FAIL, NOTE]


QUIET = Circumstances(threads=8, cores=8, cpu_simd="avx512f", compiler_simd="avx512f", load=0.5)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({}, "nothing known"),
        ({"debug": True, "reference": True}, "debug"),
        ({"reference": True, "threads": 1}, "FILM_REFERENCE=1"),
        ({"threads": 1, "load": 99}, "1 of 8 cores"),
        ({"share": 0.5}, "other programs"),
        ({"load": 20.0}, "other programs"),
        ({"compiler_simd": "avx2"}, "the compiler uses avx2"),
        ({"compiler_simd": "", "cpu_simd": ""}, "no AVX2"),
        ({"gpu": True, "threads": 1, "load": 20.0}, "nothing known"),
    ],
)
def test_likely_causes(change, cause):
    assert cause in likely_cause(replace(QUIET, **change))[0]


def test_a_kernel_is_judged_by_the_slower_of_arithmetic_and_memory():
    """1e9 operations at 1e10/s take 0.1 s, 4e9 bytes at 1e10/s 0.4 s: with an allowance of 2, up to 0.8 s is ok."""
    yardstick = Yardstick(operations=1e10, bytes=1e10)
    kernel = Kernel("k", operations=1e9, bytes=4e9, allowance=2, compute=list)
    assert kernel.bound(yardstick) == pytest.approx(0.4)
    assert judge(kernel, 0.79, yardstick, QUIET).state == OK
    slow = judge(kernel, 0.81, yardstick, replace(QUIET, reference=True))
    assert slow.state == SLOW
    assert "FILM_REFERENCE=1" in slow.text
    assert slow.advice == "unset it"


def test_the_yardstick_runs():
    yardstick = doctor.cpu_yardstick()
    assert yardstick.operations > 1e8
    assert yardstick.bytes > 1e8
    assert 0 < yardstick.share <= 1.1


@pytest.mark.parametrize("broken", [False, True])
def test_json_and_exit_code(monkeypatch, capsys, broken):
    def check() -> Iterator[Finding]:
        yield Finding("compiler", FAIL if broken else OK, "text", "advice")

    monkeypatch.setattr(doctor, "checks", lambda device: {"compiler": check})
    if broken:
        with pytest.raises(SystemExit) as left:
            doctor.main(["--json"])
        assert left.value.code == 1
    else:
        doctor.main(["--json"])
    page = json.loads(capsys.readouterr().out)
    assert page["runs"] is not broken
    assert page["findings"][0]["advice"] == "advice"


def test_the_page_needs_nothing_that_may_be_missing(tmp_path):
    """A bare interpreter, without numpy, Jittor or tqdm, still gets its diagnosis."""
    root = Path(doctor.__file__).resolve().parent.parent
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-S", "-m", "tools.doctor"], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "FAIL  Jittor" in done.stdout
    assert "FILM cannot run here" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_this_machine_runs_film():
    done = subprocess.run(
        ["python", "-m", "tools.doctor", "--json", "--device", "cpu"],
        cwd=Path(doctor.__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    names = {finding["name"] for finding in json.loads(done.stdout)["findings"]}
    assert {"matrix product", "1x1 convolution", "3x3 convolution", "block, forward", "block, backward too"} <= names
