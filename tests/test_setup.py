"""The set-up: which Python `make` chooses, and its message if something is missing on the machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = ("3.14", "3.13", "3.12", "3.11")
TOOLS = ("sh", "uname", "cat")


@pytest.fixture
def programs(tmp_path) -> Path:
    """A folder with a shell, `uname`, `cat` and a compiler; tests use it as the complete PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    program(folder, "g++", "")
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def python(folder: Path, version: str, problem: str = "") -> None:
    """A fake Python: its check prints `problem`; for an environment it writes its version to a file of that name."""
    text = f'if [ "$1" = - ]; then cat >/dev/null; printf %s "{problem}"; else echo {version} >"$3"; fi'
    program(folder, f"python{version}", text)


def make_venv(folder: Path, venv: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "tools/make_venv.sh", venv, *arguments],
        cwd=ROOT,
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_the_newest_supported_python_is_taken(programs, tmp_path):
    for version in ("3.10", "3.12", "3.13"):
        python(programs, version)
    assert make_venv(programs, tmp_path / "venv").returncode == 0
    assert (tmp_path / "venv").read_text() == "3.13\n"


def test_a_newer_python_without_headers_is_passed_over_for_one_with(programs, tmp_path):
    python(programs, "3.13", "has no headers")
    python(programs, "3.11")
    assert make_venv(programs, tmp_path / "venv").returncode == 0
    assert (tmp_path / "venv").read_text() == "3.11\n"


def test_a_named_python_is_taken_whatever_else_is_there(programs, tmp_path):
    python(programs, "3.13")
    python(programs, "3.12")
    assert make_venv(programs, tmp_path / "venv", "python3.12").returncode == 0
    assert (tmp_path / "venv").read_text() == "3.12\n"
    assert "no such Python" in error_of(make_venv(programs, tmp_path / "other", "python3.11"))


def test_no_python_is_one_line_for_every_system(programs, tmp_path):
    line = error_of(make_venv(programs, tmp_path / "venv"))
    for word in (*SUPPORTED, "apt install", "dnf install", "conda create", "uv python install"):
        assert word in line


@pytest.mark.parametrize("problem", ["has no venv (apt install python3.13-venv)", "has no headers"])
def test_what_the_only_python_lacks_is_one_line(programs, tmp_path, problem):
    python(programs, "3.13", problem)
    assert f"python3.13 {problem}" in error_of(make_venv(programs, tmp_path / "venv"))


def test_no_compiler_is_one_line(programs, tmp_path):
    (programs / "g++").unlink()
    assert "apt install g++" in error_of(make_venv(programs, tmp_path / "venv"))


@pytest.mark.parametrize(("system", "word"), [("Darwin", "macOS"), ("MINGW64_NT-10.0", "WSL 2")])
def test_another_system_is_one_line(programs, tmp_path, system, word):
    (programs / "uname").unlink()
    program(programs, "uname", f"echo {system}")
    assert word in error_of(make_venv(programs, tmp_path / "venv"))


def test_this_python_is_examined_and_makes_an_environment(tmp_path):
    done = subprocess.run(
        ["sh", "tools/make_venv.sh", tmp_path / "venv", sys.executable], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "venv" / "bin" / "python").exists()
    assert ".".join(map(str, sys.version_info[:2])) in SUPPORTED


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Package -> (version, number of hashes)."""
    text = (ROOT / name).read_text(encoding="utf-8")
    parts = re.split(r"^([a-z0-9-]+)==(\S+)", text, flags=re.MULTILINE)[1:]
    return {parts[i]: (parts[i + 1], parts[i + 2].count("--hash=sha256:")) for i in range(0, len(parts), 3)}


def test_the_locks_agree_and_every_package_has_a_hash():
    locks = [locked(f"requirements{part}.lock") for part in ("", "-dev", "-bench")]
    for lock in locks:
        assert all(hashes > 0 for _, hashes in lock.values())
    for other in locks[1:]:
        assert {n: v for n, (v, _) in other.items() if n in locks[0]} == {
            n: locks[0][n][0] for n in other if n in locks[0]
        }


@pytest.mark.parametrize("part", ["", "-dev", "-bench"])
def test_what_is_chosen_is_locked(part):
    lines = (ROOT / f"requirements{part}.txt").read_text(encoding="utf-8").splitlines()
    chosen = {re.match(r"[\w-]+", line)[0].lower() for line in lines if line and not line.startswith("#")}
    assert chosen - {"torch"} <= set(locked(f"requirements{part}.lock"))


def test_the_locks_name_no_host():
    for path in ROOT.glob("requirements*"):
        assert "://" not in path.read_text(encoding="utf-8"), path


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_an_installed_film_requires_what_requirements_txt_names(project):
    def names(lines) -> dict[str, str]:
        parts = (re.match(r"([\w-]+)([^;]*)", line) for line in lines if line.strip() and not line.startswith("#"))
        return {part[1]: part[2].strip() for part in parts}

    declared = names([*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["text"]])
    # required by Jittor; it must be named, because Jittor may be installed with --no-deps
    assert declared.pop("astunparse") == ""
    assert declared == names((ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())


def test_every_package_and_file_of_data_is_installed(project):
    declared = project["tool"]["setuptools"]
    folders = [path.parent for room in ("net", "tools", "utils") for path in (ROOT / room).rglob("__init__.py")]
    names = {".".join(("film_jittor", *folder.relative_to(ROOT).parts)): folder for folder in folders}
    assert sorted(declared["packages"]) == sorted(["film_jittor", *names])
    data = {
        path
        for name, folder in names.items()
        for glob in declared["package-data"].get(name, ())
        for path in folder.glob(f"{glob}/*" if glob.endswith("**") else glob)
    }
    others = {
        path
        for room in ("net", "utils")
        for path in (ROOT / room).rglob("*.*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert others <= data


def test_installed_commands_run_from_any_folder(project, tmp_path):
    # A copy, since building leaves files.
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "exp", "*output", "VLFDataset*", "build")
    )
    install = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site", source)
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=300)
    models = [{path.name for path in (folder / "models").iterdir()} for folder in (ROOT, tmp_path / "site/film_jittor")]
    assert models[0] == models[1]
    site = os.pathsep.join([str(tmp_path / "site"), sysconfig.get_paths()["purelib"]])
    for command in project["project"]["scripts"]:
        done = subprocess.run(
            [tmp_path / "site" / "bin" / command, "--help"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": site},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: {command}")
