"""Make the data set `Sample` that ships in VLFDataset/: small simulated pairs for the tasks IVF, MEF and MFF.

    python tools/make_sample.py                  images and lists
    python tools/make_sample.py --encoder DIR    the text features too

The photographs come from scikit-image's wheel, so nothing is downloaded. Infrared, exposure and focus are simulated
here. The paragraphs in ``Text/`` are written by hand and only read. A pretrained encoder of width 768 makes the text
features. A second run writes the same images, and the same features up to rounding.
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

# If this runs as a file, Python has tools/ on its path, not the project.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.data.stored import to_stored
from utils.data.tasks import TASKS
from utils.runtime.cli import not_empty, path_type, run_command
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_path, require_writable, write_text
from utils.text.encoder import TextEncoder
from utils.text.features import read_paragraph

DATASET = "Sample"
Image = NDArray[np.float64]  # (h, w) or (h, w, 3) RGB, 0..1

# Outlines of things in the photographs, traced by hand: polygons "x,y x,y ..." in pixels, as in SVG. They need not be
# exact: `matte` moves them to the nearest edges.
REGIONS = {
    "astronaut.png": {
        "hair": """155,70 172,40 210,20 245,16 280,34 298,62 301,95 290,122 270,137 258,155 235,178 205,176 186,152
            170,130 156,105""",
        "face": """184,85 200,76 240,82 262,90 272,115 275,130 262,138 256,165 250,186 225,190 188,180 184,150
            176,130 178,112""",
        "suit": """22,512 20,440 28,350 48,275 80,232 116,210 122,178 150,152 184,148 186,180 255,188 258,172
            290,205 305,235 340,265 353,310 366,350 330,370 290,420 280,512""",
        "collar": """116,200 124,172 150,152 184,150 188,184 250,190 258,174 290,205 304,240 296,280 250,294
            200,286 150,256""",
        "helmet": "282,512 280,450 296,400 325,368 365,348 400,343 445,358 480,400 494,450 508,470 508,505 490,512",
        "shuttle": """354,220 378,184 380,50 396,38 400,8 412,0 426,0 437,30 452,48 456,200 456,232 460,268 470,278
            372,290 368,270 372,230""",
    },
    "camera.png": {
        "man": """0,255 40,205 66,155 90,135 130,124 150,106 162,104 170,85 200,64 235,76 262,100 270,120 262,132
            250,134 252,168 240,178 240,195 244,225 248,245 272,210 290,204 310,186 316,170 328,170 332,190 320,212
            300,232 303,274 280,286 246,312 206,294 178,340 142,380 150,450 151,512 136,512 122,480 100,446 92,512
            0,512""",
        "face": "196,134 238,126 256,135 254,170 240,175 238,196 215,192 200,184 184,156 178,140 184,127",
        "camera": "254,140 325,139 325,152 320,176 306,186 275,190 262,176",
        "tripod": """276,188 306,188 297,214 297,312 312,318 335,300 338,306 312,324 408,512 400,512 305,330
            300,340 300,488 288,490 288,340 250,512 232,512 280,328 278,316 289,312 289,212""",
    },
    "chelsea.png": {
        "cat": "0,180 40,130 36,60 40,0 400,0 362,60 350,100 362,130 345,180 318,230 290,268 300,300 0,300",
        "ear": "326,0 400,0 362,62 344,48",
        "left eye": "136,110 140,92 160,86 190,94 206,118 200,142 180,148 152,138",
        "right eye": "296,152 302,122 322,110 342,112 342,136 326,158 306,164",
        "nose": "240,230 262,228 292,230 284,246 260,262 250,250",
    },
    "coffee.png": {
        "saucer": """76,210 84,160 110,115 180,70 420,106 460,150 480,210 470,270 430,340 350,382 280,389 200,374
            130,330 88,260""",
        "cup": """174,110 184,70 220,34 284,17 350,32 396,72 408,112 396,160 378,216 350,262 290,284 250,282
            222,306 197,296 200,260 222,238 196,200 178,150""",
        "opening": "192,115 198,78 230,44 286,29 345,46 380,82 388,114 370,160 330,188 284,196 240,184 206,150",
        "espresso": "202,144 218,112 250,98 290,95 336,106 364,132 370,158 335,184 290,194 240,182",
        "spoon": """398,68 420,68 424,80 412,115 384,224 406,264 402,300 376,324 346,322 328,296 330,264 346,244
            372,236""",
    },
    "rocket.jpg": {
        "ground": "0,424 262,424 268,407 372,407 380,422 640,422 640,427 0,427",
        "rocket": "311,180 311,146 322,127 334,146 334,180 335,250 333,408 311,408 309,250",
    },
}


def to_linear(image: Image) -> Image:
    """Convert sRGB values (0..1) to radiance (0..1), by IEC 61966-2-1."""
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def to_srgb(radiance: Image) -> Image:
    """Clip radiance to 0..1 and convert it to sRGB values (0..1): the inverse of `to_linear`."""
    radiance = np.clip(radiance, 0.0, 1.0)
    return np.where(radiance <= 0.0031308, radiance * 12.92, 1.055 * radiance ** (1 / 2.4) - 0.055)


def blur(image: Image, radius: float) -> Image:
    """Blur with a disc of `radius` pixels (0: not at all), as a defocused lens does; edges are replicated."""
    reach = int(np.ceil(radius))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(rows, columns), 0.0, 1.0)
    return cv2.filter2D(image, -1, disc / disc.sum(), borderType=cv2.BORDER_REPLICATE)


def blur_by_depth(image: Image, depth: Image, focus: float, radius: float) -> Image:
    """Blur each pixel of `image` (h, w, 3) by a disc of ``radius * |depth - focus|`` pixels.

    This interpolates between a few blurred copies. `depth` (h, w) and `focus` are in 0..1.
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
    """Replace `image` (h, w, 3) by its surroundings where `weight` (h, w) is 0: normalised convolution."""
    weight = np.maximum(weight, 1e-4)
    surroundings = soft(image * weight[..., None], sigma) / soft(weight, sigma)[..., None]
    return surroundings + weight[..., None] * (image - surroundings)


