"""Make the data set `Sample` that ships in VLFDataset/: small simulated pairs for the tasks IVF, MEF and MFF.

The photographs are those that scikit-image carries inside its wheel, so nothing is downloaded. Focus, exposure and
infrared are simulated here; the paragraphs in ``Text/`` are written by hand and only read; the text features come from
a pretrained encoder of width 768. A second run writes the same images and, but for rounding, the same features.

    python tools/make_sample.py                  images and lists
    python tools/make_sample.py --encoder DIR    the text features too
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import skimage
from numpy.typing import NDArray
from skimage.io import imread
from tqdm import tqdm

# Run as a file, Python puts tools/ on its path, not the project.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.data.stored import to_stored
from utils.data.tasks import TASKS
from utils.runtime.cli import run_command
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path
from utils.text.encoder import TextEncoder
from utils.text.features import read_paragraph

DATASET = "Sample"
Image = NDArray[np.float64]  # (h, w) or (h, w, 3) RGB, 0..1

# Outlines of things in the photographs, traced by hand: "x,y x,y ..." in pixels of the photograph, as SVG writes a
# polygon. They need not be exact: `matte` moves them to the nearest edges.
REGIONS = {
    "astronaut.png": {
        "hair": (
            "155,70 172,40 210,20 245,16 280,34 298,62 301,95 290,122 270,137 258,155 235,178 205,176 186,152 "
            "170,130 156,105"
        ),
        "face": (
            "184,85 200,76 240,82 262,90 272,115 275,130 262,138 256,165 250,186 225,190 188,180 184,150 176,130 "
            "178,112"
        ),
        "suit": (
            "22,512 20,440 28,350 48,275 80,232 116,210 122,178 150,152 184,148 186,180 255,188 258,172 290,205 "
            "305,235 340,265 353,310 366,350 330,370 290,420 280,512"
        ),
        "collar": (
            "116,200 124,172 150,152 184,150 188,184 250,190 258,174 290,205 304,240 296,280 250,294 200,286 150,256"
        ),
        "helmet": "282,512 280,450 296,400 325,368 365,348 400,343 445,358 480,400 494,450 508,470 508,505 490,512",
        "shuttle": (
            "354,220 378,184 380,50 396,38 400,8 412,0 426,0 437,30 452,48 456,200 456,232 460,268 470,278 "
            "372,290 368,270 372,230"
        ),
    },
    "camera.png": {
        "man": (
            "0,255 40,205 66,155 90,135 130,124 150,106 162,104 170,85 200,64 235,76 262,100 270,120 262,132 "
            "250,134 252,168 240,178 240,195 244,225 248,245 272,210 290,204 310,186 316,170 328,170 332,190 "
            "320,212 300,232 303,274 280,286 246,312 206,294 178,340 142,380 150,450 151,512 136,512 122,480 "
            "100,446 92,512 0,512"
        ),
        "face": "196,134 238,126 256,135 254,170 240,175 238,196 215,192 200,184 184,156 178,140 184,127",
        "camera": "254,140 325,139 325,152 320,176 306,186 275,190 262,176",
        "tripod": (
            "276,188 306,188 297,214 297,312 312,318 335,300 338,306 312,324 408,512 400,512 305,330 300,340 "
            "300,488 288,490 288,340 250,512 232,512 280,328 278,316 289,312 289,212"
        ),
    },
    "chelsea.png": {
        "cat": "0,180 40,130 36,60 40,0 400,0 362,60 350,100 362,130 345,180 318,230 290,268 300,300 0,300",
        "ear": "326,0 400,0 362,62 344,48",
        "left eye": "136,110 140,92 160,86 190,94 206,118 200,142 180,148 152,138",
        "right eye": "296,152 302,122 322,110 342,112 342,136 326,158 306,164",
        "nose": "240,230 262,228 292,230 284,246 260,262 250,250",
    },
    "coffee.png": {
        "saucer": (
            "76,210 84,160 110,115 180,70 420,106 460,150 480,210 470,270 430,340 350,382 280,389 200,374 130,330 "
            "88,260"
        ),
        "cup": (
            "174,110 184,70 220,34 284,17 350,32 396,72 408,112 396,160 378,216 350,262 290,284 250,282 222,306 "
            "197,296 200,260 222,238 196,200 178,150"
        ),
        "opening": "192,115 198,78 230,44 286,29 345,46 380,82 388,114 370,160 330,188 284,196 240,184 206,150",
        "espresso": "202,144 218,112 250,98 290,95 336,106 364,132 370,158 335,184 290,194 240,182",
        "spoon": (
            "398,68 420,68 424,80 412,115 384,224 406,264 402,300 376,324 346,322 328,296 330,264 346,244 372,236"
        ),
    },
    "rocket.jpg": {
        "ground": "0,424 262,424 268,407 372,407 380,422 640,422 640,427 0,427",
        "rocket": "311,180 311,146 322,127 334,146 334,180 335,250 333,408 311,408 309,250",
    },
}


def to_linear(image: Image) -> Image:
    """Radiance (0..1) of sRGB values (0..1), IEC 61966-2-1."""
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def to_srgb(radiance: Image) -> Image:
    """sRGB values (0..1) of radiance, which is clipped to 0..1 first; the inverse of `to_linear`."""
    radiance = np.clip(radiance, 0.0, 1.0)
    return np.where(radiance <= 0.0031308, radiance * 12.92, 1.055 * radiance ** (1 / 2.4) - 0.055)


def blur(image: Image, radius: float) -> Image:
    """Blur with a disc of `radius` pixels, as a defocused lens does; edges are replicated, radius 0 changes nothing."""
    reach = int(np.ceil(radius))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(rows, columns), 0.0, 1.0)
    return cv2.filter2D(image, -1, disc / disc.sum(), borderType=cv2.BORDER_REPLICATE)


def blur_by_depth(image: Image, depth: Image, focus: float, radius: float) -> Image:
    """Blur each pixel of `image` (h, w, 3) by a disc of ``radius * |depth - focus|`` pixels.

    Between a few blurred copies is interpolated; `depth` (h, w) and `focus` lie in 0..1.
    """
    steps = 6
    amount = np.abs(depth - focus) * steps
    result = np.zeros_like(image)
    for step in range(steps + 1):
        share = np.clip(1.0 - np.abs(amount - step), 0.0, 1.0)
        result += share[..., None] * blur(image, radius * step / steps)
    return result


def soft(image: Image, sigma: float) -> Image:
    """Gaussian blur, edges replicated."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def fill(image: Image, weight: Image, sigma: float) -> Image:
    """`image` (h, w, 3), replaced where `weight` (h, w) is 0 by its surroundings: normalised convolution."""
    weight = np.maximum(weight, 1e-4)
    surroundings = soft(image * weight[..., None], sigma) / soft(weight, sigma)[..., None]
    return surroundings + weight[..., None] * (image - surroundings)


