"""A walk over all commands: every path and name that a person can give, in every way that paths and names can be bad.

The options come from the parsers of the commands. `ROLES` says what each is for; a new option fails a test until it has
a row there. A bad value must be one line and exit code 2, before Jittor starts, and change no file. A good value with
an odd name must work. Everything runs in this process; Jittor and the network are replaced.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from net.shapes import TEXT_SHAPE
from utils.data.h5 import H5Dataset, Sample, write_h5
from utils.runtime.cli import run_command
from utils.runtime.errors import printable
from utils.runtime.files import MAX_NAME
from utils.training.loss_log import LOSSES, LogLine, format_line

TORCH = find_spec("torch") is not None

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]

# What an option names: a file or folder to read or to write, the start of the names of files to write, a data set, a
# text encoder (name or folder), a label, a text, or one of some known names.
READ, READ_FOLDER, WRITE, WRITE_FOLDER, PREFIX, NAME, ENCODER, LABEL, TEXT, KNOWN = (
    "read", "read folder", "write", "write folder", "prefix", "name", "encoder", "label", "text", "known"
)  # fmt: skip
SOURCES = {"root": READ_FOLDER, "raw": READ_FOLDER, "dir_a": READ_FOLDER, "dir_b": READ_FOLDER, "list": READ}
NOT_FILES = (NAME, ENCODER, TEXT, KNOWN)
# Command -> option -> role, for all options that take text.
ROLES = {
    "data_process": SOURCES | {"dataset": NAME, "out": WRITE_FOLDER, "text_encoder": ENCODER, "caption": ENCODER},
    "train": {"dataset_path": READ, "pretrain": READ, "resume": READ, "exp_root": WRITE_FOLDER},
    "test": SOURCES | {"dataset": NAME, "ckpt_path": READ, "h5_dir": READ_FOLDER, "out_dir": WRITE_FOLDER},
    "fuse": {"a": READ, "b": READ, "more": READ, "out": WRITE, "text": TEXT, "text_file": READ, "text_feature": READ}
    | {"text_encoder": ENCODER, "ckpt_path": READ},
    "tools.compare_loss": {"logs": READ, "labels": LABEL, "out": PREFIX},
    "tools.evaluate": {name: SOURCES[name] for name in ("dir_a", "dir_b", "list", "root")} | {"fused": READ_FOLDER}
    | {"dataset": LABEL, "published": KNOWN, "csv": WRITE, "json": WRITE, "differences": WRITE},
    "tools.export": {"weights": READ, "output": WRITE},
    "tools.release": {"checkpoints": READ, "text_encoder": ENCODER, "encoder_name": LABEL, "commit": LABEL}
    | {"out": WRITE_FOLDER},
    "tools.text_effect": {"h5": READ, "ckpt_path": READ, "neutral": READ, "out": PREFIX},
    "tools.torch_twin": {"dataset_path": READ, "log": WRITE, "save": WRITE, "pretrain": READ},
    "tools.make_sample": {"root": WRITE_FOLDER, "encoder": ENCODER},
    "tools.demo": {"out": WRITE_FOLDER},
    "tools.doctor": {},
    "tools.soak": {},
}  # fmt: skip
# Not walked: they start processes, or are for developers.
LEFT_OUT = {"tools.gpu_report", "tools.sections", "tools.scaling"}
if not TORCH:
    del ROLES["tools.torch_twin"]
    LEFT_OUT |= {"tools.torch_twin"}
LEFT_OUT |= {"tools.benchmark", "tools.benchmark_table", "tools.roofline", "tools.architecture"}


class Started(Exception):
    """Jittor, or the long work of a command, starts."""


def image(path: Path) -> None:
    ramp = np.add.outer(np.arange(64), np.arange(80)) * 255 // 142
    cv2.imwrite(str(path), np.dstack([ramp, ramp.T.reshape(64, 80), ramp[::-1]]).astype(np.uint8))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[Path]:
    """A folder with something good for every role.

    `locked` holds the same, but may not be opened; `fixed` may not be changed; of `closed`, no folder and file may.
    """
    root = tmp_path_factory.mktemp("world")
    good = root / "good"
    for folder in ("a", "b", "fused", "raw/ir", "raw/vi", "data/Image/IVF/Set/IR", "data/Image/IVF/Set/VI"):
        (good / folder).mkdir(parents=True)
        image(good / folder / "x.png")
    for folder in ("data/Text/IVF/Set", "data/TextFeature/IVF/Set", "h5"):
        (good / folder).mkdir(parents=True)
    (good / "data/Text/IVF/Sample").mkdir()
    for text in ("Set/x", "Sample/astronaut"):
        (good / f"data/Text/IVF/{text}.txt").write_text("A man walks.")
    for mode in ("train", "test"):
        (good / f"data/Image/IVF/Set/{mode}.txt").write_text("x.png\n")
        a = np.linspace(0, 1, 64 * 80, dtype=np.float32).reshape(1, 64, 80)
        write_h5(good / f"h5/Set_{mode}.h5", [Sample("x", a, a[:, ::-1], np.zeros(TEXT_SHAPE, np.float32))])
    (good / "list.txt").write_text("x.png\n")
    (good / "text.txt").write_text("A man walks.")
    np.save(good / "feature.npy", np.zeros((1, *TEXT_SHAPE), np.float32))
    shutil.copy(good / "feature.npy", good / "data/TextFeature/IVF/Set/x.npy")
    weights = {"model": {"a": np.ones((2, 3), np.float32)}, "epoch": 0, "step": 1}
    (good / "weights.pkl").write_bytes(pickle.dumps(weights, 4))
    lines = [LogLine(1, 1, batch, 2, 0.5, 0.25, 1.5, 2.5, "0:00:01.5") for batch in range(2)]
    (good / "log.txt").write_text("".join(f"{format_line(line)}\n" for line in lines))
    for name in ("locked", "fixed", "closed"):
        shutil.copytree(good, root / name)
    for suffix in ("", *OUTPUTS):
        (root / f"loop{suffix}").symlink_to(f"loop{suffix}")
        (root / f"folder{suffix}").mkdir()
        os.mkfifo(root / f"pipe{suffix}")
    (root / "locked").chmod(0)
    for path in (root / "fixed", *(root / "fixed").rglob("*")):
        path.chmod(0o555)
    for path in (root / "closed").rglob("*"):
        if path.is_file() or path.parent == root / "closed":
            path.chmod(0)
    yield root
    for folder in ("locked", "fixed", "closed"):
        (root / folder).chmod(0o755)
        for path in sorted((root / folder).rglob("*")):
            path.chmod(0o755)


@contextmanager
def ordinary_permissions() -> Iterator[None]:
    """Let modes apply to this process, also if it is root's: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    if os.geteuid():
        yield
        return
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, data):
        pytest.skip("the capabilities of this process cannot be read")
    before, data[0] = data[0], data[0] & ~0b110
    if libc.capset(header, data):
        pytest.skip("the capabilities of this process cannot be changed")
    try:
        yield
    finally:
        data[0] = before
        libc.capset(header, data)


