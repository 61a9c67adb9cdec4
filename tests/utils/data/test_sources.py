"""Data sets as downloaded, and two folders: which files make a pair, which pairs a mode takes, and what is refused."""

from __future__ import annotations

import shutil
from argparse import Namespace
from itertools import product
from pathlib import Path

import pytest

from utils.data.bad_pairs import BadPairs
from utils.data.layouts import SPLITS
from utils.data.pairs import read_list
from utils.data.sources import Selection, find_source
from utils.runtime.errors import UserError


def touch(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    return folder


def select(mode: str = "test", **options: object) -> Selection:
    absent = dict.fromkeys(("raw", "dir_a", "dir_b", "list", "task", "dataset", "strict", "follow_links"))
    return find_source(Namespace(**{"root": Path("VLFDataset"), **absent, **options}), mode)


def raw(folder: Path, mode: str = "test", **options: object) -> Selection:
    return select(mode, raw=folder, root=folder / "VLFDataset", **options)


def pairs_of(selection: Selection, folder: Path) -> dict[str, tuple[str, str]]:
    """name -> the two images, from the folder on."""
    return {
        pair.name: tuple(path.relative_to(folder).as_posix() for path in (pair.image_a, pair.image_b))
        for pair in selection.pairs
    }


# folder -> (files, task, data set, the test pairs); the layouts of issue 3, and of the downloads themselves
CASES = {
    "MSRS-main": (
        [
            *("train/ir/1D.png", "train/vi/1D.png", "test/ir/2N.png", "test/vi/2N.png"),
            *("test/Segmentation_labels/2N.png", "detection/ir/1.png", "detection/vi/1.png", "detection/labels/1.txt"),
        ],
        ("IVF", "MSRS", {"2N": ("test/ir/2N.png", "test/vi/2N.png")}),
    ),
    "LLVIP download": (
        [f"{side}/{name}.jpg" for side in ("infrared", "visible") for name in ("train/010001", "test/190001")],
        ("IVF", "LLVIP", {"190001": ("infrared/test/190001.jpg", "visible/test/190001.jpg")}),
    ),
    "VIFB-master": (
        ["input/IR/fight.jpg", "input/VI/fight.jpg", "input/VI/fight - copy.jpg", "fused_images/fight_CBF.jpg"],
        ("IVF", "VIFB", {"fight": ("input/IR/fight.jpg", "input/VI/fight.jpg")}),
    ),
    # _A is the darker one, as the names of the originals beside them say; case differs in three of its hundred scenes.
    "MEFB-main": (
        ["input/Farmhouse/Farmhouse_A.png", "input/Farmhouse/FarmHouse_B.png", "input/Farmhouse/over.png"],
        ("MEF", "MEFB", {"Farmhouse": ("input/Farmhouse/FarmHouse_B.png", "input/Farmhouse/Farmhouse_A.png")}),
    ),
    # FMB: color/ holds coloured labels.
    "FMB": (
        [f"{mode}/{side}/{mode}.png" for mode in ("train", "test") for side in ("color", "Infrared", "Visible")],
        ("IVF", "FMB", {"test": ("test/Infrared/test.png", "test/Visible/test.png")}),
    ),
    "three cameras": (
        ["nir/1.png", "lwir/1.png", "vis/1.png"],
        ("IVF", "three cameras", {"1": ("lwir/1.png", "vis/1.png")}),
    ),
    "split in its folders": (
        [f"{side}/{name}.tif" for side in ("OVER", "UNDER") for name in ("train/1", "test/2")],
        ("MEF", "split in its folders", {"2": ("OVER/test/2.tif", "UNDER/test/2.tif")}),
    ),
    "RoadScene-master": (
        [
            *("cropinfrared/FLIR_00006.jpg", "crop_LR_visible/FLIR_00006.jpg", "crop_HR_visible/FLIR_00006.jpg"),
            *("cropinfrared/FLIR_00211.jpg", "crop_LR_visible/FLIR_00211.jpg"),
        ],
        (
            "IVF",
            "RoadScene",
            {"FLIR_00211": ("cropinfrared/FLIR_00211.jpg", "crop_LR_visible/FLIR_00211.jpg")},
        ),
    ),
    "M3FD_Fusion": (
        ["Ir/00000.png", "Vis/00000.png"],
        ("IVF", "M3FD", {"00000": ("Ir/00000.png", "Vis/00000.png")}),
    ),
    "IV_images": (
        ["IR1.png", "VIS1.png", "IR2.png"],
        ("IVF", "TNO", {"1": ("IR1.png", "VIS1.png")}),
    ),
    "LytroDataset": (
        ["lytro-01-A.jpg", "lytro-01-B.jpg"],
        ("MFF", "Lytro", {"lytro-01": ("lytro-01-A.jpg", "lytro-01-B.jpg")}),
    ),
    "MRI_CT": (["MRI/3.png", "CT/3.png"], ("MIF", "Harvard", {"3": ("MRI/3.png", "CT/3.png")})),
    "MRI_PET": (["MRI/3.png", "PET/3.png"], ("MIF", "Harvard", {"3": ("MRI/3.png", "PET/3.png")})),
    "SPECT-MRI": (["MRI/3.png", "SPECT/3.png"], ("MIF", "Harvard", {"3": ("MRI/3.png", "SPECT/3.png")})),
    "exposures": (
        ["OVER/door.jpg", "UNDER/door.jpg"],
        ("MEF", "exposures", {"door": ("OVER/door.jpg", "UNDER/door.jpg")}),
    ),
    "my street": (
        ["infrared/a.b 图.png", "Visible/a.b 图.jpg"],
        ("IVF", "my street", {"a.b 图": ("infrared/a.b 图.png", "Visible/a.b 图.jpg")}),
    ),
    "foci": (["near/x.tif", "far/x.tif"], ("MFF", "foci", {"x": ("near/x.tif", "far/x.tif")})),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("within", [False, True])
def test_a_layout_is_detected(tmp_path, name, within):
    """In its own folder, and in a folder around it."""
    files, (task, dataset, expected) = CASES[name]
    folder = touch(tmp_path / name, *files)
    selection = raw(tmp_path if within else folder, **({"dataset": dataset} if within else {}))
    assert (selection.task, selection.dataset) == (task, dataset)
    assert pairs_of(selection, folder) == expected
    assert "test: 1 pairs" in selection.found
    assert next(iter(expected.values()))[0] in selection.found


@pytest.mark.parametrize("split", ["{mode}/{side}/{mode}.png", "x/{side}/{mode}/{mode}.png", "{side}/test.png"])
def test_folders_of_any_infrared_and_visible_camera(tmp_path, split):
    sides_a = ("IR", "Infrared", "thermal", "TIR", "FIR", "lwir", "MWIR", "NIR", "swir")
    sides_b = ("VI", "vis", "Visible", "visual", "RGB", "color", "colour")
    for number, sides in enumerate(product(sides_a, sides_b)):
        names = {mode: tuple(split.format(side=side, mode=mode) for side in sides) for mode in ("train", "test")}
        folder = touch(tmp_path / str(number), *names["train"], *names["test"])
        assert pairs_of(raw(folder), folder) == {"test": names["test"]}


def options_in(message: str) -> list[dict[str, object]]:
    """The choices that the line about several data sets names, as arguments of `raw`."""
    choices = message.partition("choose one with ")[2].partition(", or its own --raw")[0].split(", or ")
    parts = [choice.split() for choice in choices]
    return [{option.removeprefix("--"): value for option, value in zip(x[::2], x[1::2], strict=True)} for x in parts]


@pytest.mark.parametrize(
    ("files", "options"),
    [
        (["Ir/1.png", "Vis/1.png", "MRI/1.png", "CT/1.png"], [{"dataset": "M3FD"}, {"dataset": "Harvard"}]),
        (["rgb/1.png", "tir/1.png", "OVER/1.png", "UNDER/1.png"], [{"task": "IVF"}, {"task": "MEF"}]),
        (
            ["x/ir/1.png", "x/vi/1.png", "y/nir/2.png", "y/rgb/2.png"],
            [{"dir_a": "x/ir", "dir_b": "x/vi"}, {"dir_a": "y/nir", "dir_b": "y/rgb"}],
        ),
    ],
)
def test_of_several_data_sets_the_named_options_choose_one(tmp_path, monkeypatch, files, options):
    monkeypatch.chdir(touch(tmp_path, *files))
    with pytest.raises(UserError, match=r"holds several data sets \(") as caught:
        raw(Path())
    assert options_in(str(caught.value)) == options
    for number, choice in enumerate(options):
        own = {key: Path(value) if key in ("dir_a", "dir_b") else value for key, value in choice.items()}
        (pair,) = select(**own).pairs if "dir_a" in own else raw(Path(), **own).pairs
        assert pair.image_a.as_posix() in files[2 * number : 2 * number + 2]


# scene -> (long-wave infrared, visible, others), as TNO's own folder has them
TNO_SCENES = {
    "Athena_images/2_men_in_front_of_house": ("IR_meting003_g.bmp", "VIS_meting003_r.bmp"),
    "Athena_images/airplane_in_trees": ("ir.bmp", "vis.bmp"),
    "Athena_images/APC_1/view_1": ("IR_fk_06_005.bmp", "VIS_fk_06_005.bmp"),
    "Athena_images/APC_2/view_1": ("2_fk_ge_03_005.bmp", "1_fk_ge_03_005.bmp"),
    "Athena_images/bunker": ("IR_bunker_g.bmp", "bunker_r.bmp"),
    "Athena_images/heather": ("IR_hei_vis_g.bmp", "VIS_hei_vis_r.bmp"),
    "Athena_images/soldier_behind_smoke_1": ("IR_meting012-1200_g.bmp", "VIS_meting012-1200_r.bmp"),
    "DHV_images/wall": ("IR_163rad.bmp", "VIS_163dhvR.BMP", "NIR_163dhvG.BMP"),
    "Triclobs_images/barbed_wire_1": ("B_LWIR.tif", "R_Vis.tif", "G_NIR.tif"),
    "Triclobs_images/barbed_wire_2": (
        *("c_LWIR-MarnehNew_24RGB_1110.tif", "a_VIS-MarnehNew_24RGB_1110.tif", "b_NIR-MarnehNew_24RGB_1110.tif"),
    ),
    "Triclobs_images/Bosnia": ("LWIR_B.bmp", "VIS_R.bmp", "NIR_G.bmp"),
    "Triclobs_images/Kaptein_01": ("IR01.bmp", "Vis01.bmp", "NIR01.bmp"),
    "Triclobs_images/Kaptein_1123": ("Kaptein_1123_IR.bmp", "Kaptein_1123_Vis.bmp", "Kaptein_1123_II.bmp"),
    "Triclobs_images/soldiers_with_jeep": ("Jeep_IR.bmp", "Jeep_Vis.bmp", "Jeep_II.bmp"),
    "tank": ("LWIR.tif", "Vis.tif"),
}
TNO_OTHERS = ("FEL_images/Tree_sequence/thermal/4900i.bmp", "FEL_images/Tree_sequence/visual/4900v.bmp")


def test_the_scenes_of_tno(tmp_path):
    """Near infrared, scenes without any other, and the sequences are left out."""
    folder = touch(tmp_path / "TNO", *TNO_OTHERS, "Triclobs_images/Balls/NIR.bmp", "Triclobs_images/Balls/VIS.bmp")
    for scene, files in TNO_SCENES.items():
        touch(folder, *(f"{scene}/{file}" for file in files))
    selection = raw(folder)
    # APC_1 and APC_2 both have a view_1: names then say where the scene lies
    assert pairs_of(selection, folder) == {
        scene.replace("/", "_"): (f"{scene}/{files[0]}", f"{scene}/{files[1]}") for scene, files in TNO_SCENES.items()
    }
    assert (selection.task, selection.dataset) == ("IVF", "TNO")


def test_names_say_their_folder_only_where_they_must(tmp_path):
    """Harvard's three kinds of pair, whose slices have the same numbers."""
    folder = touch(
        tmp_path / "Harvard",
        *("x/CT-MRI/MRI/3.png", "x/CT-MRI/CT/3.png", "x/PET-MRI/MRI/3.png", "x/PET-MRI/PET/3.png"),
    )
    assert list(pairs_of(raw(folder), folder)) == ["CT-MRI_3", "PET-MRI_3"]
    assert list(pairs_of(raw(folder / "x" / "CT-MRI"), folder)) == ["3"]


def test_the_official_test_pairs_of_road_scene(tmp_path):
    listed = read_list(SPLITS / "RoadScene_test.txt")
    assert len(listed) == 50
    others = ["FLIR_00006.jpg", "FLIR_00018.jpg"]
    files = [f"{folder}/{name}" for folder in ("cropinfrared", "crop_LR_visible") for name in (*listed, *others)]
    folder = touch(tmp_path / "RoadScene", *files)
    assert [f"{pair.name}.jpg" for pair in raw(folder, "test").pairs] == sorted(listed)
    train = raw(folder, "train")
    assert [f"{pair.name}.jpg" for pair in train.pairs] == others
    assert "the 50 official test pairs left out" in train.found


def test_the_embedded_list_is_the_given_one(shared):
    assert read_list(SPLITS / "RoadScene_test.txt") == read_list(shared / "data" / "RoadScene" / "test.txt")


def test_lists_come_before_the_official_split_and_all_pairs_are_the_default(tmp_path):
    folder = touch(tmp_path / "M3FD", *(f"{side}/{i}.png" for side in ("Ir", "Vis") for i in range(4)))
    for mode in ("train", "test"):
        selection = raw(folder, mode)
        assert [pair.name for pair in selection.pairs] == ["0", "1", "2", "3"]
        assert "all pairs, in both modes" in selection.found
    (folder / "test.txt").write_text("2.png\n0.png\n")
    assert [pair.name for pair in raw(folder).pairs] == ["2", "0"]
    (tmp_path / "mine.txt").write_text("3\n")
    assert [pair.name for pair in raw(folder, list=tmp_path / "mine.txt").pairs] == ["3"]
    (tmp_path / "mine.txt").write_text("3\n9.png\n")
    with pytest.raises(UserError, match=r"mine.txt: 1 of 2 names have no pair in .*M3FD: 9"):
        raw(folder, list=tmp_path / "mine.txt")


def test_texts_and_features_beside_the_images_come_first(tmp_path):
    root = tmp_path / "VLF"
    folder = touch(tmp_path / "M3FD", "Ir/0.png", "Vis/0.png", "Ir/1.png", "Vis/1.png", "Text/0.txt")
    touch(root, "Text/IVF/M3FD/0.txt", "TextFeature/IVF/M3FD/0.npy")
    first, second = select(raw=folder, root=root).pairs
    assert first.text == folder / "Text" / "0.txt"
    assert first.feature == root / "TextFeature" / "IVF" / "M3FD" / "0.npy"
    # where a new one belongs
    assert second.text == root / "Text" / "IVF" / "M3FD" / "1.txt"
    assert "texts: 1 paragraphs, 1 ready features" in select(raw=folder, root=root).found


def test_two_folders(tmp_path):
    folder = touch(tmp_path / "Mine", "a/x.png", "a/y.v1.png", "b/y.v1.jpg", "b/x.png", "b/z.png", "Text/x.txt")
    selection = select("train", dir_a=folder / "a", dir_b=folder / "b", task="MEF")
    assert (selection.task, selection.dataset) == ("MEF", "Mine")
    assert pairs_of(selection, folder) == {"x": ("a/x.png", "b/x.png"), "y.v1": ("a/y.v1.png", "b/y.v1.jpg")}
    assert selection.pairs[0].text == folder / "Text" / "x.txt"
    assert "1 images without a partner left out" in selection.found
    with pytest.raises(UserError, match="no image has a partner of the same name"):
        select(dir_a=folder / "a", dir_b=touch(folder, "c/other.png") / "c")


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    store = touch(tmp_path / "store", "ir/1.png", "vi/1.png")
    folder = tmp_path / "MSRS" / "test"
    folder.mkdir(parents=True)
    for side in ("ir", "vi"):
        (folder / side).symlink_to(store / side)
    (tmp_path / "MSRS" / "again").symlink_to(tmp_path / "MSRS")
    assert list(pairs_of(raw(tmp_path / "MSRS"), tmp_path)) == ["1"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], {}, "no layout fits; name the folders of its images with --dir_a and --dir_b"),
        (["Ir/1.png", "Vis/2.png"], {}, "no layout fits"),
        (["train/ir/1.png", "train/vi/1.png"], {}, "MSRS has no folder test with pairs; it has train"),
        (
            ["Ir/1.png", "Ir/1.jpg", "Vis/1.png", "Ir/2.png", "Vis/2.png"],
            {},
            "two files for one image of pair '1'",
        ),
        (["Ir/1.png", "Vis/1.png", "MRI/1.png", "CT/1.png"], {}, r"holds several data sets \(M3FD, Harvard\)"),
        (["MRI/1.png", "CT/1.png"], {"task": "MFF"}, "is a data set of MIF, not MFF"),
        (["cropinfrared/1.png", "crop_LR_visible/1.png"], {}, "none of the official test pairs"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, files, options, message):
    with pytest.raises(UserError, match=message):
        raw(touch(tmp_path, *files), **options)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="gone: no such folder"):
        raw(tmp_path / "gone")