def matte(mask: Image, gray: Image, radius: int = 8, eps: float = 1e-3) -> Image:
    """Move a rough mask to the edges of a picture: the guided filter (He, Sun, Tang, ECCV 2010), gray guide.

    More than half of `radius` away from its outline the mask stays as it is: where the two sides look alike (a black
    helmet before a black table) the guide alone would mix them.

    Args:
        mask: (h, w), 0..1.
        gray: (h, w), 0..1, the guide.
        radius: of the filter's square window, in pixels.
        eps: variance of the guide below which it counts as flat.

    Returns:
        (h, w), 0..1.
    """

    def mean(x: Image) -> Image:
        return cv2.blur(x, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)

    mean_gray, mean_mask = mean(gray), mean(mask)
    slope = (mean(gray * mask) - mean_gray * mean_mask) / (mean(gray * gray) - mean_gray**2 + eps)
    offset = mean_mask - slope * mean_gray
    guided = np.clip(mean(slope) * gray + mean(offset), 0.0, 1.0)
    band = np.ones((radius + 1, radius + 1), np.uint8)
    return np.clip(guided, cv2.erode(mask, band), cv2.dilate(mask, band))


class Scene(Protocol):
    """A way to make a pair out of one photograph."""

    def shoot(self, image: Image, mattes: dict[str, Image], rng: np.random.Generator) -> tuple[Image, Image]:
        """The images A and B, (h, w) or (h, w, 3), 0..1 but for noise.

        Args:
            image: (h, w, 3) RGB, 0..1.
            mattes: a soft mask (h, w), 0..1, for each thing that the scene names.
            rng: for the noise.
        """


