"""Comparing logs: gaps computed by hand, tables read back, and the command on a log of the official code."""

from __future__ import annotations

import csv
import logging
import math
from operator import attrgetter
from pathlib import Path

import pytest

from tools.compare_loss import compare, label_logs, main, report
from utils.runtime.cli import run_command
from utils.runtime.errors import UserError
from utils.training.loss_log import LogLine, format_line

GOLDEN_LOG = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "log_official_150pairs.txt"


def run(*losses: float, batches: int = 2) -> list[LogLine]:
    """A run with these losses, one per step; the Lp+SSIM losses are 100 throughout."""
    return [
        LogLine(1 + step // batches, 3, step % batches, batches, loss, loss, 100.0, 100.0, "0:00:00.10")
        for step, loss in enumerate(losses)
    ]


def write(path: Path, lines: list[LogLine]) -> str:
    path.write_text("".join(format_line(line) + "\n" for line in lines))
    return str(path)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_gaps_by_hand():
    gaps = compare(run(4.0, 2.0, 1.0, 1.0), run(5.0, 2.0, 0.5, 1.0), attrgetter("loss"))
    assert gaps.steps == {(1, 0, 2): 0.25, (1, 1, 2): 0.0, (2, 0, 2): 0.5, (2, 1, 2): 0.0}
    # Means 3 against 3.5, 1 against 0.75.
    assert gaps.epochs == {1: pytest.approx(1 / 6), 2: pytest.approx(0.25)}


def test_only_common_steps_count():
    # The second run stops after the first step of epoch 2: the means of epoch 2 are those of that step, 1 against 2.
    gaps = compare(run(4.0, 2.0, 1.0, 9.0), run(4.0, 2.0, 2.0), attrgetter("loss"))
    assert gaps.epochs == {1: 0.0, 2: 1.0}
    assert len(gaps.steps) == 3


def test_other_numbers_of_batches_have_nothing_in_common():
    gaps = compare(run(4.0, 2.0), run(4.0, 2.0, 1.0, batches=3), attrgetter("loss"))
    assert gaps.steps == {} and gaps.epochs == {}
    assert "no step in common" in report({"a": run(4.0, 2.0), "b": run(4.0, 2.0, 1.0, batches=3)})


@pytest.mark.parametrize(
    ("reference", "other", "gap"),
    [(0.0, 0.0, 0.0), (0.0, 1.0, math.inf), (1.0, math.nan, math.inf), (math.nan, 1.0, math.inf), (-2.0, -1.0, 0.5)],
)
def test_gaps_without_a_measure_are_infinite(reference, other, gap):
    assert compare(run(reference), run(other), attrgetter("loss")).steps[1, 0, 2] == gap


def test_report_names_the_largest():
    text = report({"torch": run(4.0, 2.0, 1.0, 1.0), "jittor": run(4.0, 2.0, 1.5, 1.0)})
    assert "torch   4 steps in 2 epochs, mean loss of the first 3.000000, of the last 1.000000" in text
    assert "largest relative gap of jittor to torch, over 4 common steps" in text
    # 1.5 against 1; the mean 1.25 against 1.
    (line,) = [line for line in text.splitlines() if line.startswith("loss ")]
    assert line.split() == ["loss", "5.000e-01", "(epoch", "2,", "batch", "0)", "2.500e-01", "(epoch", "2)"]


def test_command_writes_charts_and_tables(tmp_path, capsys):
    first = write(tmp_path / "torch.txt", run(4.0, 2.0, 1.0, 1.0))
    second = write(tmp_path / "jittor.txt", run(5.0, 2.0, 0.5))
    out = tmp_path / "charts" / "loss"
    main([first, second, "--labels", "PyTorch", "Jittor", "--out", str(out)])
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "loss.png", "loss.svg", "loss_epochs.csv", "loss_steps.csv",
    ]  # fmt: skip
    assert "3 common steps" in capsys.readouterr().out

    steps = table(tmp_path / "charts" / "loss_steps.csv")
    assert [(row["epoch"], row["batch"]) for row in steps] == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")]
    assert [row["loss PyTorch"] for row in steps] == ["4.0", "2.0", "1.0", "1.0"]
    assert [row["loss Jittor"] for row in steps] == ["5.0", "2.0", "0.5", ""]
    assert [row["loss gap Jittor"] for row in steps] == ["0.25", "0.0", "0.5", ""]
    assert {row["lplssim_a gap Jittor"] for row in steps[:3]} == {"0.0"}

    epochs = table(tmp_path / "charts" / "loss_epochs.csv")
    assert [row["loss PyTorch"] for row in epochs] == ["3.0", "1.0"]
    assert [row["loss Jittor"] for row in epochs] == ["3.5", "0.5"]


def test_resumed_and_cut_logs(tmp_path, capsys, caplog):
    lines = run(4.0, 2.0, 9.0, 1.0, 0.5)
    log = tmp_path / "resumed.txt"
    text = "".join(format_line(line) + "\n" for line in lines[:3])
    text += "".join(format_line(line) + "\n" for line in run(4.0, 2.0, 1.5, 1.0)[2:])
    log.write_text(text + format_line(lines[4])[:50])
    with caplog.at_level(logging.WARNING):
        main([str(log), "--out", str(tmp_path / "loss")])
    assert "steps replaced by a resumed run: 1" in caplog.text
    # Epoch 2 is (1.5 + 1) / 2: 1.5 replaces the 9. The cut line of epoch 3 does not count.
    assert "4 steps in 2 epochs, mean loss of the first 3.000000, of the last 1.250000" in capsys.readouterr().out


def test_labels():
    assert label_logs([Path("a/torch.txt"), Path("b/jittor.txt")], None) == ["torch", "jittor"]
    assert label_logs([Path("a/log.txt"), Path("b/log.txt")], None) == ["a/log.txt", "b/log.txt"]
    with pytest.raises(UserError, match="1 for 2 logs"):
        label_logs([Path("a"), Path("b")], ["x"])
    with pytest.raises(UserError, match="every log needs a different name"):
        label_logs([Path("a"), Path("b")], ["x", "x"])


def test_a_file_that_is_no_log_leaves_nothing(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing\n")
    assert run_command(main, [str(tmp_path / "notes.txt"), "--out", str(tmp_path / "out" / "loss")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not GOLDEN_LOG.exists(), reason="needs ../shared/golden/log_official_150pairs.txt")
def test_official_log(tmp_path, capsys):
    main([str(GOLDEN_LOG), "--out", str(tmp_path / "official")])
    assert "7500 steps in 100 epochs" in capsys.readouterr().out
    rows = table(tmp_path / "official_epochs.csv")
    # The mean of the first epoch, by awk over the 75 lines of it.
    assert float(rows[0]["loss log_official_150pairs"]) == pytest.approx(5.632183, abs=1e-6)