@pytest.mark.parametrize(
    ("folder", "mode", "task", "dataset", "count"),
    [
        ("RoadScene", "train", "IVF", "RoadScene", 171),
        ("RoadScene", "test", "IVF", "RoadScene", 50),
        ("MSRS", "test", "IVF", "MSRS", 361),
        ("MSRS", "train", "IVF", "MSRS", 4),
        ("M3FD", "test", "IVF", "M3FD", 24),
        ("TNO", "test", "IVF", "TNO", 6),
        ("Lytro", "test", "MFF", "Lytro", 20),
        ("MEF", "test", "MEF", "MEF", 6),
        ("Harvard", "test", "MIF", "Harvard", 21),
    ],
)
def test_real_downloads(shared, tmp_path, folder, mode, task, dataset, count):
    """The counts are those of ../shared/README.md; every pair has a paragraph.

    MSRS and M3FD are stored there as WebP. The public files are PNG under the same names, so names alone are copied.
    """
    source = shared / "data" / folder
    if stored := [path.relative_to(source) for path in source.rglob("*.webp")]:
        downloaded = touch(tmp_path / folder, *(path.with_suffix(".png") for path in stored))
        shutil.copytree(source / "Text", downloaded / "Text")
        source = downloaded
    selection = select(mode, raw=source)
    assert (selection.task, selection.dataset, len(selection.pairs)) == (task, dataset, count)
    assert all(pair.text.is_file() for pair in selection.pairs)