OUTPUTS = (".png", ".csv", ".json", ".safetensors", ".txt", ".pth")

# Where in `good` an option finds its value.
VALUES = {
    "dir_a": "a", "dir_b": "b", "root": "data", "raw": "raw", "list": "list.txt", "dataset_path": "h5/Set_train.h5",
    "pretrain": "weights.pkl", "resume": "weights.pkl", "ckpt_path": "weights.pkl", "h5_dir": "h5", "a": "a/x.png",
    "b": "b/x.png", "more": "a/x.png", "text_file": "text.txt", "text_feature": "feature.npy", "logs": "log.txt",
    "fused": "fused", "weights": "weights.pkl", "checkpoints": "weights.pkl", "h5": "h5/Set_test.h5",
    "neutral": "feature.npy", "out": "out.png", "csv": "x.csv", "json": "x.json", "differences": "x.png",
    "output": "x.safetensors", "log": "x.txt", "save": "x.pth", "out_dir": "out", "exp_root": "out",
}  # fmt: skip


def arguments(command: str, option: str, value: str, world: Path, out: Path) -> list[str]:
    """The arguments of a command that does its work if `value` is good."""
    good = world / "good"
    folders = ["--dir_a", f"{good}/a", "--dir_b", f"{good}/b"]
    if option == "raw" or (command, option) == ("test", "root"):
        folders = []
    base = {
        "data_process": ["--dataset=Set", f"--root={good}/data", f"--out={out}", "--text_encoder=npy", *folders],
        "train": [f"--dataset_path={good}/h5/Set_train.h5", f"--exp_root={out}", "--numepochs=1", "--batch_size=1"],
        "test": ["--dataset=Set", f"--h5_dir={good}/h5", f"--ckpt_path={good}/weights.pkl", f"--out_dir={out}"],
        "fuse": [f"--ckpt_path={good}/weights.pkl", f"--out={out}/x.png", "--color"],
        "tools.compare_loss": [f"--out={out}/x"],
        "tools.evaluate": [*folders, "--fused", f"m={good}/fused", f"n={good}/fused"],
        "tools.export": ["--to=safetensors", f"-o={out}/x.safetensors"],
        "tools.release": ["--text_encoder=stub", f"--out={out}"],
        "tools.text_effect": [f"--h5={good}/h5/Set_test.h5", f"--ckpt_path={good}/weights.pkl", f"--out={out}/x"],
        "tools.torch_twin": [
            "--batch_size=1",
            "--numepochs=1",
            f"--dataset_path={good}/h5/Set_train.h5",
            f"--log={out}/x",
        ],
        "tools.make_sample": [f"--root={out}"],
        "tools.demo": [f"--out={out}"],
    }[command]
    if command == "test":
        pages = ["--contact_sheet", "--report"] if option in ("ckpt_path", "out_dir") else []
        base += ["--color", *pages, *folders]
    if option == "caption":
        base += [f"--root={good}"]  # there is no text
    if (command, option) == ("tools.make_sample", "encoder"):
        base = [f"--root={good}/data"]
    if command == "tools.evaluate" and option == "root":
        base = ["--dataset=Set", "--fused", f"m={good}/fused"]
    if command == "fuse":
        images = {"a": f"{good}/a/x.png", "b": f"{good}/b/x.png"} | {name: value for name in [option] if name in "ab"}
        stack = ["--task=MFF", "--", *images.values(), value] if option == "more" else ["--", *images.values()]
        text = [] if option.startswith("text") else [f"--text_feature={good}/feature.npy"]
        given = [] if option in ("a", "b", "more") else [f"--{option}={value}"]
        return [*base, *text, *given, *stack]
    if option in ("logs", "weights", "checkpoints"):
        return [*base, "--", value]
    positional = {"tools.compare_loss": "log.txt", "tools.export": "weights.pkl", "tools.release": "weights.pkl"}
    if option == "labels":
        base = ["--labels", value, *base]
        return [*base, "--", f"{good}/log.txt"]
    last = ["--", str(good / positional[command])] if command in positional else []
    if option == "fused":
        return [*folders, f"--fused=m={value}"]
    return [*base, f"--{option}={value}", *last]