@dataclass(frozen=True)
class Infrared:
    """A: a simulated infrared picture (h, w); B: the photograph.

    Emission instead of reflection: level surroundings, warm things bright, little of the photograph's own texture, the
    softness of a thermal lens, pixel noise and the column stripes of an uncooled sensor. All levels are 0..1.

    Attributes:
        ambient: level of the surroundings at the top and at the bottom row.
        warm: levels of things, painted in this order.
        texture: how much of the photograph's detail is seen; negative where dark things are warm.
        lamps: level of what is close to white in the photograph; 0 for none.
    """

    ambient: tuple[float, float]
    warm: dict[str, float]
    texture: float
    lamps: float = 0.0

    def shoot(self, image: Image, mattes: dict[str, Image], rng: np.random.Generator) -> tuple[Image, Image]:
        # Of the three channels red is the nearest to infrared: skies are dark in it and skin is bright.
        red = np.ascontiguousarray(image[..., 0])
        height, width = red.shape
        thermal = np.repeat(np.linspace(*self.ambient, height)[:, None], width, axis=1)
        for name, level in self.warm.items():
            thermal += mattes[name] * (level - thermal)
        detail = self.texture * (soft(red, 1.0) - soft(red, height / 8))
        glow = self.lamps * soft(np.clip((red - 0.85) / 0.15, 0.0, 1.0), 1.5)
        thermal = np.maximum(soft(thermal, 1.2) + detail, glow)
        noise = rng.normal(0.0, 0.01, thermal.shape) + rng.normal(0.0, 0.005, (1, width))
        return thermal + noise, image


@dataclass(frozen=True)
class Exposure:
    """A: over-exposed; B: under-exposed.

    The photograph's radiance, under an added light that widens its range, is scaled by the stops, gets shot and read
    noise, is clipped as a sensor clips, and goes through a camera's curve: sRGB with a mild S on top.

    Attributes:
        over, under: stops from the photograph's own exposure.
        light: (x, y, spread, stops): centre and standard deviation of the added light as fractions of the width, the
            height and the diagonal, and what it adds at its centre.
    """

    over: float
    under: float
    light: tuple[float, float, float, float]

    def shoot(self, image: Image, mattes: dict[str, Image], rng: np.random.Generator) -> tuple[Image, Image]:
        height, width = image.shape[:2]
        x, y, spread, stops = self.light
        rows, columns = np.mgrid[:height, :width]
        distance = np.hypot(rows - y * height, columns - x * width) / (spread * np.hypot(height, width))
        radiance = to_linear(image) * 2.0 ** (stops * np.exp(-0.5 * distance**2))[..., None]

        def expose(stops: float) -> Image:
            light = radiance * 2.0**stops
            value = to_srgb(light + rng.normal(0.0, 1.0, light.shape) * np.sqrt(2e-5 * light + 1e-7))
            return 0.6 * value + 0.4 * value**2 * (3 - 2 * value)

        return expose(self.over), expose(self.under)


@dataclass(frozen=True)
class Focus:
    """A: focused on what is near; B: focused on what is far.

    Depth runs from 0 (far) to 1 (near). There are two layers, each blurred on its own in linear light, so that a
    blurred foreground spills over the sharp background and a blurred background takes no colour from the foreground.

    Attributes:
        near: the things that stand in front, at depth 1.
        plane: the rows, as fractions of the height, where the background begins and ends to come nearer.
        plane_depth: its depth at the last of these rows; 0 at the first.
        radius: of the blur at depth difference 1, in pixels.
    """

    near: tuple[str, ...]
    plane: tuple[float, float]
    plane_depth: float
    radius: float

    def shoot(self, image: Image, mattes: dict[str, Image], rng: np.random.Generator) -> tuple[Image, Image]:
        radiance = to_linear(image)
        height, width = image.shape[:2]
        front = np.zeros((height, width))
        for name in self.near:
            front = np.maximum(front, mattes[name])
        # A strip of background too many in the front layer goes unseen; a lost strip of an object does not.
        front = soft(cv2.dilate(front, np.ones((5, 5), np.uint8)), 0.7)
        foreground = fill(radiance, np.clip(4 * front, 0.0, 1.0), self.radius)
        # The background is known only well clear of the outline: an object's border left in it would show as a rim.
        background = fill(radiance, np.clip(1 - 4 * soft(front, 1.5), 0.0, 1.0), self.radius)
        begin, end = self.plane
        plane = np.clip((np.arange(height) / height - begin) / (end - begin), 0.0, 1.0) * self.plane_depth
        depth = np.repeat(plane[:, None], width, axis=1)

        def focus_at(focus: float) -> Image:
            radius = self.radius * (1 - focus)
            cover = blur(front, radius)[..., None]
            behind = blur_by_depth(background, depth, focus, self.radius)
            return to_srgb(cover * blur(foreground, radius) + (1 - cover) * behind)

        return focus_at(1.0), focus_at(0.0)


