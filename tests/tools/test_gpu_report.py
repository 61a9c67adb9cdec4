"""The report about a GPU: its processes and limits on invented sections, its page on invented numbers, one real run."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import gpu_report
from tools.gpu_page import line_of, page_of
from tools.gpu_sections import BATCHES, COMPILED, EAGER, INFERENCE, JITTOR, TRAINING, kernel_name
from tools.sections import CUT, FAILED, LEFT_OUT, OK, ROOT, Section, last_line, reason_of, run_section
from utils.runtime.cli import run_command
from utils.runtime.cuda import Cuda
from utils.runtime.errors import UserError

LIMIT = 300  # of a section that ends by itself, on a busy machine


def well(rows: int) -> Iterator[dict]:
    print("not a row")
    yield from ({"number": number} for number in range(rows))


def fails() -> Iterator[dict]:
    yield {"number": 0}
    raise UserError("batch 8: out of memory\nwith details")


def leaves() -> Iterator[dict]:
    yield {"number": 0}
    sys.exit("Jittor ends the process")


def crashes() -> Iterator[dict]:
    """Also leaves a process of its own behind."""
    yield {"process": subprocess.Popen(["sleep", "600"]).pid}
    print("CUDA error 700", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs() -> Iterator[dict]:
    time.sleep(600)
    yield {}


def runs(process: int) -> bool:
    """Whether a process exists and is no zombie: a container may have no init process that reaps it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_rows_of_a_section(tmp_path):
    result = run_section(Section("well", well, LIMIT, {"rows": 2}), LIMIT, tmp_path)
    assert (result.state, result.rows, result.note) == (OK, [{"number": 0}, {"number": 1}], "")
    assert (tmp_path / "well.log").read_text() == "not a row\n"


@pytest.mark.parametrize(("function", "note"), [(fails, "batch 8: out of memory"), (leaves, "Jittor ends the process")])
def test_an_error_is_a_line_and_the_rows_before_it_stay(tmp_path, function, note):
    result = run_section(Section("x", function, LIMIT), LIMIT, tmp_path)
    assert (result.state, result.rows, result.note) == (FAILED, [{"number": 0}], note)


