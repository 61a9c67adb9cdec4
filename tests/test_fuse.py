"""fuse.py and --color as commands: what they write, which text they use, and what they refuse."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import fuse
from net.shapes import TEXT_SHAPE
from utils.data.bad_pairs import BadPairs
from utils.data.color import colorize
from utils.data.images import read_bgr
from utils.data.pairs import Pair
from utils.data.provenance import UNKNOWN, Provenance
from utils.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SIZE = (48, 64)


def run(script: str, *arguments: object, cwd: Path | None = None, **environment: str):
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=environment)


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a command that failed as it should."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.replace("\r", "\n").strip().splitlines()[-1]


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def picture(seed: int, size: tuple[int, int] = SIZE, channels: int = 3) -> np.ndarray:
    noise = np.random.default_rng(seed).random((*size, channels))
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8).reshape(*size, channels)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Weights, folders IR (gray) and VI (colour) of two pairs, one name with spaces and dots, and their features."""
    from net.Film import Net
    from utils.runtime.jittor_env import jt
    from utils.training.checkpoint import save_checkpoint, weights_of_net

    folder = tmp_path_factory.mktemp("fuse")
    jt.set_global_seed(0)
    weights = weights_of_net(Net())
    save_checkpoint(folder / "net.pkl", {"model": weights})
    save_checkpoint(folder / "mef.pkl", {"model": weights, "data": {"task": "MEF"}})
    narrow = {name: value[..., :512] if value.shape[-1] == 768 else value for name, value in weights.items()}
    save_checkpoint(folder / "512.pkl", {"model": narrow})
    np.save(folder / "512.npy", np.zeros((1, 149, 512), np.float32))
    (folder / "TextFeature").mkdir()
    for seed, name in enumerate(["夜 1.5", "x"]):
        write(folder / "IR" / f"{name}.png", picture(seed, channels=1))
        write(folder / "VI" / f"{name}.bmp", picture(seed + 10))
        feature = np.random.default_rng(seed).standard_normal((1, *TEXT_SHAPE)).astype(np.float32)
        np.save(folder / "TextFeature" / f"{name}.npy", feature)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A BERT of width 768, small and random, with its vocabulary."""
    pytest.importorskip("torch")
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "and", "car"])
    )
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(vocab_size=9, num_hidden_layers=1, intermediate_size=8, max_position_embeddings=160)
    BertModel(config).save_pretrained(folder)
    return folder


def gray_of(path: Path) -> np.ndarray:
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module")
def tested(place) -> Path:
    """`place` with the outputs of data_process.py and of test.py, with and without --color."""
    folders = ("--dir_a", place / "IR", "--dir_b", place / "VI")
    done = run("data_process.py", *folders, "--dataset", "Set", "--mode", "test", "--out", place / "h5")
    assert done.returncode == 0, done.stderr
    assert "test: 2 pairs" in done.stdout
    for out, options in (("plain", ()), ("color", ("--color",))):
        done = run(
            *("test.py", "--dataset", "Set", "--ckpt_path", place / "net.pkl", "--h5_dir", place / "h5"),
            *("--out_dir", place / out, *options),
        )
        assert done.returncode == 0, done.stderr
    return place


def test_color_in_test_leaves_the_gray_images_as_they_are(tested):
    assert not (tested / "plain" / "Set" / "RGB").exists()
    for name in ("夜 1.5", "x"):
        gray = tested / "plain" / "Set" / "Gray" / f"{name}.png"
        assert gray.read_bytes() == (tested / "color" / "Set" / "Gray" / f"{name}.png").read_bytes()
        expected = colorize(gray_of(gray), *(read_bgr(tested / p) for p in (f"IR/{name}.png", f"VI/{name}.bmp")))
        np.testing.assert_array_equal(gray_of(tested / "color" / "Set" / "RGB" / f"{name}.png"), expected)


def test_two_folders_give_what_test_gives(tested):
    """fuse.py on two folders finds the features next to them."""
    done = run("fuse.py", "IR", "VI", "-o", "out", "--ckpt_path", "net.pkl", "--color", cwd=tested)
    assert done.returncode == 0, done.stderr
    assert "fused: out/Gray and out/RGB" in done.stdout
    for kind in ("Gray", "RGB"):
        for name in ("夜 1.5.png", "x.png"):
            assert (tested / "out" / kind / name).read_bytes() == (tested / "color" / "Set" / kind / name).read_bytes()


def test_one_pair(tested):
    """The default output is <name of A>_fused.png in the current folder."""
    arguments = (tested / "IR" / "x.png", tested / "VI" / "x.bmp", "--ckpt_path", tested / "net.pkl")
    (tested / "here").mkdir()
    done = run("fuse.py", *arguments, cwd=tested / "here")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tested / "here").iterdir()] == ["x_fused.png"]
    gray = (tested / "plain" / "Set" / "Gray" / "x.png").read_bytes()
    assert (tested / "here" / "x_fused.png").read_bytes() == gray


def test_a_text_is_encoded(place, encoder, tmp_path):
    """The paragraph next to the images, the same one given as a file, and a neutral sentence for a pair without one."""
    options = ("--ckpt_path", place / "net.pkl", "--text_encoder", encoder)
    for seed, name in enumerate("pq"):
        for folder in "ab":
            write(tmp_path / folder / f"{name}.png", picture(10 * seed + ord(folder)))
    (tmp_path / "Text").mkdir()
    (tmp_path / "Text" / "p.txt").write_text("A man and a car", encoding="utf-8-sig")
    neutral = "The infrared image and the visible image of the same scene."
    for arguments, said in (
        (("a", "b", "-o", "out"), f"no text for 1 of 2 pairs: the neutral sentence '{neutral}' is used"),
        (("a/p.png", "b/p.png", "-o", "p.png", "--text_file", "Text/p.txt"), "1 texts"),
    ):
        done = run("fuse.py", *arguments, *options, cwd=tmp_path, FILM_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    assert (tmp_path / "p.png").read_bytes() == (tmp_path / "out" / "Gray" / "p.png").read_bytes()
    assert (tmp_path / "out" / "Gray" / "q.png").is_file()


# --- the text of weights that record their encoder

NEUTRAL = np.full((1, *TEXT_SHAPE), 0.5, np.float32)
GONE = Provenance("IVF", "/no/such/encoder", "e690")


def feature_of(folder: Path, trained: Provenance, *options: str) -> np.ndarray:
    """The feature of a pair in `folder` for the weights net.pkl, next to the neutral feature net.npy."""
    np.save(folder / "net.npy", NEUTRAL)
    files = (folder / name for name in ("a.png", "b.png", "x.txt", "x.npy"))
    pair = Pair("x", *files)
    args = fuse.get_args_parser().parse_args(["a.png", "b.png", *options])
    return fuse.features_of([pair], args, BadPairs(False), folder / "net.pkl", trained)(pair)


def test_without_a_text_the_ready_neutral_feature_is_used(tmp_path, capsys):
    np.testing.assert_array_equal(feature_of(tmp_path, GONE), NEUTRAL[0])
    said = capsys.readouterr().out
    assert said.startswith("text: the neutral sentence 'The infrared image and the visible image of the same scene.'")
    assert "net.npy" in said and "--text" in said and said.count("\n") == 1


def test_without_an_encoder_the_ready_neutral_feature_is_used(tmp_path, capsys):
    (tmp_path / "x.txt").write_text("A man walks past a car.")
    np.testing.assert_array_equal(feature_of(tmp_path, GONE), NEUTRAL[0])
    said = capsys.readouterr().out
    assert said.startswith("no text encoder (") and said.count("\n") == 1


def test_a_text_that_was_given_is_never_replaced(tmp_path):
    with pytest.raises((UserError, ModuleNotFoundError)):
        feature_of(tmp_path, GONE, "--text", "A man walks past a car.")
    with pytest.raises((UserError, ModuleNotFoundError)):
        feature_of(tmp_path, GONE, "--text_encoder", "/no/other")


def test_the_encoder_of_the_weights_is_the_default(tmp_path, monkeypatch):
    """Weights that do not record it get no neutral feature: it may be of another encoder."""
    asked = []

    class Encoded:
        encoder = ("here", "e690")

        def prepare_texts(self, texts):
            return str(texts)

        def feature_of(self, name):
            return np.ones(TEXT_SHAPE, np.float32)

    monkeypatch.setattr(fuse, "text_features", lambda *arguments: asked.append(arguments[::2]) or Encoded())
    for trained in (Provenance("IVF", "mpnet", "e690"), UNKNOWN):
        assert (feature_of(tmp_path, trained, "--text", "A man") == 1).all()
    assert (feature_of(tmp_path, UNKNOWN) == 1).all()
    assert asked == [("auto", "mpnet"), ("auto", "bert"), ("auto", "bert")]
    assert fuse.encode(Encoded(), {}, Provenance("IVF", "mpnet", "e690")) == "{}"
    said = fuse.encode(Encoded(), {}, Provenance("IVF", "mpnet", "f701"))
    assert said.splitlines()[1:] == ["the weights were trained with another text encoder, mpnet, not here"]


def test_sizes_that_differ(place, tmp_path):
    """The smaller image is resized to the larger; with --color a gray pair stays gray, and a line says so."""
    a, b = write(tmp_path / "a.png", picture(1, (40, 50), 1)), write(tmp_path / "b.png", picture(2, (60, 72), 1))
    feature = place / "TextFeature" / "x.npy"
    arguments = ("fuse.py", a, b, "-o", tmp_path / "f.png", "--ckpt_path", place / "net.pkl", "--text_feature", feature)
    line = failure(run(*arguments))
    assert "a.png: a pair of different sizes, 40x50 and 60x72, with" in line
    assert line.endswith("--resize resizes the smaller one")
    assert not (tmp_path / "f.png").exists()
    done = run(*arguments, "--resize", "--color")
    assert done.returncode == 0, done.stderr
    assert gray_of(tmp_path / "f.png").shape == (60, 72)
    assert gray_of(tmp_path / "f_RGB.png").shape == (60, 72, 3)
    assert "no colour in the sources of 1 of 1 pairs" in done.stdout


def test_wrong_input_is_one_line(place, tmp_path):
    a, b, weights = place / "IR" / "x.png", place / "VI" / "x.bmp", ("--ckpt_path", place / "net.pkl")
    out = ("-o", tmp_path / "out.png")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for arguments, message in (
        ((a, b, *out, "--task", "MEF"), "models/MEF.pkl: no such checkpoint, nor MEF.pth there; name one with --ckpt"),
        ((a, b, *out, "--ckpt_path", place / "mef.pkl"), "mef.pkl: was trained for MEF, not IVF; --task MEF uses it"),
        ((a, b, *out, "--ckpt_path", place / "512.pkl"), "512.pkl: does not fit the network: "),
        ((a, b, *out, *weights, "--text_feature", place / "512.npy"), "512.npy: holds float32 of shape (1, 149, 512)"),
        ((a, tmp_path / "gone.png", *out, *weights), "gone.png: no such image"),
        ((a, place / "VI", *out, *weights), "expected two images or two folders of images"),
        ((place / "IR", tmp_path, *weights), "no image has a partner of the same name"),
        ((a, b, "-o", "out.tif", *weights), "out.tif: expected the name of a .png file"),
        ((a, b, *out, *weights, "--text", " "), "--text: is empty"),
        ((a, b, *out, *weights, "--text_file", tmp_path / "empty.txt"), "empty.txt: is empty"),
        ((a, b, *out, *weights, "--text_file", tmp_path / "latin.txt"), "latin.txt: is not UTF-8"),
        ((a, b, *out, *weights, "--text", "x", "--text_encoder", "npy"), "--text_encoder npy: cannot encode a text"),
        ((a, b, *out, *weights, "--text", "x", "--text_file", "y"), "not allowed with argument"),
        ((a, b, *out, *weights, "--text_feature", tmp_path / "gone.npy"), "gone.npy: no such text feature"),
    ):
        assert message in failure(run("fuse.py", *arguments, cwd=tmp_path)), message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "latin.txt"]


def test_colors_come_from_the_files_that_the_h5_file_remembers_or_an_option_names(tested, tmp_path):
    """In `tested`, no option was needed. Here the images are moved, and then others with the same names are used."""
    source, moved, weights = tmp_path / "source", tmp_path / "moved", tested / "net.pkl"
    for folder, suffix in (("IR", ".png"), ("VI", ".bmp"), ("TextFeature", ".npy")):
        (source / folder).mkdir(parents=True)
        (source / folder / f"x{suffix}").write_bytes((tested / folder / f"x{suffix}").read_bytes())
    folders = ("--dir_a", source / "IR", "--dir_b", source / "VI")
    done = run("data_process.py", *folders, "--dataset", "Set", "--mode", "test", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    arguments = ("test.py", "--dataset", "Set", "--ckpt_path", weights, "--h5_dir", tmp_path, "--out_dir", tmp_path)
    source.rename(moved)
    line = failure(run(*arguments, "--color"))
    assert "Set_test.h5: no image files of 'x' were found, which --color needs" in line
    assert line.endswith("say where they are with --root, --raw, or --dir_a and --dir_b")
    moved.rename(source)
    gray = write(tmp_path / "gray" / "x.png", picture(0, channels=1)).parent
    done = run(*arguments, "--color", "--dir_a", gray, "--dir_b", gray)
    assert done.returncode == 0, done.stderr
    assert "no colour in the sources of 1 of 1 pairs" in done.stdout
    done = run(*arguments, "--color")
    assert done.returncode == 0, done.stderr
    assert "no colour" not in done.stdout
    colored = (tested / "color" / "Set" / "RGB" / "x.png").read_bytes()
    assert (tmp_path / "Set" / "RGB" / "x.png").read_bytes() == colored


def test_color_in_test_names_what_is_missing(tested, tmp_path):
    (tmp_path / "IR").mkdir()
    (tmp_path / "VI").mkdir()
    for folder, suffix in (("IR", "png"), ("VI", "bmp")):
        (tmp_path / folder / f"x.{suffix}").write_bytes((tested / folder / f"x.{suffix}").read_bytes())
    arguments = ("test.py", "--dataset", "Set", "--ckpt_path", tested / "net.pkl", "--h5_dir", tested / "h5", "--color")
    arguments = (*arguments, "--out_dir", tmp_path / "out")
    line = failure(run(*arguments, "--dir_a", tmp_path / "IR", "--dir_b", tmp_path / "VI"))
    assert "Set_test.h5: no image files of '夜 1.5' were found, which --color needs" in line
    assert "either --raw, or both --dir_a and --dir_b" in failure(run(*arguments, "--dir_a", tmp_path / "IR"))
    assert not (tmp_path / "out").exists()


def test_an_output_never_replaces_an_input(place, tmp_path):
    """Also through links and in folders: refused before the weights are loaded, and every file stays as it is."""
    for folder in ("IR", "VI", "TextFeature"):
        shutil.copytree(place / folder, tmp_path / folder)
    (tmp_path / "VI" / "x.bmp").rename(tmp_path / "VI" / "x.png")
    (tmp_path / "link.png").symlink_to("IR/x.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "VI" / "x.png")
    (tmp_path / "c_RGB.png").symlink_to("VI/x.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "Gray").symlink_to("../IR")
    pair, weights = ("IR/x.png", "VI/x.png"), ("--ckpt_path", place / "net.pkl")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for arguments in (
        (*pair, "-o", "IR/x.png"),
        (*pair, "-o", "./IR/../VI/x.png"),
        (*pair, "-o", "link.png"),
        (*pair, "-o", "hard.png"),
        (*pair, "-o", "c.png", "--color"),
        ("IR", "VI", "-o", "out"),
    ):
        assert "would overwrite an input" in failure(run("fuse.py", *arguments, *weights, cwd=tmp_path)), arguments
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_bad_pairs_and_images_without_a_partner(place, tmp_path):
    """Of three pairs one is damaged and one signed; one image has no partner; a hidden file is no image."""
    rows = np.tile(np.arange(29000, 29000 + SIZE[1], dtype=np.uint16), (SIZE[0], 1))
    for name in ("good", "bad", "signed"):
        write(tmp_path / "a" / f"{name}.png", rows)
        write(tmp_path / "b" / f"{name}.png", picture(1))
    write(tmp_path / "a" / "signed.tif", rows.astype(np.int16))
    (tmp_path / "a" / "signed.png").unlink()
    write(tmp_path / "a" / "Alone.png", rows)
    (tmp_path / "a" / "._good.png").write_bytes(b"")
    (tmp_path / "b" / "bad.png").write_bytes(b"no image")
    feature = ("--text_feature", place / "TextFeature" / "x.npy")
    options = ("fuse.py", "a", "b", "--ckpt_path", place / "net.pkl", *feature, "-o", "out")
    assert "--strict: 1 images without a partner" in failure(run(*options, "--strict", cwd=tmp_path))
    done = run(*options, "--skip_bad", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 images without a partner left out: a/Alone.png" in done.stdout
    assert "a/good.png (1 gray levels of 64 values); --stretch keeps the detail" in done.stdout
    assert "skipped: 2 bad pairs, named above, listed in out/skipped.txt" in done.stdout
    listed = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["bad", "signed"]
    done = run(*options, "--skip_bad", "--stretch", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "image A: the values 29000..29063 of 3 images become 0..255" in done.stdout
    assert "--stretch keeps" not in done.stdout
    assert sorted(path.name for path in (tmp_path / "out" / "Gray").iterdir()) == ["good.png", "signed.png"]


def shapes(seed: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """Filled ellipses, uint8 gray: enough edges to register."""
    rng = np.random.default_rng(seed)
    image = np.full(size, 128, np.uint8)
    for _ in range(25):
        centre, axes = rng.integers(0, size[::-1], 2), rng.integers(5, 20, 2)
        cv2.ellipse(image, centre.tolist(), axes.tolist(), int(rng.integers(180)), 0, 360, int(rng.integers(256)), -1)
    return cv2.GaussianBlur(image, (0, 0), 1)


def test_pairs_are_registered_as_they_are_read_and_those_that_do_not_fit_are_skipped(place, tmp_path):
    """A has 16 bits, in a small range. B shows the scene 5 pixels to the right, so 5 of 128 columns are lost, in colour
    too, and no row; 1.5 pixels of error are allowed on each side."""
    scene = shapes(0)
    write(tmp_path / "a" / "moved.png", 29000 + scene.astype(np.uint16))
    write(tmp_path / "b" / "moved.png", cv2.merge([np.roll(scene, 5, 1), np.roll(scene, 5, 1) // 2, scene * 0]))
    write(tmp_path / "a" / "other.png", shapes(1).astype(np.uint16))
    write(tmp_path / "b" / "other.png", shapes(2))
    options = ("--ckpt_path", place / "net.pkl", "--text_feature", place / "TextFeature" / "x.npy", "--color")
    options = (*options, "--register", "--percentiles", 0, 100, "--skip_bad")
    done = run("fuse.py", "a", "b", "-o", "out", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "registered: 1 of 1 pairs moved by up to" in done.stdout
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith("other\ta/other.png: cannot be registered")
    gray, colored = (gray_of(tmp_path / "out" / kind / "moved.png") for kind in ("Gray", "RGB"))
    assert 93 <= gray.shape[0] <= 96 and 120 <= gray.shape[1] <= 126
    assert colored.shape == (*gray.shape, 3)
    assert not (tmp_path / "out" / "Gray" / "other.png").exists()


def test_a_stack(place, tmp_path):
    """A TIFF of three pages."""
    pages = [picture(seed, channels=1) for seed in range(3)]
    (tmp_path / "x.tif").write_bytes(cv2.imencodemulti(".tif", pages)[1].tobytes())
    options = ("--ckpt_path", place / "net.pkl", "--text_feature", place / "TextFeature" / "x.npy")
    done = run("fuse.py", "x.tif", "--task", "MFF", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fused: x_fused.png" in done.stdout
    assert "only the first page" not in done.stdout
    fused = gray_of(tmp_path / "x_fused.png")
    assert (fused.shape, fused.min(), fused.max()) == (SIZE, 0, 255)


def test_two_films(place, tmp_path):
    videos = [video(tmp_path / name, 3) for name in ("a.avi", "b.avi")]
    options = ("--ckpt_path", place / "net.pkl", "--text_feature", place / "TextFeature" / "x.npy")
    done = run("fuse.py", *videos, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fused: a_fused.mp4" in done.stdout
    assert cv2.VideoCapture(str(tmp_path / "a_fused.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def video(path: Path, count: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, SIZE[::-1])
    for seed in range(count):
        writer.write(picture(seed))
    writer.release()
    return path


def test_links_are_followed_on_request(tmp_path):
    """Pairs, and a stack, in two folders of links to other places, as the cache of the Hugging Face hub has them."""
    for side in "ab":
        (tmp_path / side).mkdir()
        for name in "12":
            image = write(tmp_path / "blobs" / f"{side}{name}.png", picture(0))
            (tmp_path / side / f"{name}.png").symlink_to(image)
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    with pytest.raises(UserError, match=r"a/1.png: is a link that leads out of its folder"):
        fuse.find_jobs(a, b, out, "IVF", False, BadPairs())
    jobs = fuse.find_jobs(a, b, out, "IVF", False, BadPairs(), follow_links=True)
    assert [job.paths for job in jobs] == [(a / f"{name}.png", b / f"{name}.png") for name in "12"]
    with pytest.raises(UserError, match=r"a/1.png: is a link that leads out of its folder"):
        fuse.find_stacks([a], tmp_path / "o.png", "MFF")
    (stack,) = fuse.find_stacks([a], tmp_path / "o.png", "MFF", follow_links=True)
    assert stack.paths == (a / "1.png", a / "2.png")


def test_what_stacks_and_films_refuse(tmp_path):
    """Options for pairs, and outputs that are inputs."""
    images = [write(tmp_path / f"{name}.png", picture(0, channels=1)) for name in "abc"]
    videos = [video(tmp_path / name, 1) for name in ("a.avi", "b.avi")]
    (tmp_path / "net.pkl").touch()
    (tmp_path / "link.png").symlink_to(images[1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    stack = (*images, "--task", "MEF")
    for arguments, message in (
        ((*stack, "--register", "--skip_bad"), "--register, --skip_bad: for pairs of images, not for stacks"),
        ((*videos, "--percentiles", 1, 99), "--percentiles: for pairs of images"),
        ((*videos, "--strict", "--stretch", "--resize"), "--resize, --strict, --stretch: for pairs of images"),
        ((*stack, "-o", tmp_path / "link.png"), "link.png: would overwrite an input"),
        ((*videos, "-o", videos[0]), "a.avi: would overwrite an input"),
    ):
        with pytest.raises(UserError, match=message):
            fuse.main([*map(str, arguments), "--ckpt_path", str(tmp_path / "net.pkl")])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
