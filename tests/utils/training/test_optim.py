"""Adam and StepLR against PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

from utils.runtime.jittor_env import jt
from utils.training.optim import TOGETHER, Adam, StepLR, update_each, update_together

torch = pytest.importorskip("torch")


def run_torch(start: np.ndarray, gradients: list[np.ndarray], step_size: int) -> tuple[list[np.ndarray], list[float]]:
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.Adam([parameter], lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size, 0.6)
    values, rates = [], []
    for gradient in gradients:
        rates.append(optimizer.param_groups[0]["lr"])
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        schedule.step()
        values.append(parameter.detach().numpy().copy())
    return values, rates


@pytest.mark.parametrize("scale", [1.0, 1e-7])
def test_adam_and_its_schedule_equal_pytorchs(scale):
    """Gradients of 1e-7 are where the place of eps shows: Jittor's own Adam is off by half there."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal((5, 3)).astype(np.float32)
    gradients = [(rng.standard_normal((5, 3)) * scale).astype(np.float32) for _ in range(7)]
    expected, rates = run_torch(start, gradients, step_size=2)
    parameter = jt.array(start)
    optimizer = Adam({"p": parameter}, lr=1e-2)
    schedule = StepLR(optimizer, 2, 0.6)
    for gradient, value, rate in zip(gradients, expected, rates, strict=True):
        assert optimizer.lr == pytest.approx(rate, rel=1e-12)
        optimizer.step((parameter * jt.array(gradient)).sum())
        schedule.step()
        np.testing.assert_allclose(parameter.numpy(), value, rtol=2e-6, atol=1e-7)


def test_parameters_updated_together_are_those_updated_one_by_one():
    """More than fit into one launch, single numbers among them; the last has gradients of 1e-7, where eps shows."""
    rng = np.random.default_rng(0)
    shapes = [(1,), (5, 3), (7, 1, 1), (2, 3, 3, 3)] * (TOGETHER // 4 + 1)
    start = [[np.abs(rng.standard_normal(shape)).astype(np.float32) for _ in "pgmv"] for shape in shapes]
    start[-1][1:] = [x * np.float32(1e-7) for x in start[-1][1:]]
    results = []
    for update in (update_each, update_together):
        parameters = [tuple(map(jt.array, arrays)) for arrays in start]
        update(parameters, jt.array(np.float32(1e-2)), jt.array(np.float32(0.7)), (0.9, 0.999), 1e-8)
        results.append([x.numpy() for arrays in parameters for x in arrays])
    for each, together in zip(*results, strict=True):
        np.testing.assert_allclose(together, each, rtol=1e-6)


def test_state_continues_the_same_way():
    def steps(optimizer, parameter, count):
        for _ in range(count):
            optimizer.step((parameter * parameter).sum())

    start = np.array([1.0, -2.0, 3.0], np.float32)
    whole = jt.array(start)
    steps(Adam({"p": whole}, lr=0.1), whole, 6)

    first = jt.array(start)
    optimizer = Adam({"p": first}, lr=0.1)
    steps(optimizer, first, 3)
    second = jt.array(first.numpy())
    resumed = Adam({"p": second}, lr=7.0)
    resumed.load_state_dict(optimizer.state_dict())
    steps(resumed, second, 3)
    assert (second.numpy() == whole.numpy()).all()


def test_state_of_other_parameters_is_refused():
    state = Adam({"p": jt.zeros((3,))}, lr=0.1).state_dict()
    with pytest.raises(ValueError, match="parameters"):
        Adam({"q": jt.zeros((3,))}, lr=0.1).load_state_dict(state)
    with pytest.raises(ValueError, match="shape"):
        Adam({"p": jt.zeros((4,))}, lr=0.1).load_state_dict(state)
