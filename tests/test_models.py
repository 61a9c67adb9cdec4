"""The weights that ship, and their card models/README.md: who uses them gets the metrics that the card states."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from utils.data.images import read_gray
from utils.data.pairs import find_pairs
from utils.data.provenance import Provenance
from utils.data.tasks import TASKS
from utils.evaluation.evaluate import mean_row, measure
from utils.evaluation.inference import fuse, load_net
from utils.evaluation.metrics import TABLE_METRICS
from utils.text.features import FeatureFiles
from utils.training.checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
CARD = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
WEIGHTS = ROOT / "models" / "IVF.pkl"
TOLERANCE = 0.01

shipped = pytest.mark.skipif(not WEIGHTS.is_file(), reason="models/IVF.pkl does not ship yet")


def stated(dataset: str) -> dict[str, float]:
    """The metrics in the card's row of a data set."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in CARD.splitlines() if line.startswith("|")]
    (header,) = [row for row in rows if row[-len(TABLE_METRICS) :] == list(TABLE_METRICS)]
    (row,) = [row for row in rows if row[0].split(",")[0] == dataset and len(row) == len(header)]
    return dict(zip(TABLE_METRICS, map(float, row[-len(TABLE_METRICS) :]), strict=True))


@shipped
def test_the_weights_give_the_metrics_of_their_card():
    """The six pairs of VLFDataset/TNO, with their paragraphs."""
    net, values = load_net(WEIGHTS), {}
    for pair in find_pairs(ROOT / "VLFDataset", "IVF", "TNO", "test"):
        a, b = read_gray(pair.image_a), read_gray(pair.image_b)
        text = FeatureFiles().feature(pair)[None]
        fused = fuse(net, *(image[None, None] / np.float32(255) for image in (a, b)), text)
        values[pair.name] = measure(pair.name, fused, a, b)
    assert len(values) == 6
    measured = mean_row(values)
    assert {name: measured[name] for name in TABLE_METRICS} == pytest.approx(stated("TNO"), abs=TOLERANCE)


@shipped
def test_the_card_names_the_file_and_what_the_file_records():
    state = read_checkpoint(WEIGHTS)
    data = Provenance.read(state["data"])
    assert set(state["model"]) and all(value.dtype == np.float32 for value in state["model"].values())
    assert "optimizer" not in state
    assert data.task == "IVF"
    for fact in (data.text_encoder, data.encoder_digest, state["commit"], str(state["step"])):
        assert fact and fact in CARD.replace(",", "")
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in CARD


def test_the_neutral_feature_that_ships():
    pair = find_pairs(ROOT / "VLFDataset", "IVF", "TNO", "test")[0]
    path = WEIGHTS.with_suffix(".npy")
    assert np.isfinite(FeatureFiles().feature(replace(pair, feature=path))).all()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in CARD
    assert TASKS["IVF"].neutral in CARD
