"""The model of how an image scales with threads: on invented times, and one real image."""

from __future__ import annotations

import pytest

from tools.scaling import Image, build, images, report


def test_the_table_of_invented_times():
    """Two threads halve the regions of an image, badly balanced; what is outside stays."""
    found = {1: [Image(1.0, 0.1, {"a": (0.9, 0.9)})], 2: [Image(0.8, 0.1, {"a": (0.6, 0.9)})]}
    lines = [line.split() for line in report(found, usable=1).splitlines()]
    assert lines[1] == ["1", "1.0000", "1.000", "1.0", "10.0%"]
    assert lines[2] == ["2", "0.7000", "-", "1.4", "14.3%"]
    assert lines[5] == ["a", "85.7%", "75%", "1.00x"]


def test_the_regions_of_an_image_are_seen(tmp_path):
    """All threads are used, also more than there are cores, and the operations are named."""
    (image,) = images(build(tmp_path), 5, (32, 40), rounds=1)
    assert {"transformer_block", "pooled_text_attention", "conv3x3", "merge"} <= set(image.regions)
    assert "others" not in image.regions
    for longest, total in image.regions.values():
        assert 0 < longest <= total <= 5 * longest
    assert 0 < image.serial < image.clock
    assert image.modelled == pytest.approx(image.serial + sum(longest for longest, _ in image.regions.values()))