def text_options(command: str) -> set[str]:
    """The options of a command that take text, by the command's own parser."""
    found: list[argparse.ArgumentParser] = []

    def caught(parser: argparse.ArgumentParser, *_: object) -> None:
        found.append(parser)
        raise Started

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", caught)
        patch.setattr(argparse.ArgumentParser, "parse_intermixed_args", caught)
        with pytest.raises(Started):
            importlib.import_module(command).main([])

    def takes_text(action: argparse.Action) -> bool:
        if action.nargs == 0 or action.choices:
            return False
        try:
            return action.type is None or bool(action.type("name=text"))
        except (ValueError, argparse.ArgumentTypeError):
            return False  # a number

    return {action.dest for action in found[0]._actions if takes_text(action)}


def commands() -> set[str]:
    """All modules that are run as commands."""
    files = [*ROOT.glob("*.py"), *(ROOT / "tools").glob("*.py")]
    runs = [file for file in files if '__name__ == "__main__"' in file.read_text("utf-8")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in runs}


def test_every_command_is_walked():
    assert commands() - LEFT_OUT == set(ROLES)


@pytest.mark.parametrize("command", ROLES)
def test_every_option_has_a_role(command):
    assert text_options(command) == set(ROLES[command])


def bad_values(role: str, good: str, world: Path) -> dict[str, tuple[str, str]]:
    """Bad values for a role: what is bad -> the value, and a part of the line that must appear (a true reason).

    Args:
        good: the place of a good value in `good`, `locked`, `fixed` and `closed`.
    """
    end = Path(good).suffix if role == WRITE else ""
    anywhere = {
        "empty": ("", "empty"),
        "NUL": (f"{world}/x\0y", "NUL"),
        "too long": (f"{world}/{'x' * (MAX_NAME + 1)}{end}", "too long"),
        "a link to itself": (f"{world}/loop{end}", "loop"),
        "in a locked folder": (f"{world}/locked/{good}", "ermission denied"),
    }
    if role == READ:
        return anywhere | {
            "missing": (f"{world}/gone", "gone"),
            "a folder": (f"{world}/good", ""),
            "a locked file": (f"{world}/closed/{good}", "ermission denied"),
            "below a file": (f"{world}/good/log.txt/x", "log.txt/x"),
            "a device": ("/dev/null", "/dev/null"),
        }
    if role == READ_FOLDER:
        return anywhere | {
            "missing": (f"{world}/gone", "gone"),
            "a file": (f"{world}/good/log.txt", "log.txt"),
            "a locked folder": (f"{world}/closed/{good}", "ermission denied"),
        }
    if role in (WRITE, PREFIX):
        ends = f"/{Path(good).name}"
        return anywhere | {
            "in a folder that may not be changed": (f"{world}/fixed{ends}", "ermission denied"),
            "below a file": (f"{world}/good/log.txt{ends}", "ot a directory"),
        } | ({} if role == PREFIX else {
            "a folder": (f"{world}/folder{end}", "folder"),
            "a pipe": (f"{world}/pipe{end}", "pipe"),
        })  # fmt: skip
    if role == WRITE_FOLDER:
        return anywhere | {
            "a folder that may not be changed": (f"{world}/fixed", "ermission denied"),
            "a file": (f"{world}/good/log.txt", "log.txt"),
            "below a file": (f"{world}/good/log.txt/x", "log.txt/x"),
        }
    if role == NAME:
        return {
            "empty": ("", "plain name"),
            "a path": ("../x", "plain name"),
            "too long": ("x" * (MAX_NAME + 1), "too long"),
            "a line break": ("x\ny", "plain name"),
            "not UTF-8": ("\udcff", "plain name"),
            "missing": ("gone", "gone"),
        }
    if role == ENCODER:
        return anywhere | {
            "missing": (f"{world}/gone", "gone"),
            "a file": (f"{world}/good/log.txt", "log.txt"),
            "an empty folder": (f"{world}/good/a", "config.json"),
            "of an unknown user": ("~nobody-has-this-name/x", "nobody-has-this-name"),
            "not UTF-8": (f"{world}/\udcff", "\\udcff"),
        }
    if role == TEXT:
        return {"not UTF-8": ("\udcff", "UTF-8"), "empty": ("", "empty")}
    return {"not UTF-8": ("\udcff", "\\udcff")} if role == KNOWN else {}


