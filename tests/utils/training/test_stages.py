"""The weight of the gradient loss in each epoch."""

import argparse

import pytest

from utils.training.stages import stage, weight_at


def test_a_weight_rises_in_stages():
    # the official weight where there are no stages, or none has begun
    assert weight_at(1, [], 20) == 20
    assert [weight_at(epoch, ["2:5", "4:10.5"], 20) for epoch in range(1, 6)] == [20, 5, 5, 10.5, 10.5]


@pytest.mark.parametrize("text", ["0:1", "1", "1:-2", "a:1", "1:nan", "1:2:3"])
def test_a_stage_is_an_epoch_and_a_weight(text):
    with pytest.raises((ValueError, argparse.ArgumentTypeError)):
        stage(text)