def test_a_crash_is_a_line_and_leaves_no_process(tmp_path):
    result = run_section(Section("x", crashes, LIMIT), LIMIT, tmp_path)
    assert (result.state, result.note) == (FAILED, "ended by SIGSEGV: CUDA error 700")
    deadline = time.monotonic() + LIMIT
    while runs(result.rows[0]["process"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_section_ends_at_its_limit(tmp_path):
    result = run_section(Section("x", hangs, LIMIT), 0.2, tmp_path)
    assert (result.state, result.rows) == (CUT, [])
    assert result.seconds < LIMIT


def empty_report() -> dict:
    machine = {
        "gpus": [{"name": "NVIDIA X1", "gib": 79.6, "capability": "9.0"}],
        "driver": {"cuda": "13.0", "nvidia-smi": "580.65.06, 700.00 W"},
        "nvcc": "13.0",
        "cpu": "Some CPU",
        "cores": 16,
        "system": "Linux",
        "python": "3.12.1",
        "packages": {"jittor": "1.3.11.0", "torch": None},
        "commit": "0123456789",
    }
    about = {"format": 1, "date": "2026-11-28", "device": "cuda", "quick": False}
    return {**about, "machine": machine, "seconds": 0.0, "sections": {}}


def test_the_total_limit_leaves_sections_out_and_writes_the_rest(tmp_path, monkeypatch, capsys):
    now = iter(range(0, 1000, 40))  # a look at the clock takes 40 s: the second section starts after the first minute
    monkeypatch.setattr(gpu_report.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(gpu_report, "run_section", lambda *_: gpu_report.Result(OK, 1.0, [{"number": 0}]))
    gpu_report.make_report([Section("first", well, 9), Section("second", well, 9)], 1, tmp_path, empty_report())
    report = json.loads((tmp_path / "report.json").read_text())
    states = {name: (section["state"], section["note"]) for name, section in report["sections"].items()}
    assert states == {"first": (OK, ""), "second": (LEFT_OUT, "the limit of 1 minutes was reached")}
    assert "| second | left out | 0 | `the limit of 1 minutes was reached` |" in (tmp_path / "report.md").read_text()
    assert len(capsys.readouterr().out.splitlines()) == 2


def section(rows: list[dict], state: str = OK, note: str = "", **options: object) -> dict:
    return {"state": state, "seconds": 12.3, "rows": rows, "note": note, "options": options}


def speed(batch: int, seconds: float) -> dict:
    return {"size": [288, 384], "batch": batch, "seconds": seconds, "first": 9.0, "peak": 2.5e9}


@pytest.fixture
def report() -> dict:
    """A report with two checks that hold, two that fail, and the times of three contenders."""
    report = empty_report()
    checks = [("small", 2e-7, 1e-5), ("equal", 1.0, 1), ("large", 2e-5, 1e-5), ("endless", None, 1e-5)]
    report["sections"] = {
        "golden": section([dict(zip(("what", "value", "tolerance"), row, strict=True)) for row in checks]),
        "ours": section([speed(1, 0.004), speed(16, 0.05)], case=INFERENCE, contender=JITTOR, tf32=False),
        "rounded": section([speed(1, 0.003)], case=INFERENCE, contender=JITTOR, tf32=True),
        "eager": section([speed(1, 0.01)], FAILED, "batch 16: out | of", case=INFERENCE, contender=EAGER, tf32=False),
        "step": section([speed(2, 0.08)], case=TRAINING, contender=JITTOR, tf32=False),
        "compiled": section([speed(2, 0.1)], case=TRAINING, contender=COMPILED, tf32=False),
        "profile": section(
            [{"kernel": "for_each(Conv3x3{a | b});", "calls": 6, "ms": 1.5, "share": 0.25}],
            case=TRAINING,
            contender=JITTOR,
        ),
        "golden-TF32": section([{"what": "fused image", "value": 1e-3, "tolerance": None}]),
    }
    report["seconds"] = 600
    return report


def test_page(report):
    page = page_of(report).splitlines()
    assert page[0] == "## NVIDIA X1"
    for line in (
        "| driver | up to CUDA 13.0 (580.65.06, 700.00 W) |",
        "| eager | FAILED | 12 | `batch 16: out ¦ of` |",
        "| golden | small | 2e-07 | 1e-05 | ok |",
        "| golden | equal | 1 | 1 | ok |",
        "| golden | large | 2e-05 | 1e-05 | **FAILED** |",
        "| golden | endless | not finite | 1e-05 | **FAILED** |",
        "| golden-TF32 | fused image | 0.001 |  | ok |",
        "### Inference, 288\N{MULTIPLICATION SIGN}384",
        "| batch | Jittor | Jittor, TF32 | PyTorch eager |",
        "| 1 | 4.0 | 3.0 (0.75\N{MULTIPLICATION SIGN}) | 10.0 (2.50\N{MULTIPLICATION SIGN}) |",
        "| 16 | 50.0 |  |  |",
        "| 2 | 2.50 | 2.50 |",
        "| `for_each(Conv3x3{a ¦ b});` | 6 | 1.50 | 25% |",
    ):
        assert line in page


def test_the_line_to_send(report):
    assert line_of(report) == (
        "FILM 0123456789 on NVIDIA X1; driver CUDA 13.0, nvcc 13.0; 2 of 4 checks hold; 7 of 8 sections ok "
        "(eager FAILED); inference at batch 1 4.0 ms, 2.50 GB, PyTorch eager 2.50\N{MULTIPLICATION SIGN}; "
        "training at batch 2 80.0 ms, 2.50 GB, torch.compile 1.25\N{MULTIPLICATION SIGN}; 10 min"
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sections_fit_their_functions(device):
    sections = gpu_report.sections(device, True, Path("folder"))
    for one in sections:
        inspect.signature(one.function).bind(**one.options)
    names = [one.name for one in sections]
    assert len(set(names)) == len(names)
    assert not set("".join(names)) & set(" /")
    assert any("TF32" in name for name in names) == (device == "cuda")


def test_without_a_gpu_one_line_and_nothing_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_report.cuda, "look", Cuda)
    assert run_command(gpu_report.main, []) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: no NVIDIA GPU; ")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept(tmp_path):
    with pytest.raises(UserError, match="exists; name a new folder"):
        gpu_report.main(["--device", "cpu", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("«opkey0:broadcast_to«Tx:float32«opkey1:binary«Ty:float32«OP:add«JIT:1", "broadcast_to, binary.add"),
        ("cublas_matmul«T:float32«Trans_a:N«JIT:1", "cublas_matmul"),
        (
            "code«in0_dim:4«HEADER:// 1\n«CODE:const long h = 1;\nsum_each<9>(\n  A{h}, h);\n«JIT:1«JIT_cuda:1",
            "sum_each<9>( A{h}, h)",
        ),
    ],
)
def test_names_of_kernels(key, name):
    assert kernel_name(key) == name


def test_reasons():
    jittor = "Wrong inputs arguments\n\nFailed reason:[f executor.cc]\nExecute failed.\n[Reason]: Out of memory\n****"
    assert reason_of(RuntimeError(jittor)) == "Out of memory"
    assert reason_of(MemoryError()) == "MemoryError"
    assert "pip install torch" in reason_of(ModuleNotFoundError("No module", name="torch"))
    assert last_line("first\n  1%|\r 99%|\r\x1b[31mlast\x1b[0m\n\n") == "last"
    assert last_line("") == "it printed nothing"


@pytest.mark.slow
def test_all_sections_run_on_a_cpu(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "report"
    command = [sys.executable, "-m", "tools.gpu_report", "--device", "cpu", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    problems = {name: s["note"] for name, s in report["sections"].items() if s["state"] != OK or not s["rows"]}
    assert not problems
    assert page_of(report) == (out / "report.md").read_text()
    assert done.stdout.splitlines()[-1] == line_of(report)
    assert "**FAILED**" not in page_of(report)
    speeds = [row for s in report["sections"].values() for row in s["rows"] if "seconds" in row]
    assert len(speeds) == 6
    assert all(row["seconds"] > 0 and row["peak"] > 1e8 and row["batch"] == BATCHES[0] for row in speeds)