def snapshot(world: Path) -> dict[str, tuple[int, ...]]:
    """Every file and folder, and what changes if it is written."""
    found = {}
    for folder, folders, files in os.walk(world):
        for name in (*folders, *files):
            path = os.path.join(folder, name)  # noqa: PTH118
            entry = os.lstat(path)
            found[path] = entry.st_ino, entry.st_size, entry.st_mtime_ns, entry.st_mode
    return found


@pytest.fixture
def stand_ins(monkeypatch) -> Callable[[bool], None]:
    """A function that replaces Jittor, the network, and what takes long; it can make Jittor's start `Started`."""

    def replace(stop_at_start: bool) -> None:
        def use_device(*_: object) -> str:
            if stop_at_start:
                raise Started
            return "device: none"

        def save(state: dict, path: str) -> None:
            Path(path).write_bytes(pickle.dumps(state, 4))

        def fuse(net: object, a: np.ndarray, b: np.ndarray, text: np.ndarray) -> np.ndarray:
            return ((a + b)[0, 0] * 127).astype(np.uint8)

        class Features:
            encoder = ("stub", "0")

            def __init__(self, source: str) -> None:
                if source != "stub":
                    from utils.text.encoder import TextEncoder

                    TextEncoder(source)

            def prepare_texts(self, texts: dict) -> str:
                return "text features: none"

            def feature_of(self, name: str) -> np.ndarray:
                return np.zeros(TEXT_SHAPE, np.float32)

        jt = SimpleNamespace(save=save, set_global_seed=lambda *_, **__: None)
        stub = SimpleNamespace(use_device=use_device, jt=jt)
        monkeypatch.setitem(sys.modules, "utils.runtime.jittor_env", stub)
        monkeypatch.setitem(sys.modules, "utils.training.trainer", SimpleNamespace(**trainer()))
        for script in ("test", "fuse"):
            monkeypatch.setattr(f"{script}.load_net", lambda *_: None)
        for user in ("utils.evaluation.stream", "fuse"):
            monkeypatch.setattr(f"{user}.fuse_unstretched", lambda *arrays: fuse(*arrays) / np.float32(255))
        monkeypatch.setattr("fuse.fuse", fuse)
        monkeypatch.setattr("tools.release.EncodedText", Features)
        monkeypatch.setattr("tools.make_sample.SAMPLE", importlib.import_module("tools.make_sample").SAMPLE[:1])
        if TORCH:
            monkeypatch.setattr("tools.torch_twin.train_step", lambda *_: (0.5, 0.5, 0.5, 0.5))
            monkeypatch.setattr("tools.torch_twin.TwinNet", twin)
        if not stop_at_start:
            monkeypatch.setattr("fuse.text_features", lambda *_: Features("stub"))

        def run_script(*_: object) -> None:
            raise Started

        monkeypatch.setattr("tools.demo.run_script", run_script)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    return replace