def matte(mask: Image, gray: Image, radius: int = 8, eps: float = 1e-3) -> Image:
    """Move a rough mask to the edges of a gray picture with the guided filter (He, Sun, Tang, ECCV 2010).

    The mask changes only within half of `radius` of its outline. Elsewhere the filter would mix the two sides where
    they look alike (a black helmet in front of a black table).

    Args:
        mask: (h, w), 0..1.
        gray: (h, w), 0..1, the guide.
        radius: half the width of the filter's square window, in pixels.
        eps: a variance of the guide below this counts as flat.

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
    """A way to make a pair from one photograph."""

    def shoot(self, image: Image, mattes: dict[str, Image], rng: np.random.Generator) -> tuple[Image, Image]:
        """Return images A and B, (h, w) or (h, w, 3), 0..1 plus noise from `rng`.

        `image` is (h, w, 3) RGB, 0..1. `mattes` holds a soft mask (h, w), 0..1, for each thing that the scene names.
        """


@dataclass(frozen=True)
class Infrared:
    """A: a simulated infrared picture (h, w); B: the photograph.

    It shows emission instead of reflection: even surroundings, bright warm things, little of the photograph's texture,
    the softness of a thermal lens, pixel noise, and the column stripes of an uncooled sensor. All levels are in 0..1.

    Attributes:
        ambient: level of the surroundings at the top and at the bottom row.
        warm: levels of things, painted in this order.
        texture: strength of the photograph's detail; negative if dark things are warm.
        lamps: level of what is nearly white in the photograph; 0 for none.
    """

    ambient: tuple[float, float]
    warm: dict[str, float]
    texture: float
    lamps: float = 0.0

    def shoot(self, image: Image, mattes: dict[str, Image], rng: np.random.Generator) -> tuple[Image, Image]:
        # Red is closest to infrared: skies are dark and skin is bright.
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

    An added light widens the range of the photograph's radiance. The result is scaled by the stops, gets shot and read
    noise, is clipped as by a sensor, and passes a camera's curve: sRGB followed by a mild S.

    Attributes:
        over, under: stops relative to the photograph's exposure.
        light: (x, y, spread, stops): centre and standard deviation of the added light, as fractions of the width, the
            height and the diagonal, and the stops that it adds at its centre.
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
    """A: near things in focus; B: far things in focus.

    Depth runs from 0 (far) to 1 (near). Foreground and background are two layers, blurred separately in linear light: a
    blurred foreground spreads over the sharp background, and a blurred background takes no colour from the foreground.

    Attributes:
        near: the things in the foreground, at depth 1.
        plane: the rows, as fractions of the height, between which the background comes nearer.
        plane_depth: its depth from the last of these rows on; it is 0 up to the first.
        radius: of the blur at depth difference 1, in pixels.
    """

    near: tuple[str, ...]
    plane: tuple[float, float]
    plane_depth: float
    radius: float

    def shoot(self, image: Image, mattes: dict[str, Image], rng: np.random.Generator) -> tuple[Image, Image]:
        radiance = to_linear(image)
        height, width = image.shape[:2]
        front = np.max([np.zeros((height, width)), *(mattes[name] for name in self.near)], axis=0)
        # An extra strip of background in the front layer is not visible; a missing strip of an object is.
        front = soft(cv2.dilate(front, np.ones((5, 5), np.uint8)), 0.7)
        foreground = fill(radiance, np.clip(4 * front, 0.0, 1.0), self.radius)
        # The background is taken only from well outside the outline: the border of an object in it would show as a rim.
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
class Pair:
    """One sample: task, list (train or test), name, and how it is made.

    The rectangle `crop` (left, top, right, bottom) of the photograph is resized to `size` (height, width).
    """

    task: str
    mode: str
    name: str
    photo: str
    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    scene: Scene


# fmt: off
SAMPLE = (
    Pair("IVF", "train", "astronaut", "astronaut.png", (60, 0, 512, 300), (256, 384),
         Infrared((0.2, 0.24), {"suit": 0.42, "collar": 0.3, "hair": 0.62, "face": 0.93, "shuttle": 0.14}, 0.15)),
    Pair("IVF", "train", "chelsea", "chelsea.png", (20, 0, 432, 300), (256, 352),
         Infrared((0.16, 0.2), {"cat": 0.6, "ear": 0.85, "left eye": 0.9, "right eye": 0.9, "nose": 0.3}, 0.2)),
    Pair("IVF", "train", "coffee", "coffee.png", (40, 0, 560, 400), (260, 338),
         Infrared((0.2, 0.2), {"saucer": 0.34, "spoon": 0.4, "cup": 0.66, "opening": 0.74, "espresso": 0.96}, 0.08)),
    Pair("IVF", "train", "rocket", "rocket.jpg", (280, 80, 540, 427), (352, 264),
         Infrared((0.08, 0.22), {"ground": 0.4, "rocket": 0.45}, 0.6, lamps=0.97)),
    Pair("IVF", "test", "cameraman", "camera.png", (0, 50, 338, 500), (368, 276),
         Infrared((0.08, 0.36), {"tripod": 0.2, "man": 0.52, "face": 0.94, "camera": 0.66}, -0.2)),
    Pair("IVF", "test", "spacesuit", "astronaut.png", (92, 232, 512, 512), (256, 384),
         Infrared((0.18, 0.2), {"suit": 0.5, "helmet": 0.28}, 0.2)),
    Pair("MEF", "train", "coffee", "coffee.png", (40, 0, 540, 400), (256, 320),
         Exposure(2.0, -2.4, (0.9, 0.1, 0.35, 1.5))),
    Pair("MEF", "train", "launchpad", "rocket.jpg", (0, 0, 640, 427), (256, 384),
         Exposure(3.0, -1.0, (0.5, 1.0, 0.2, 1.0))),
    Pair("MEF", "test", "chelsea", "chelsea.png", (30, 0, 405, 300), (256, 320),
         Exposure(1.5, -2.6, (0.0, 0.2, 0.35, 1.5))),
    Pair("MFF", "train", "astronaut", "astronaut.png", (0, 0, 512, 400), (272, 348),
         Focus(("hair", "face", "suit", "collar", "helmet"), (0.0, 1.0), 0.0, 4.0)),
    Pair("MFF", "train", "coffee", "coffee.png", (50, 0, 530, 400), (270, 324),
         Focus((), (0.25, 0.75), 1.0, 4.0)),
    Pair("MFF", "test", "cameraman", "camera.png", (0, 18, 512, 446), (288, 344),
         Focus(("man", "camera", "tripod"), (0.5, 1.0), 0.8, 4.0)),
)
# fmt: on


def load_photo(name: str) -> Image:
    """A photograph of scikit-image's wheel, (h, w, 3) RGB, 0..1; a gray one has three equal channels.

    It is read by path: the functions of skimage.data may download.

    Raises:
        UserError: scikit-image was installed without it.
    """
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise UserError(f"{path}: expected this photograph in the installed scikit-image; install it from its wheel")
    photo = imread(path) / 255.0
    return photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, axis=2)


def simulate(pair: Pair, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images A and B of a pair as they are stored: (h, w) or (h, w, 3) RGB, rounded to 0..255."""
    left, top, right, bottom = pair.crop

    def crop(photo: Image) -> Image:
        cut = np.ascontiguousarray(photo[top:bottom, left:right])
        return cv2.resize(cut, pair.size[::-1], interpolation=cv2.INTER_AREA)

    photo = load_photo(pair.photo)
    gray = photo @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
    mattes = {}
    for name, outline in REGIONS[pair.photo].items():
        mask = np.zeros(gray.shape)
        cv2.fillPoly(mask, [np.array([point.split(",") for point in outline.split()], np.int32)], 1.0)
        mattes[name] = crop(matte(mask, gray))
    images = pair.scene.shoot(crop(photo), mattes, np.random.default_rng(seed))
    first, second = (np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8) for image in images)
    return first, second


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image (h, w) or (h, w, 3) RGB, in the smallest form that OpenCV can make."""
    stored = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    smallest = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_FILTERED]
    with atomic_path(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", stored, smallest)[1].tobytes())


def write_images(root: Path) -> None:
    """Write the images and lists of all tasks under `root`/Image."""
    for pair in tqdm(SAMPLE, desc="images", unit="pair"):
        images = simulate(pair, seed=zlib.crc32(f"{pair.task}/{pair.name}".encode()))
        for side, image in zip(TASKS[pair.task].folders, images, strict=True):
            write_png(root / f"Image/{pair.task}/{DATASET}/{side}/{pair.name}.png", image)
    for task, mode in {(pair.task, pair.mode) for pair in SAMPLE}:
        names = [pair.name for pair in SAMPLE if (pair.task, pair.mode) == (task, mode)]
        write_text(root / f"Image/{task}/{DATASET}/{mode}.txt", "".join(f"{name}.png\n" for name in names))


def read_paragraphs(root: Path) -> list[str]:
    """The paragraphs of all pairs, from `root`/Text.

    Raises:
        UserError: one is missing, empty or not UTF-8.
    """
    return [read_paragraph(root / f"Text/{pair.task}/{DATASET}/{pair.name}.txt") for pair in SAMPLE]


def write_features(
    root: Path, paragraphs: list[str], encode: Callable[[list[str]], Iterable[NDArray[np.float32]]]
) -> None:
    """Write the text features of all pairs' paragraphs under `root`/TextFeature."""
    for pair, feature in zip(tqdm(SAMPLE, desc="text features", unit="pair"), encode(paragraphs), strict=True):
        with atomic_path(root / f"TextFeature/{pair.task}/{DATASET}/{pair.name}.npy") as temporary:
            np.save(temporary, to_stored(feature))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the simulated data set Sample for the tasks IVF, MEF and MFF.")
    root = Path(__file__).resolve().parents[1] / "VLFDataset"
    parser.add_argument("--root", type=path_type, default=root, help="the data set's folder (default: %(default)s)")
    parser.add_argument(
        "--encoder",
        type=not_empty,
        metavar="ENCODER",
        help="a pretrained text encoder of width 768, as for data_process.py --text_encoder; with it the text features "
        "are made again from the paragraphs in ROOT/Text, without it they stay unchanged",
    )
    args = parser.parse_args(argv)
    require_writable(args.root / f"Image/IVF/{DATASET}/train.txt")
    if args.encoder is None:
        write_images(args.root)
        return
    # Errors in the texts or the encoder are raised before the first file is written.
    paragraphs = read_paragraphs(args.root)
    encoder = TextEncoder(args.encoder)
    write_images(args.root)
    write_features(args.root, paragraphs, lambda texts: encoder.encode(encoder.tokenize(texts)))


if __name__ == "__main__":
    sys.exit(run_command(main))