@pytest.mark.parametrize("link", ["vi/1.png", "Text/1.txt", "TextFeature/1.npy"])
def test_a_link_out_of_a_download_is_refused(tmp_path, link):
    folder = touch(tmp_path / "Mine", "ir/1.png", "vi/1.png")
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).unlink(missing_ok=True)
    touch(tmp_path, "secret.png")
    (folder / link).symlink_to(tmp_path / "secret.png")
    for find in (lambda: raw(folder), lambda: select(dir_a=folder / "ir", dir_b=folder / "vi")):
        with pytest.raises(UserError, match=f"{link}: is a link that leads out of its folder"):
            find()


def hub_cache(folder: Path, *files: str) -> Path:
    """A snapshot in the cache of the Hugging Face hub, whose files are links to blobs next to the snapshots."""
    snapshot = folder / "datasets--me--Mine" / "snapshots" / "e3b0c4"
    for number, file in enumerate(files):
        touch(folder / "datasets--me--Mine" / "blobs", str(number))
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        depth = "../" * (file.count("/") + 2)
        (snapshot / file).symlink_to(f"{depth}blobs/{number}")
        assert (snapshot / file).is_file()
    return snapshot


def test_links_are_followed_on_request(tmp_path):
    """Images, text and feature of a data set in the cache of the hub, by each way to name it."""
    files = ("ir/1.png", "vi/1.png", "Text/1.txt", "TextFeature/1.npy")
    folder = hub_cache(tmp_path, *files)
    sources = {"raw": folder}, {"dir_a": folder / "ir", "dir_b": folder / "vi"}
    for source in sources:
        with pytest.raises(
            UserError, match=r"ir/1.png: is a link that leads out .*, or use --follow_links if you trust"
        ):
            select(**source)
        (pair,) = select(**source, follow_links=True).pairs
        assert (pair.image_a, pair.image_b, pair.text, pair.feature) == tuple(folder / file for file in files)
    names = ("Image/IVF/MSRS/IR/1.png", "Image/IVF/MSRS/VI/1.png", "Text/IVF/MSRS/1.txt", "TextFeature/IVF/MSRS/1.npy")
    root = hub_cache(tmp_path / "root", *names, "Image/IVF/MSRS/test.txt")
    (root / "Image/IVF/MSRS/test.txt").write_text("1.png")
    with pytest.raises(UserError, match="is a link that leads out of its folder"):
        select(root=root)
    (pair,) = select(root=root, follow_links=True).pairs
    assert (pair.image_a, pair.image_b, pair.text, pair.feature) == tuple(root / name for name in names)


