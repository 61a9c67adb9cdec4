"""The weight of the gradient loss in each epoch."""

from utils.training.stages import weight_at


def test_a_weight_rises_in_stages():
    # the official weight where there are no stages, or none has begun
    assert weight_at(1, [], 20) == 20
    assert [weight_at(epoch, ["2:5", "4:10.5"], 20) for epoch in range(1, 6)] == [20, 5, 5, 10.5, 10.5]