@dataclass(frozen=True)
class Crop:
    """A rectangle of a photograph (pixels of the photograph) and the size it is brought to, (height, width)."""

    photo: str
    left: int
    top: int
    right: int
    bottom: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Pair:
    """One sample: its name, the list that names it (train or test), and how it is made."""

    name: str
    mode: str
    crop: Crop
    scene: Scene


# The pairs of each task.
SAMPLE: dict[str, tuple[Pair, ...]] = {
    "IVF": (
        Pair(
            "astronaut",
            "train",
            Crop("astronaut.png", 60, 0, 512, 300, (256, 384)),
            Infrared((0.2, 0.24), {"suit": 0.42, "collar": 0.3, "hair": 0.62, "face": 0.93, "shuttle": 0.14}, 0.15),
        ),
        Pair(
            "chelsea",
            "train",
            Crop("chelsea.png", 20, 0, 432, 300, (256, 352)),
            Infrared((0.16, 0.2), {"cat": 0.6, "ear": 0.85, "left eye": 0.9, "right eye": 0.9, "nose": 0.3}, 0.2),
        ),
        Pair(
            "coffee",
            "train",
            Crop("coffee.png", 40, 0, 560, 400, (260, 338)),
            Infrared((0.2, 0.2), {"saucer": 0.34, "spoon": 0.4, "cup": 0.66, "opening": 0.74, "espresso": 0.96}, 0.08),
        ),
        Pair(
            "rocket",
            "train",
            Crop("rocket.jpg", 280, 80, 540, 427, (352, 264)),
            Infrared((0.08, 0.22), {"ground": 0.4, "rocket": 0.45}, 0.6, lamps=0.97),
        ),
        Pair(
            "cameraman",
            "test",
            Crop("camera.png", 0, 50, 338, 500, (368, 276)),
            Infrared((0.08, 0.36), {"tripod": 0.2, "man": 0.52, "face": 0.94, "camera": 0.66}, -0.2),
        ),
        Pair(
            "spacesuit",
            "test",
            Crop("astronaut.png", 92, 232, 512, 512, (256, 384)),
            Infrared((0.18, 0.2), {"suit": 0.5, "helmet": 0.28}, 0.2),
        ),
    ),
    "MEF": (
        Pair(
            "coffee",
            "train",
            Crop("coffee.png", 40, 0, 540, 400, (256, 320)),
            Exposure(2.0, -2.4, (0.9, 0.1, 0.35, 1.5)),
        ),
        Pair(
            "launchpad",
            "train",
            Crop("rocket.jpg", 0, 0, 640, 427, (256, 384)),
            Exposure(3.0, -1.0, (0.5, 1.0, 0.2, 1.0)),
        ),
        Pair(
            "chelsea",
            "test",
            Crop("chelsea.png", 30, 0, 405, 300, (256, 320)),
            Exposure(1.5, -2.6, (0.0, 0.2, 0.35, 1.5)),
        ),
    ),
    "MFF": (
        Pair(
            "astronaut",
            "train",
            Crop("astronaut.png", 0, 0, 512, 400, (272, 348)),
            Focus(("hair", "face", "suit", "collar", "helmet"), (0.0, 1.0), 0.0, 4.0),
        ),
        Pair("coffee", "train", Crop("coffee.png", 50, 0, 530, 400, (270, 324)), Focus((), (0.25, 0.75), 1.0, 4.0)),
        Pair(
            "cameraman",
            "test",
            Crop("camera.png", 0, 18, 512, 446, (288, 344)),
            Focus(("man", "camera", "tripod"), (0.5, 1.0), 0.8, 4.0),
        ),
    ),
}