def test_what_macos_leaves_in_an_archive_is_no_data(tmp_path):
    files = ("ir/1.png", "vi/1.png", "ir/._1.png", "__MACOSX/ir/1.png", "__MACOSX/vi/1.png", ".trash/ir/2.png")
    selection = raw(touch(tmp_path / "Mine", *files), strict=True)
    assert pairs_of(selection, tmp_path / "Mine") == {"1": ("ir/1.png", "vi/1.png")}
    assert "without a partner" not in selection.found


@pytest.mark.parametrize("as_downloaded", [True, False])
def test_images_without_a_partner_are_named_and_refused_on_request(tmp_path, as_downloaded):
    folder = touch(tmp_path / "Mine", "ir/1.png", "vi/1.png", "ir/Two.png", "vi/cafe\u0301.png", "ir/caf\u00e9.png")
    options = {"raw": folder} if as_downloaded else {"dir_a": folder / "ir", "dir_b": folder / "vi"}
    selection = select(**options)
    assert len(selection.pairs) == 2
    assert f"; 1 images without a partner left out: {folder}/ir/Two.png" in selection.found
    with pytest.raises(UserError, match="--strict: 1 images without a partner left out: .*ir/Two.png"):
        select(**options, strict=True)


def test_listed_pairs_that_do_not_exist_are_skipped_on_request(tmp_path):
    folder = touch(tmp_path / "Mine", "ir/1.png", "vi/1.png")
    (tmp_path / "list.txt").write_text("1.png\n2.png\n")
    bad = BadPairs(skip=True)
    absent = dict.fromkeys(("raw", "task", "dataset", "strict", "follow_links"))
    options = {"root": tmp_path, "dir_a": folder / "ir", "dir_b": folder / "vi", "list": tmp_path / "list.txt"}
    assert [pair.name for pair in find_source(Namespace(**absent, **options), "test", bad).pairs] == ["1"]
    assert list(bad.reasons) == ["2"]


