"""How commands exit, and option types."""

from __future__ import annotations

import argparse
import signal

import pytest

from utils.runtime.cli import run_command, stage
from utils.runtime.errors import Stopped, UserError


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("x.png: gone"), 2, "error: x.png: gone"),
        (UserError("红 外\n\x1b[2J"), 2, "error: 红 外\\n\\x1b[2J"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped(signal.SIGTERM), 143, "terminated"),
    ],
)
def test_commands_fail_in_one_line(error, code, line, capsys):
    def main(argv):
        raise error

    assert run_command(main) == code
    assert capsys.readouterr().err == line + "\n"
    assert run_command(lambda argv: None) == 0


@pytest.mark.parametrize("text", ["0:1", "1", "1:-2", "a:1", "1:nan", "1:2:3"])
def test_a_stage_is_an_epoch_and_a_weight(text):
    with pytest.raises((ValueError, argparse.ArgumentTypeError)):
        stage(text)