def twin(*_: object) -> torch.nn.Module:
    """A network with the parameters of weights.pkl."""
    import torch

    net = torch.nn.Module()
    net.a = torch.nn.Parameter(torch.zeros(2, 3))
    return net


def trainer() -> dict:
    """What train.py takes from `utils.training.trainer`, without a network."""
    state = {"model": {"a": np.ones(2, np.float32)}, "epoch": 1, "step": 2}

    class Trainer(SimpleNamespace):
        def fingerprint(self) -> list[float]:
            return []

        def state(self) -> dict:
            return state

    def step_or_save(trainer: Trainer, batch: object, *_: object) -> tuple[dict, object]:
        trainer.step += 1
        return dict.fromkeys(LOSSES, 0.5), SimpleNamespace(numpy=lambda: batch.image_a)

    def build_trainer(*_: object) -> Trainer:
        optimizer, schedule = SimpleNamespace(lr=1e-5), SimpleNamespace(step=lambda: None)
        return Trainer(optimizer=optimizer, schedule=schedule, epoch=0, step=0, seconds=0.0)

    return {"build_trainer": build_trainer, "step_or_save": step_or_save}


def lines_of(command: str, argv: list[str], capsys) -> tuple[int | str, list[str]]:
    """The exit code, or 'started', of a command, and its lines on standard error."""
    main = importlib.import_module(command).main
    capsys.readouterr()
    try:
        code: int | str = run_command(main, argv)
    except SystemExit as end:
        code = end.code
    except Started:
        code = "started"
    return code, capsys.readouterr().err.splitlines()


