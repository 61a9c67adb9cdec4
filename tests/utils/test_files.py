from __future__ import annotations

import pytest

from utils.errors import UserError, run_command
from utils.files import atomic_path


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x.txt: cannot be written"), atomic_path(tmp_path / "file" / "x.txt"):
        pass


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [(UserError("x.png: gone"), 2, "error: x.png: gone"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_commands_fail_in_one_line(error, code, line, capsys):
    def main(argv):
        raise error

    assert run_command(main) == code
    assert capsys.readouterr().err == line + "\n"
    assert run_command(lambda argv: None) == 0
