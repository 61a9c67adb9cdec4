"""The log's form, against a log of the official code and against lines written by hand."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest

from utils.runtime.errors import UserError
from utils.training.loss_log import LogFile, LogLine, eta_text, format_line, format_total_time, parse_lines, read_log

GOLDEN_LOG = Path(__file__).resolve().parents[3].parent / "shared" / "golden" / "log_official_150pairs.txt"

# The example of film.md, section 3.
OFFICIAL_LINE = (
    "[Epoch 1/150] [Batch 0/541] [loss: 6.465192] [loss_in_grad: 6.465192] "
    "[lplssimA: 428.067993] [lplssimB: 368.350677] ETA: 13:15:10.5"
)
STEP = LogLine(1, 150, 0, 541, 6.465192, 6.465192, 428.067993, 368.350677, "13:15:10.5")


def test_official_line_is_written_and_read():
    assert format_line(STEP) == OFFICIAL_LINE
    assert parse_lines(OFFICIAL_LINE) == [STEP]


@pytest.mark.skipif(not GOLDEN_LOG.exists(), reason="needs ../shared/golden/log_official_150pairs.txt")
def test_every_line_of_an_official_log_comes_back():
    *lines, closing = GOLDEN_LOG.read_text().splitlines()
    steps = read_log(GOLDEN_LOG)
    assert [format_line(step) for step in steps] == lines
    assert [(step.epoch, step.batch) for step in steps] == [(e, b) for e in range(1, 101) for b in range(75)]
    assert closing == format_total_time(6926.650192260742)


@pytest.mark.parametrize(
    ("position", "seconds", "expected"),
    [
        ((100, 100, 74, 75), 0.9175, "0:00:00.91"),  # one batch left: 0.917500 s, cut, not rounded
        ((100, 100, 73, 75), 0.9125, "0:00:01.82"),  # two left: 1.825000 s
        ((1, 100, 0, 75), 6.3614, "13:15:10.5"),  # all 7500 left: 47710.5 s = 13 h 15 min 10.5 s
        ((1, 1, 0, 2), 1.5, "0:00:03"),  # a whole number of seconds has no decimals
        ((1, 150, 0, 541), 2.0, "1 day, 21:"),  # 81150 batches, 162300 s: what the cut leaves of '1 day, 21:05:00'
    ],
)
def test_remaining_time_in_the_official_form(position, seconds, expected):
    assert eta_text(*position, seconds) == expected


def test_not_finite_losses_are_read_back():
    text = format_line(replace(STEP, loss=math.inf, loss_in_grad=-math.inf, lplssim_a=math.nan))
    (line,) = parse_lines(text)
    assert (line.loss, line.loss_in_grad) == (math.inf, -math.inf)
    assert math.isnan(line.lplssim_a)


def written(step: LogLine) -> str:
    return format_line(step) + "\n"


def test_cut_last_line_is_passed_over(tmp_path):
    second = replace(STEP, batch=1)
    log = tmp_path / "log.txt"
    # Every cut inside the last line, up to and with 'ETA: ', leaves the first line or (ETA begun) both.
    for cut in range(len(written(second))):
        log.write_text(written(STEP) + written(second)[:cut])
        whole = "ETA: " in written(second)[:cut]
        assert [step.batch for step in read_log(log)] == ([0, 1] if whole else [0])


@pytest.mark.parametrize("cut", [3, 60, len(OFFICIAL_LINE) - 4])
def test_resumed_run_that_goes_on_in_a_cut_line(tmp_path, cut):
    log = tmp_path / "log.txt"
    third = replace(STEP, batch=2, loss=2.5)
    log.write_text(written(STEP) + written(replace(STEP, batch=1))[:cut] + written(third))
    steps = read_log(log)
    assert steps[0] == STEP
    assert steps[-1] == third


def test_later_lines_of_a_resumed_run_win(tmp_path, caplog):
    first = [replace(STEP, epoch=epoch, batch=batch, loss=1.0) for epoch in (1, 2) for batch in range(3)]
    resumed = [replace(STEP, epoch=epoch, batch=batch, loss=2.0) for epoch in (2, 3) for batch in range(3)]
    log = tmp_path / "log.txt"
    log.write_text("".join(map(written, first[:5])) + "".join(map(written, resumed)) + format_total_time(3.5) + "\n")
    with caplog.at_level(logging.WARNING):
        steps = read_log(log)
    assert [(step.epoch, step.batch) for step in steps] == [(epoch, batch) for epoch in (1, 2, 3) for batch in range(3)]
    assert [step.loss for step in steps] == [1.0] * 3 + [2.0] * 6
    assert "steps replaced by a resumed run: 2" in caplog.text


@pytest.mark.parametrize("content", ["", "total_time: 3.5\n", "[Epoch 1/150] [Batch 0/541] [loss: 6.46"])
def test_a_file_without_a_log_line_is_named(tmp_path, content):
    log = tmp_path / "other.txt"
    log.write_text(content)
    with pytest.raises(UserError, match=r"other\.txt: holds no line of a training log"):
        read_log(log)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.txt: cannot be read"):
        read_log(tmp_path / "gone.txt")


@pytest.mark.parametrize("cut", [1, 40, len(OFFICIAL_LINE)])
@pytest.mark.parametrize("tail", ["", "total_time: 3.5\n"])
def test_a_log_goes_back_to_a_step(tmp_path, cut, tail):
    """Epochs of three steps: the fourth is the first of the second epoch. The log ends in a cut line, or is closed."""
    path = tmp_path / "log.txt"
    steps = [
        written(LogLine(epoch, 2, batch, 3, 1.5, 1.5, 2.0, 3.0, "0:00:01")) for epoch in (1, 2) for batch in range(3)
    ]
    path.write_text("".join(steps[:5]) + (tail or steps[5][:cut]))
    log = LogFile(path)
    log.go_back(4)
    log.write("next")
    log.close()
    assert path.read_text() == "".join(steps[:4]) + "next\n"


def test_a_log_has_one_writer(tmp_path):
    log = LogFile(tmp_path / "log.txt")
    with pytest.raises(UserError, match=r"log\.txt: another process is writing to this run"):
        LogFile(tmp_path / "log.txt")
    log.close()
    LogFile(tmp_path / "log.txt").close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the device that is always full")
def test_a_log_on_a_full_disk_is_one_line():
    log = LogFile(Path("/dev/full"))
    with pytest.raises(UserError, match=r"^/dev/full: cannot be written \(No space left on device\); free some space"):
        log.write("step")
    log.close()