def load_photo(name: str) -> Image:
    """A photograph of scikit-image's wheel, (h, w, 3) RGB, 0..1; a gray one in three equal channels.

    Read by path: the functions of skimage.data may go to the network.

    Raises:
        UserError: scikit-image was installed without it.
    """
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise UserError(f"{path}: expected this photograph in the installed scikit-image; install it from its wheel")
    photo = imread(path) / 255.0
    return photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, axis=2)


def take_crop(photo: Image, crop: Crop) -> Image:
    """The crop of a photograph (or of a mask of its size), brought to its size by area averaging."""
    height, width = crop.size
    cut = np.ascontiguousarray(photo[crop.top : crop.bottom, crop.left : crop.right])
    return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)


def simulate(pair: Pair, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images A and B of a pair as they are stored: (h, w) or (h, w, 3) RGB, rounded to 0..255."""
    photo = load_photo(pair.crop.photo)
    gray = photo @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
    mattes = {}
    for name, outline in REGIONS[pair.crop.photo].items():
        mask = np.zeros(gray.shape)
        cv2.fillPoly(mask, [np.array([point.split(",") for point in outline.split()], np.int32)], 1.0)
        mattes[name] = take_crop(matte(mask, gray), pair.crop)
    images = pair.scene.shoot(take_crop(photo, pair.crop), mattes, np.random.default_rng(seed))
    first, second = (np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8) for image in images)
    return first, second


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image (h, w) or (h, w, 3) RGB, as small as OpenCV can."""
    stored = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    smallest = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_FILTERED]
    with atomic_path(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", stored, smallest)[1].tobytes())


def write_images(root: Path) -> None:
    """Write the images and lists of all tasks under `root`/Image."""
    for name, pairs in SAMPLE.items():
        folder = root / "Image" / name / DATASET
        for pair in tqdm(pairs, desc=f"{name} images", unit="pair"):
            images = simulate(pair, seed=zlib.crc32(f"{name}/{pair.name}".encode()))
            for side, image in zip(TASKS[name].folders, images, strict=True):
                write_png(folder / side / f"{pair.name}.png", image)
        for mode in ("train", "test"):
            with atomic_path(folder / f"{mode}.txt") as temporary:
                temporary.write_text("".join(f"{pair.name}.png\n" for pair in pairs if pair.mode == mode))


def read_paragraphs(root: Path) -> dict[tuple[str, str], str]:
    """The paragraph of each (task, pair name), from `root`/Text.

    Raises:
        UserError: one is missing, empty or not UTF-8.
    """
    paragraphs = {}
    for name, pairs in SAMPLE.items():
        for pair in pairs:
            paragraphs[name, pair.name] = read_paragraph(root / "Text" / name / DATASET / f"{pair.name}.txt")
    return paragraphs


def write_features(
    root: Path, paragraphs: dict[tuple[str, str], str], encode: Callable[[list[str]], Iterable[NDArray[np.float32]]]
) -> None:
    """Write the feature of the paragraph of each (task, pair name) under `root`/TextFeature."""
    features = tqdm(encode(list(paragraphs.values())), total=len(paragraphs), desc="text features", unit="pair")
    for (task, name), feature in zip(paragraphs, features, strict=True):
        with atomic_path(root / "TextFeature" / task / DATASET / f"{name}.npy") as temporary:
            np.save(temporary, to_stored(feature))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the simulated data set Sample for the tasks IVF, MEF and MFF.")
    project = Path(__file__).resolve().parents[1]
    parser.add_argument(
        "--root", type=Path, default=project / "VLFDataset", help="the data set's folder (default: %(default)s)"
    )
    parser.add_argument(
        "--encoder",
        metavar="ENCODER",
        help="a pretrained text encoder of width 768, as data_process.py --text_encoder takes one; with it the text "
        "features are made anew from the paragraphs in ROOT/Text, without it they stay as they are",
    )
    args = parser.parse_args(argv)
    if args.encoder is None:
        write_images(args.root)
        return
    # Errors in the texts or the encoder show before the first file is written.
    paragraphs = read_paragraphs(args.root)
    encoder = TextEncoder(args.encoder)
    write_images(args.root)
    write_features(args.root, paragraphs, lambda texts: encoder.encode(encoder.tokenize(texts)))


if __name__ == "__main__":
    sys.exit(run_command(main))
