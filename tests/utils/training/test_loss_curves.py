"""Loss curves: what is drawn, and that nothing of matplotlib's global state is touched."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from operator import attrgetter
from pathlib import Path

import cv2
import pytest
from matplotlib.figure import Figure

from utils.runtime.errors import UserError
from utils.training.correlation import Correlation
from utils.training.loss_curves import draw_losses, epoch_means
from utils.training.loss_log import LogLine


def step(epoch: int, batch: int, loss: float, fusion: float | None = None) -> LogLine:
    return LogLine(epoch, 3, batch, 2, loss, loss if fusion is None else fusion, 10 * loss, 20 * loss, "0:00:00.10")


RUN = [step(1, 0, 4.0), step(1, 1, 2.0), step(2, 0, 1.5), step(2, 1, 0.5), step(3, 0, 0.25)]


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved while the test runs."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args, **kwargs):
        figures.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_epoch_means():
    # (4 + 2) / 2, (1.5 + 0.5) / 2, and the one step of an epoch that is not over.
    assert epoch_means(RUN, attrgetter("loss")) == {1: 3.0, 2: 1.0, 3: 0.25}
    assert epoch_means(RUN, attrgetter("lplssim_b")) == {1: 60.0, 2: 20.0, 3: 5.0}


def test_steps_and_means_are_drawn_where_they_belong(tmp_path, drawn):
    draw_losses({"ours": RUN, "theirs": RUN[:2]}, tmp_path / "curve.png")
    (figure,) = drawn
    # The loss is the fusion loss in this run: one panel for both.
    assert [panel.get_ylabel() for panel in figure.axes] == ["loss", "Lp + SSIM to A", "Lp + SSIM to B"]
    top = figure.axes[0]
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["ours", "theirs"]
    steps, means, *_ = top.get_lines()
    # Two batches an epoch: their middles lie at a quarter and at three quarters of it.
    assert steps.get_xydata().tolist() == [[0.25, 4.0], [0.75, 2.0], [1.25, 1.5], [1.75, 0.5], [2.25, 0.25]]
    # The third epoch is not over: its one step has no mean yet.
    assert means.get_xydata().tolist() == [[0.5, 3.0], [1.5, 1.0]]
    assert steps.get_linewidth() < means.get_linewidth()


def test_the_fusion_loss_has_its_panel_where_it_is_not_the_loss(tmp_path, drawn):
    draw_losses({"ours": [step(1, 0, 4.0, fusion=3.0)]}, tmp_path / "curve.png")
    assert [panel.get_ylabel() for panel in drawn[0].axes][:2] == ["loss", "fusion loss"]


def test_correlations_have_a_panel(tmp_path, drawn):
    rows = {1: Correlation(0.5, 0.25, 0.125), 2: Correlation(0.75, 0.5, 0.25)}
    draw_losses({"ours": RUN}, tmp_path / "curve.png", rows)
    panel = drawn[0].axes[-1]
    assert [line.get_label() for line in panel.get_lines()] == ["max(A, B)", "A", "B"]
    assert panel.get_lines()[0].get_xydata().tolist() == [[0.5, 0.5], [1.5, 0.75]]


def test_png_and_svg_are_whole_and_alone(tmp_path):
    draw_losses({"ours": RUN}, tmp_path / "charts" / "curve.png")
    draw_losses({"ours": RUN}, str(tmp_path / "charts" / "curve.svg"))
    assert sorted(path.name for path in (tmp_path / "charts").iterdir()) == ["curve.png", "curve.svg"]
    assert cv2.imread(str(tmp_path / "charts" / "curve.png")).shape == (900, 1200, 3)  # 7.5 x 10 inches at 120 an inch
    assert ElementTree.parse(tmp_path / "charts" / "curve.svg").getroot().tag.endswith("svg")


def test_a_run_without_a_step_yet_is_drawn_empty(tmp_path, drawn):
    draw_losses({"ours": []}, tmp_path / "curve.png")
    assert all(line.get_xydata().size == 0 for line in drawn[0].axes[0].get_lines())


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"curve\.gif: a chart must be a \.png or \.svg file"):
        draw_losses({"ours": RUN}, tmp_path / "curve.gif")
    assert list(tmp_path.iterdir()) == []


def test_pyplot_stays_out(tmp_path):
    """A process that draws its own figures must not find them, or its backend, changed."""
    code = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams.copy())\n"
        "from utils.training.loss_curves import draw_losses\n"
        f"draw_losses({{'ours': []}}, {str(tmp_path / 'curve.svg')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict(matplotlib.rcParams.copy()) == before\n"
    )
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