@pytest.mark.parametrize("entry", ["2", "./2.png", "ir/2.png", "IR/2.png", "vi/2.jpg", "Mine/vi/2", ".\\ir\\2.png"])
@pytest.mark.parametrize("as_downloaded", [True, False])
def test_a_list_may_name_a_pair_by_a_path(tmp_path, entry, as_downloaded):
    folder = touch(tmp_path / "Mine", *(f"{side}/{i}.png" for side in ("ir", "vi") for i in range(4)))
    (tmp_path / "list.txt").write_text(f"3.png\n{entry}\n")
    options = {"raw": folder} if as_downloaded else {"dir_a": folder / "ir", "dir_b": folder / "vi"}
    assert [pair.name for pair in select(**options, list=tmp_path / "list.txt").pairs] == ["3", "2"]


def test_a_list_may_name_the_files_of_a_data_set(tmp_path):
    """Also where the names of the pairs are other ones; each pair counts once."""
    tno = touch(tmp_path / "TNO", *(f"{side}{i}.png" for side in ("IR", "VIS") for i in range(3)))
    (tno / "test.txt").write_text("VIS2.png\n./IR0.png\nVIS0.png\n")
    assert [pair.name for pair in raw(tno).pairs] == ["2", "0"]
    sides = ("CT-MRI/MRI", "CT-MRI/CT", "PET-MRI/MRI", "PET-MRI/PET")
    harvard = touch(tmp_path / "Harvard", *(f"{side}/3.png" for side in sides))
    (tmp_path / "list.txt").write_text("PET/3.png\nCT-MRI/MRI/3.png\n")
    assert [pair.name for pair in raw(harvard, list=tmp_path / "list.txt").pairs] == ["PET-MRI_3", "CT-MRI_3"]
    (tmp_path / "list.txt").write_text("MRI/3.png\n")
    with pytest.raises(UserError, match=r"list.txt: 'MRI/3.png' is an image of several pairs: CT-MRI_3, PET-MRI_3"):
        raw(harvard, list=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("OTHER/3.png\n")
    with pytest.raises(UserError, match=r"list.txt: 1 of 1 names have no pair in .*Harvard: OTHER/3.png"):
        raw(harvard, list=tmp_path / "list.txt")