PLACES = [(command, option) for command, roles in ROLES.items() for option in roles]


@pytest.mark.parametrize(("command", "option"), PLACES)
def test_a_bad_path_or_name_is_one_line_before_the_work(
    command, option, world, stand_ins, tmp_path, monkeypatch, capsys
):
    if ROLES[command][option] == ENCODER:
        pytest.importorskip("torch")
    stand_ins(stop_at_start=True)
    monkeypatch.chdir(tmp_path)
    before, problems = snapshot(world), []
    for kind, (value, reason) in bad_values(ROLES[command][option], VALUES.get(option, "x.png"), world).items():
        out = tmp_path / "out"
        with ordinary_permissions():
            code, lines = lines_of(command, arguments(command, option, value, world, out), capsys)
        usage = kind in ("empty", "NUL") or ROLES[command][option] in (NAME, TEXT)
        wanted = [line for line in lines if "error: " in line]
        if code != 2 or len(wanted) != 1 or reason not in wanted[0] or "Traceback" in "".join(lines):
            problems.append(f"{kind}: {code}, expected {reason!r} in {lines}")
        elif not usage and (len(lines) != 1 or not (reason or Path(printable(value)).name in lines[0])):
            problems.append(f"{kind}: one line that names it expected, not {lines}")
        if out.exists():
            problems.append(f"{kind}: left {[path.name for path in out.rglob('*')]}")
            shutil.rmtree(out)
    assert not problems, "\n".join(problems)
    assert snapshot(world) == before


# Bytes that are not UTF-8, a line break, a formula, HTML, Chinese, quotes, what looks like an option; and a long one.
ODD_NAMES = ("--\udcff\udcfe\n$x_$ $\\frac$<b>&amp;\u7ea2\u5916\"'", "x" * 200)


@pytest.mark.parametrize(
    ("command", "option"), [place for place in PLACES if ROLES[place[0]][place[1]] not in NOT_FILES]
)
def test_an_odd_name_works(command, option, world, stand_ins, tmp_path, monkeypatch, capsys):
    """Standard output is ASCII here, as with PYTHONIOENCODING=ascii."""
    stand_ins(stop_at_start=command == "tools.text_effect" or option in ("pretrain", "resume"))
    monkeypatch.chdir(tmp_path)
    role, good = ROLES[command][option], world / "good" / VALUES.get(option, "x.png")
    for name in ODD_NAMES:
        folder = tmp_path / name
        folder.mkdir()
        value = folder / f"{name}{good.suffix}"
        if role == READ:
            shutil.copy(good, value)
        elif role == READ_FOLDER:
            shutil.copytree(good, value)
        given = f"_{name}" if role == LABEL else str(value)
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
        code, lines = lines_of(command, arguments(command, option, given, world, folder / "out"), capsys)
        assert code in (0, "started"), lines


