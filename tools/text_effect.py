"""Measure how much the text changes the fused images.

    python -m tools.text_effect --h5 VLFDataset_h5/RoadScene_test.h5 --ckpt_path models/IVF.pkl --out images/text_effect

Each pair is fused with its own text and with others: the text of the next pair, the neutral sentence (--neutral, a
ready feature) and zeros. The command prints the metrics for each text, the differences from the fused image with the
pair's own text, and how the guidance inside the network changes. It writes <out>.json, and <out>.png: the pairs that
change most.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from utils.data.h5 import H5Dataset, Sample
from utils.data.stored import from_stored
from utils.data.tasks import TASKS
from utils.evaluation.contact_sheet import PageRow, difference_panel, draw_contact_sheet
from utils.evaluation.evaluate import measure
from utils.evaluation.inference import checkpoint_path, fuse, load_net
from utils.evaluation.metrics import TABLE_METRICS, format_table
from utils.evaluation.stream import gray_values
from utils.runtime.cli import RawHelpFormatter, add_device_options, path_type, run_command
from utils.runtime.errors import UserError
from utils.runtime.files import require_separate, write_text
from utils.runtime.processes import use_threads
from utils.text.features import load_array
from utils.training.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from net.Film import GuidedBranch, Net

OWN = "own"
PAIRS_DRAWN = 4


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.text_effect", description=__doc__, formatter_class=RawHelpFormatter
    )
    add = parser.add_argument
    add("--h5", type=path_type, required=True, metavar="FILE", help="test pairs, from data_process.py")
    add("--ckpt_path", type=path_type, help="weights (default: those that ship)")
    add("--task", choices=tuple(TASKS), default="IVF", help="selects the default weights")
    add(
        "--neutral",
        type=path_type,
        metavar="FILE.npy",
        help="feature of the neutral sentence (default: this text is left out)",
    )
    add(
        "--out", type=path_type, default=Path("text_effect"), metavar="PREFIX", help="start of the names of the outputs"
    )
    add_device_options(parser)
    return parser


@dataclass
class Probe:
    """What a guidance branch computed for the last image: its guidance (256,), and the root mean squares of f and g.

    The branch adds a layer of g to f, so rms(g) / rms(f) is the share of the text in its features.
    """

    branch: GuidedBranch
    guidance: np.ndarray = field(default_factory=lambda: np.zeros(0))
    features: float = 0.0
    guided: float = 0.0

    def __post_init__(self) -> None:
        self.branch.restormer.register_forward_hook(self._on_features)
        self.branch.image_to_text.register_forward_hook(self._on_tokens)
        self.branch.cross_attention.register_forward_hook(self._on_attention)

    def _on_features(self, _module: object, _inputs: object, output: object) -> None:
        self.features = rms(output.numpy())

    def _on_tokens(self, _module: object, _inputs: object, output: object) -> None:
        self._tokens = output.numpy()[0]

    def _on_attention(self, _module: object, _inputs: object, output: object) -> None:
        pooled = output.numpy().reshape(-1).astype(np.float64)
        self.guidance = pooled / np.abs(pooled).sum()
        self.guided = rms(self._tokens * self.guidance)


def rms(values: np.ndarray) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def probes(net: Net) -> dict[str, Probe]:
    """A probe in each branch of each guidance stage, by a name such as 'stage 1 A'."""
    from net.Film import GuidanceStage

    stages = [part for part in net.modules() if isinstance(part, GuidanceStage)]
    return {
        f"stage {number} {side}": Probe(branch)
        for number, stage in enumerate(stages, 1)
        for side, branch in zip("AB", stage._branches, strict=True)
    }


def texts_of(dataset: H5Dataset, neutral: Path | None) -> dict[str, Callable[[int], np.ndarray]]:
    """The texts to compare: a name, and a function from the index of a pair to a feature (149, 768).

    Raises:
        UserError: `neutral` is not a text feature.
    """
    texts: dict[str, Callable[[int], np.ndarray]] = {
        OWN: lambda index: dataset[index].text,
        "another pair's": lambda index: dataset[(index + 1) % len(dataset)].text,
        "zeros": lambda index: np.zeros_like(dataset[index].text),
    }
    if neutral:
        feature = load_array(neutral)
        feature = from_stored(feature.astype(np.float32)) if feature.ndim == 3 else feature
        if feature.shape != dataset[0].text.shape:
            raise UserError(f"{neutral}: has shape {feature.shape}; expected {dataset[0].text.shape}")
        texts["neutral sentence"] = lambda index: feature
    return texts


class Comparison:
    """What the texts change, over the pairs that were added.

    Attributes:
        rows: the pairs that change most, as (largest mean difference, row of the page).
    """

    def __init__(self, net: Net) -> None:
        self._net, self._probes = net, probes(net)
        self._metrics: dict[str, list[list[float]]] = defaultdict(list)  # by text
        self._differences: dict[str, list[tuple[float, int]]] = defaultdict(list)  # by text: mean and largest
        self._shares: dict[str, list[float]] = defaultdict(list)  # by branch
        self._distances: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))  # by branch, text
        self.rows: list[tuple[float, PageRow]] = []

    def add(self, sample: Sample, features: Mapping[str, np.ndarray]) -> None:
        """Fuse a pair with each of `features`, (149, 768) by the name of the text; `OWN` is the first."""
        sources = [gray_values(image) for image in (sample.image_a, sample.image_b)]
        pictures = {"A": sources[0], "B": sources[1]}
        own_guidance = {}
        for text, feature in features.items():
            fused = fuse(self._net, sample.image_a[None], sample.image_b[None], feature[None])
            values = measure(sample.name, fused, *sources)
            self._metrics[text].append([values[metric] for metric in TABLE_METRICS])
            if text == OWN:
                own_guidance = {name: probe.guidance for name, probe in self._probes.items()}
                for name, probe in self._probes.items():
                    self._shares[name].append(probe.guided / probe.features)
                pictures["fused"] = fused
                continue
            change = np.abs(fused.astype(int) - pictures["fused"])
            self._differences[text].append((float(change.mean()), int(change.max())))
            for name, probe in self._probes.items():
                self._distances[name][text].append(float(np.abs(probe.guidance - own_guidance[name]).sum()))
            title, panel = difference_panel(change, text)
            pictures[title] = panel
        largest = max(pairs[-1][0] for pairs in self._differences.values())
        self.rows.append((largest, PageRow(sample.name, pictures, {"largest mean difference": largest})))
        self.rows = sorted(self.rows, key=lambda row: -row[0])[:PAIRS_DRAWN]

    def summary(self) -> dict:
        """The means over the pairs, and the largest difference: what <out>.json holds."""
        return {
            "metrics": {
                text: dict(zip(TABLE_METRICS, np.mean(values, 0), strict=True))
                for text, values in self._metrics.items()
            },
            "difference in gray levels": {
                text: {"mean": float(np.mean([mean for mean, _ in pairs])), "largest": max(peak for _, peak in pairs)}
                for text, pairs in self._differences.items()
            },
            "rms(g) / rms(f)": {name: float(np.mean(values)) for name, values in self._shares.items()},
            "L1 distance of the guidance": {
                name: {text: float(np.mean(values)) for text, values in of_texts.items()}
                for name, of_texts in self._distances.items()
            },
        }


def compare_texts(args: argparse.Namespace) -> None:
    """Fuse, measure, print and draw as the options say.

    Raises:
        UserError: data, weights or the feature are missing or do not fit.
    """
    path = checkpoint_path(args.ckpt_path, args.task)
    numbers, page = Path(f"{args.out}.json"), Path(f"{args.out}.png")
    require_separate([numbers, page], [args.h5, path, *([args.neutral] if args.neutral else [])])
    with H5Dataset(args.h5) as dataset:
        texts = texts_of(dataset, args.neutral)
        checkpoint = read_checkpoint(path)
        use_threads(args.threads)
        from utils.runtime.jittor_env import use_device

        print(use_device(args.device, args.tf32))
        comparison = Comparison(load_net(path, checkpoint))
        for index in tqdm(range(len(dataset)), desc="fuse", unit="pair"):
            comparison.add(dataset[index], {text: feature(index) for text, feature in texts.items()})

    summary = comparison.summary()
    print(format_table(args.h5.stem, summary["metrics"]))
    print_summary(summary)
    write_text(numbers, json.dumps(summary, indent=2) + "\n")
    draw_contact_sheet([row for _, row in comparison.rows], f"Effect of the text, {path.name}", page)
    print(f"numbers: {numbers}; pictures: {page}")


def print_summary(summary: dict) -> None:
    """Print the differences of the fused images and of the guidance."""
    for text, values in summary["difference in gray levels"].items():
        print(f"{text}: differs by {values['mean']:.3f} gray levels on average, by {values['largest']} at most")
    print("guidance: a vector of 256 numbers whose magnitudes sum to 1, so two of them are at most 2 apart (L1)")
    for name, share in summary["rms(g) / rms(f)"].items():
        distances = summary["L1 distance of the guidance"][name]
        listed = ", ".join(f"{text} {distance:.4f}" for text, distance in distances.items())
        print(f"{name}: rms(g) / rms(f) {share:.5f}; distance from the pair's own guidance: {listed}")


def main(argv: Sequence[str] | None = None) -> None:
    compare_texts(get_args_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
