"""Two processes under mpirun: they do the same as one process with double the batch size, and end together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from net.shapes import TEXT_SHAPE
from utils.data.h5 import Sample, write_h5
from utils.runtime import processes
from utils.runtime.errors import UserError
from utils.training.checkpoint import read_checkpoint
from utils.training.loss_log import read_log

ROOT = Path(__file__).resolve().parents[1]
MPIRUN = ("mpirun", "-np", "2", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none")
# One thread: the order of sums, and so the last bits, depends on the number of threads.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
needs_mpi = pytest.mark.skipif(
    not (shutil.which("mpirun") and shutil.which("mpicc")),
    reason="no OpenMPI (Debian: apt install openmpi-bin libopenmpi-dev)",
)


def samples(sizes: list[tuple[int, int]]) -> list[Sample]:
    rng = np.random.default_rng(0)
    result = []
    for i, size in enumerate(sizes):
        a, b = (cv2.GaussianBlur(rng.random(size), (0, 0), 2).astype(np.float32)[None] for _ in "ab")
        a, b = (np.round((x - x.min()) / np.ptp(x) * 255) / np.float32(255) for x in (a, b))
        result.append(Sample(f"p{i}", a, b, rng.standard_normal(TEXT_SHAPE).astype(np.float32)))
    return result


def command(together: bool, script: str, *arguments: object) -> list[str]:
    return [*(MPIRUN if together else ()), sys.executable, str(ROOT / script), *map(str, arguments)]


def run(together: bool, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(together, script, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )


def start(*arguments: object) -> subprocess.Popen[str]:
    """Two processes that train, with pipes for what they print."""
    return subprocess.Popen(
        command(True, "train.py", *arguments),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(root: Path, pattern: str) -> None:
    deadline = time.time() + 300
    while not list(root.glob(pattern)):
        assert time.time() < deadline, f"no {pattern}"
        time.sleep(0.1)


def process_of(rank: int, mpirun: int) -> int:
    """The process id of one of mpirun's processes."""
    children = " ".join(path.read_text() for path in Path(f"/proc/{mpirun}/task").glob("*/children")).split()
    wanted = f"OMPI_COMM_WORLD_RANK={rank}".encode()
    (found,) = (int(pid) for pid in children if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with `x_train.h5`, 11 pairs, and `Set_test.h5`, three pairs of different sizes."""
    folder = tmp_path_factory.mktemp("data")
    write_h5(folder / "x_train.h5", samples([(32, 48)] * 11))
    write_h5(folder / "Set_test.h5", samples([(48, 64), (64, 48), (56, 56)]))
    return folder


@needs_mpi
@pytest.mark.slow
def test_two_processes_follow_the_losses_of_one(data):
    """Ten steps of two pairs: two processes with batch 1 log the losses of one with batch 2, within 1e-4."""
    options = ("--dataset_path", data / "x_train.h5", "--numepochs", 2, "--lr", 1e-4, "--loss_ssim", 0.1, "--seed", 3)
    logs = []
    for together in (False, True):
        root = data / f"together_{together}"
        done = run(together, "train.py", *options, "--exp_root", root, "--batch_size", 1 if together else 2)
        assert done.returncode == 0, done.stderr
        (path,) = root.glob("*/*")  # process 1 makes no folder
        logs.append(read_log(path / "log.txt"))
        assert read_checkpoint(path / "model" / "ckpt_2.pkl")["step"] == 10
        assert done.stdout.count("device: ") == 1
    assert "processes: 2, 2 of them on this machine, 1 threads each" in done.stdout
    assert [len(log) for log in logs] == [10, 10]
    for one, two in zip(*logs, strict=True):
        values = [(s.loss, s.loss_in_grad, s.lplssim_a, s.lplssim_b) for s in (one, two)]
        assert values[1] == pytest.approx(values[0], rel=1e-4), (one.epoch, one.batch)


@needs_mpi
@pytest.mark.slow
def test_a_request_to_stop_reaches_all_and_the_run_can_be_resumed(data):
    """After SIGUSR1 to mpirun: exit code 138, and a checkpoint of the last logged step, which two processes resume."""
    options = ("--dataset_path", data / "x_train.h5", "--numepochs", 1000, "--batch_size", 2)
    process = start(*options, "--exp_root", data / "stop")
    wait_for(data / "stop", "*/*/model/ckpt_1.pkl")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGUSR1, err
    assert err.count("interrupted") == 1
    (path,) = (data / "stop").glob("*/*")
    checkpoint = max((path / "model").iterdir(), key=lambda file: file.stat().st_mtime)
    step = read_checkpoint(checkpoint)["step"]
    assert step == len(read_log(path / "log.txt"))
    done = run(
        *(True, "train.py", *options, "--exp_root", data / "resumed"),
        *("--resume", checkpoint, "--max_steps", step + 1),
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("checkpoint: "))
    assert read_checkpoint(Path(line.removeprefix("checkpoint: ")))["step"] == step + 1


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run(data, rank):
    root = data / f"killed_{rank}"
    write_h5(root / "two.h5", samples([(32, 48)] * 2))
    process = start("--dataset_path", root / "two.h5", "--exp_root", root, "--batch_size", 1, "--numepochs", 1000)
    wait_for(root, "*/*/model/ckpt_1.pkl")
    os.kill(process_of(rank, process.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "signal 9" in err
    (path,) = (folder for folder in root.glob("*/*") if folder.is_dir())
    for checkpoint in (path / "model").glob("[!.]*.pkl"):
        assert len(read_checkpoint(checkpoint)["model"]) == 189


@needs_mpi
def test_an_error_of_one_process_ends_the_run_and_is_told_once(data):
    """A bad pair, which only process 1 reads (it has the second of each batch), and a file that is missing for both."""
    bad = samples([(32, 48)] * 4)
    bad[3].text[0, 0] = np.nan
    write_h5(data / "bad.h5", bad)
    options = ("--batch_size", 1, "--no_shuffle", "--exp_root", data / "failed")
    for path, message in ((data / "bad.h5", "process 1 of 2: error: "), (data / "gone.h5", "error: ")):
        done = run(True, "train.py", "--dataset_path", path, *options)
        assert done.returncode == 2, done.stderr
        lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if "error: " in line]
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith(f"{message}{path}: ")
        assert "Traceback" not in done.stderr


@needs_mpi
def test_two_processes_write_the_files_and_the_table_of_one(data):
    from net.Film import Net
    from utils.training.checkpoint import save_checkpoint, weights_of_net

    save_checkpoint(data / "net.pkl", {"model": weights_of_net(Net())})
    options = ("--dataset", "Set", "--ckpt_path", data / "net.pkl", "--h5_dir", data, "--contact_sheet", "--report")
    tables, files = [], []
    for together in (False, True):
        out = data / f"out_{together}"
        done = run(together, "test.py", *options, "--out_dir", out)
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout[done.stdout.index("=" * 80) :])
        files.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert tables[0] == tables[1]
    assert files[0].keys() == files[1].keys()
    assert [path for path in files[0] if files[0][path] != files[1][path]] == []
    assert len(files[0]) == 5  # three images, contact sheet, report


def environment(**values: str) -> dict[str, str]:
    """The environment of process 3 of 4, the second of two on this machine."""
    together = {"SIZE": "4", "RANK": "3", "LOCAL_SIZE": "2", "LOCAL_RANK": "1"}
    return {"PATH": os.environ["PATH"], **{f"OMPI_COMM_WORLD_{k}": v for k, v in together.items()}, **values}


def test_each_process_has_its_device_and_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(os, "environ", environment(CUDA_VISIBLE_DEVICES="4,7", use_mpi="0"))
    processes.prepare()
    assert {key: os.environ[key] for key in ("use_mpi", "use_nccl", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")} == {
        "use_mpi": "1",
        "use_nccl": "0",
        "CUDA_VISIBLE_DEVICES": "7",
        "OMP_NUM_THREADS": "4",
    }
    # with NCCL, processes must see all devices; if mpirun has bound them to cores, the threads are not set
    nccl = {"nccl_include_path": "/i", "nccl_lib_path": "/l", "CUDA_VISIBLE_DEVICES": "4,7"}
    monkeypatch.setattr(os, "environ", environment(**nccl, OMPI_MCA_orte_bound_at_launch="1"))
    processes.prepare()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"
    assert not {"use_nccl", "OMP_NUM_THREADS"} & os.environ.keys()


def test_one_process_has_no_mpi_and_a_foreign_one_is_refused(monkeypatch):
    monkeypatch.setattr(os, "environ", {"PATH": "", "use_mpi": "1"})
    processes.prepare()
    assert os.environ["use_mpi"] == "0"
    monkeypatch.setattr(os, "environ", {"PATH": "", "PMI_SIZE": "2"})
    with pytest.raises(UserError, match="not OpenMPI's"):
        processes.prepare()
    monkeypatch.setattr(os, "environ", environment())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="mpicc: not found"):
        processes.prepare()