def test_odd_names_of_images_are_fused_and_left_out_of_h5(world, stand_ins, tmp_path, monkeypatch, capsys):
    """An H5 file holds names in UTF-8, one a line in a list; names of files may be any."""
    stand_ins(stop_at_start=False)
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("x", *ODD_NAMES):
            shutil.copy(world / "good/a/x.png", tmp_path / folder / f"{name}.png")
    folders, good = ["--dir_a=a", "--dir_b=b"], world / "good"
    weights = [f"--ckpt_path={good}/weights.pkl", f"--text_feature={good}/feature.npy"]
    assert lines_of("fuse", ["a", "b", "-o", "out", "--color", *weights], capsys)[0] == 0
    for kind in ("Gray", "RGB"):
        assert {path.stem for path in (tmp_path / "out" / kind).iterdir()} == {"x", *ODD_NAMES}
    shutil.copytree(good / "data/TextFeature/IVF/Set", tmp_path / "TextFeature")
    shutil.copy(good / "feature.npy", tmp_path / "TextFeature" / f"{ODD_NAMES[1]}.npy")
    argv = [*folders, "--out=h5", "--dataset=Set", "--text_encoder=npy"]
    code, lines = lines_of("data_process", argv, capsys)
    assert (code, len(lines)) == (2, 1)
    assert "holds a control character, or a byte that is not UTF-8" in lines[0]
    assert not (tmp_path / "h5").exists()
    assert lines_of("data_process", [*argv, "--skip_bad"], capsys)[0] == 0
    with H5Dataset(tmp_path / "h5/Set_train.h5") as dataset:
        assert set(dataset.names) == {"x", ODD_NAMES[1]}
    (listed,) = (tmp_path / "h5/Set_train_skipped.txt").read_text(encoding="utf-8").splitlines()
    assert listed.startswith("--\\udcff\\udcfe\\n$x_$")


# Variables of the environment that this project reads -> odd values: all together have no effect on a start, or each
# is one line that holds the text given.
WITHOUT_EFFECT = {
    "FILM_REFERENCE": "maybe", "FILM_PORTABLE": "\udcff", "FILM_TRUST_CUDA": "maybe", "OMPI_COMM_WORLD_SIZE": "many",
    "OMPI_COMM_WORLD_RANK": "-1", "OMPI_COMM_WORLD_LOCAL_SIZE": "", "OMPI_COMM_WORLD_LOCAL_RANK": "first",
    "PMI_SIZE": "many", "OMPI_MCA_orte_bound_at_launch": "maybe", "CUDA_VISIBLE_DEVICES": "none,at,all",
    "OMP_NUM_THREADS": "", "nccl_include_path": "/dev/null/x", "mpicc_path": "/dev/null/x",
    "OPENCV_FFMPEG_LOGLEVEL": "loud", "MPLBACKEND": "module://none", "FILM_CACHE": "/dev/null/x",
    "nvcc_path": "/dev/null/x", "nccl_lib_path": "/dev/null/x",
}  # fmt: skip
ONE_LINE = {
    "cc_path": ("/dev/null/x", "/dev/null/x: no C++ compiler"),
    "JITTOR_HOME": ("/dev/null/x", "/dev/null/x/.cache/jittor"),
    "HOME": ("/dev/null/x", "/dev/null/x/.cache/jittor"),
}
# Jittor's own settings, which this project only sets, or whose values it passes on.
PASSED_ON = {"cache_name", "log_v", "log_silent", "use_nccl", "use_mpi", "debug"}
START = """
import sys
from utils.runtime.cli import run_command

def main(argv):
    from utils.runtime.jittor_env import use_device
    print(use_device("auto"))

sys.exit(run_command(main))
"""


def started(**environment: str) -> subprocess.CompletedProcess:
    known = dict(os.environ)
    if "HOME" in environment:
        known.pop("JITTOR_HOME", None)  # it would be used instead
    return subprocess.run(
        [sys.executable, "-c", START],
        cwd=ROOT,
        env=known | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_variable_has_a_row():
    read = re.compile(r"""environ(?:\.\w+\(|\[)"(\w+)"|"(\w+)" (?:not )?in os\.environ|_number\("(\w+)\"""")
    text = "".join(path.read_text("utf-8") for path in (*ROOT.glob("utils/**/*.py"), *ROOT.glob("net/**/*.py")))
    found = {next(filter(None, names)) for names in read.findall(text)}
    assert len(found) > 10
    assert found <= {*WITHOUT_EFFECT, *ONE_LINE, *PASSED_ON}


def test_odd_variables_have_no_effect():
    done = started(**WITHOUT_EFFECT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("device: cpu")


@pytest.mark.parametrize("name", ONE_LINE)
def test_an_odd_variable_is_one_line(name):
    value, expected = ONE_LINE[name]
    done = started(**{name: value})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert expected in done.stderr
