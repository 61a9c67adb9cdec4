from __future__ import annotations

import pytest

from utils.errors import UserError, run_command
from utils.files import atomic_path, require_inside, require_plain_name


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
    [
        (UserError("x.png: gone"), 2, "error: x.png: gone"),
        (UserError("红 外\n\x1b[2J"), 2, "error: 红 外\\n\\x1b[2J"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_commands_fail_in_one_line(error, code, line, capsys):
    def main(argv):
        raise error

    assert run_command(main) == code
    assert capsys.readouterr().err == line + "\n"
    assert run_command(lambda argv: None) == 0


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "/etc/x", "a/b", "a/../../x", "x\0.png", "x\n.png", "\udcff"])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(UserError, match=r"^list.txt: .* leads out of its folder"):
        require_plain_name(name, "list.txt")


@pytest.mark.parametrize("name", ["1.png", "..a", "a..b", "红外 1.5", "x y", "-x", "~x", "é\u200d"])
def test_all_other_names_do(name):
    require_plain_name(name, "list.txt")


def test_a_link_may_not_lead_out_but_its_folder_may_be_one(tmp_path):
    store, folder = tmp_path / "store", tmp_path / "data"
    for path in (store, folder):
        path.mkdir()
        (path / "x.png").write_text("")
    (folder / "inside.png").symlink_to("x.png")
    (folder / "outside.png").symlink_to(store / "x.png")
    (folder / "nowhere.png").symlink_to("../gone.png")
    (folder / "linked").symlink_to(store)
    for name in ("x.png", "inside.png", "linked/x.png", "new.png"):
        assert require_inside(folder / name, folder) == folder / name
    for name in ("outside.png", "nowhere.png"):
        with pytest.raises(UserError, match=rf"{name}: is a link that leads out"):
            require_inside(folder / name, folder)


def test_a_file_is_written_in_place_of_a_link_not_through_it(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "x.txt").symlink_to("precious")
    with atomic_path(tmp_path / "x.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "x.txt").read_text() == "new"
