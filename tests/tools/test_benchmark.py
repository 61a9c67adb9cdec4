"""What the benchmark records, and the tables of docs/performance.md that are made of such files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import benchmark, benchmark_table, markdown
from utils.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RECORD = {
    "case": "inference",
    "date": "2026-01-02",
    "commit": "abc",
    "processor": "Abacus 9",
    "simd": "avx512f",
    "kernels": "avx512f",
    "cores": 2,
    "versions": {"python": "3.12.1", "compiler": "14.2.0", "jittor": "1.3", "torch": "2.13.0+cpu"},
    "threads": 2,
    "others": 0.031,
    "sizes": [
        {
            "size": [288, 384],
            "contenders": {
                "torch eager": {"first": 9.0, "seconds": [7.0, 5.0, 6.0], "peak": 1_260_000_000},
                "jittor": {"first": 4.0, "seconds": [0.5, 0.6, 0.4], "peak": 500_000_000},
                "openvino": {"failed": "openvino is not installed"},
            },
        }
    ],
}
TABLE = """\
| a fused image | 288\N{MULTIPLICATION SIGN}384, s | relative to ours | peak GB |
| --- | --- | --- | --- |
| this repository | 0.5 | 1.00 | 0.5 |
| PyTorch 2.13, eager | 6 | 12.00 | 1.3 |

Medians of 3 interleaved rounds on 2026-01-02, commit abc, Jittor 1.3, g++ 14.2.0. Other programs used 3% of the \
processor."""


def test_a_table_has_medians_ratios_and_memory():
    """Ours has the median 0.5 of 0.4, 0.5, 0.6; PyTorch's is 6, twelve times as much. OpenVINO failed."""
    assert benchmark_table.table(RECORD) == TABLE


def test_each_kind_of_processor_has_a_section_with_its_newest_files():
    older, other = RECORD | {"date": "2025-12-31"}, RECORD | {"kernels": "avx2"}
    text = benchmark_table.tables([RECORD, other, older])
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        "### Abacus 9, AVX-512, 2 threads",
        "### Abacus 9, AVX-512, our kernels compiled for AVX2, 2 threads",
    ]
    assert "2025" not in text
    assert text.count(TABLE) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing", "is not a file of tools.benchmark"),
        ("[]", "is not a file of tools.benchmark"),
        (json.dumps(RECORD | {"sizes": [{"size": [1, 1], "contenders": {"openvino": {"failed": ""}}}]}), "no times of"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"x.json: {message}|x.json: has {message}"):
        benchmark_table.read_record(path)


def test_the_page_is_up_to_date():
    """docs/performance.md holds what the command makes of log/benchmark/*.json."""
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "log" / "benchmark").glob("*.json"))
    assert files
    made = benchmark_table.tables(map(benchmark_table.read_record, files))
    assert page == markdown.replaced(page, made, benchmark_table.COMMAND), (
        "run the command that is named above the tables"
    )


def test_the_benchmark_records_what_a_table_needs(monkeypatch, tmp_path, capsys):
    """All rounds of workers that sleep: the contender that fails is named, and a file is never overwritten."""

    class Sleeper:
        seconds = iter(range(1, 100))

        def __init__(self, case: str, name: str, *_: object) -> None:
            self.name = name

        def run(self) -> tuple[float, int]:
            if self.name != benchmark.OURS:
                raise UserError("out of memory")
            return float(next(self.seconds)), 10**9

        def close(self) -> None:
            pass

    monkeypatch.setattr(benchmark, "Worker", Sleeper)
    monkeypatch.setattr(benchmark, "find_spec", lambda module: True)
    path = tmp_path / "log.json"
    options = {"only": (benchmark.OURS, "openvino"), "threads": 2, "rounds": 3}
    benchmark.compare_sizes("inference", path, **options)
    first, second = benchmark_table.read_record(path)["sizes"]
    # 1 is the first run; after it, every second run only loads the caches
    assert first["contenders"] == {
        "jittor": {"first": 1.0, "seconds": [3.0, 5.0, 7.0], "peak": 10**9},
        "openvino": {"failed": "out of memory"},
    }
    assert second["size"] == [480, 640]
    assert "openvino                      left out: out of memory" in capsys.readouterr().out
    assert "288" in benchmark_table.tables([benchmark_table.read_record(path)])
    with pytest.raises(UserError, match="exists"):
        benchmark.compare_sizes("inference", path, **options)
