"""Adam and the learning-rate schedule, as PyTorch computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from net import ops
from net.ops.binding import kernel_header
from utils.runtime.collective import mean_of_gradients
from utils.runtime.jittor_env import jt

Parameters = Sequence[tuple[jt.Var, jt.Var, jt.Var, jt.Var]]  # parameter, gradient, and the moments m and v
TOGETHER = 48  # parameters in a launch of update_together; their addresses are arguments, of at most 4 KB


def update_each(
    parameters: Parameters, step_size: jt.Var, root_correction: jt.Var, betas: tuple[float, float], eps: float
) -> None:
    """Update parameters and moments: p -= step_size * m / (sqrt(v) / root_correction + eps)."""
    beta1, beta2 = betas
    for p, g, m, v in parameters:
        m.update(m + (g - m) * (1 - beta1))
        v.update(beta2 * v + (1 - beta2) * g * g)
        p.update(p - step_size * m / (jt.sqrt(v) / root_correction + eps))


def update_together(
    parameters: Parameters, step_size: jt.Var, root_correction: jt.Var, betas: tuple[float, float], eps: float
) -> None:
    """The same for a GPU, many parameters in one launch: launches for each would take longer than their work."""
    beta1, beta2 = betas
    header = kernel_header("cuda/adam.cuh")
    for first in range(0, len(parameters), TOGETHER):
        part = parameters[first : first + TOGETHER]
        count = len(part)
        new = [x for p, _, m, v in part for x in (p, m, v)]
        # in the order of the members of `Parameter`
        rows = ", ".join(
            f"{{{_pointers('in', 4 * i, 4)}, {_pointers('out', 3 * i, 3)}, in{4 * i}->num}}" for i in range(count)
        )
        numbers = ", ".join(f"{number!r}f" for number in (1 - beta1, beta2, 1 - beta2, eps))
        body = f"Adam<{count}>{{{{{rows}}}, {_pointers('in', 4 * count, 2)}, {numbers}}}"
        source = f"for_each({body}, {sum(p.numel() for p, *_ in part)});"
        values = jt.code(
            [x.shape for x in new],
            [x.dtype for x in new],
            [*(x for of_one in part for x in of_one), step_size, root_correction],
            cpu_header=header,
            cpu_src=source,
            cuda_header=header,
            cuda_src=source,
        )
        for x, value in zip(new, values, strict=True):
            x.update(value)


def _pointers(name: str, first: int, count: int) -> str:
    """The variables that Jittor declares for `count` arrays."""
    return ", ".join(f"{name}{first + k}_p" for k in range(count))


class Adam(jt.optim.Optimizer):
    """Adam (Kingma & Ba 2015) as torch.optim.Adam computes it: p -= lr * mhat / (sqrt(vhat) + eps).

    Jittor's own Adam adds eps to sqrt(v) before the bias of v is corrected, which differs in the first
    steps. ``step(loss)`` differentiates and updates.

    Args:
        named_parameters: name -> parameter; the names key the state of a checkpoint.
        lr: learning rate; may be set between steps.
    """

    def __init__(
        self,
        named_parameters: dict[str, jt.Var],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(list(named_parameters.values()), lr)
        self.names = list(named_parameters)
        self.betas = betas
        self.eps = eps
        (group,) = self.param_groups
        group["m"] = [jt.zeros_like(p).stop_grad() for p in group["params"]]
        group["v"] = [jt.zeros_like(p).stop_grad() for p in group["params"]]

    def step(self, loss: jt.Var | None = None, retain_graph: bool = False) -> None:
        """Differentiate `loss` and update every parameter with the mean gradient of all processes."""
        self.pre_step(loss, retain_graph)
        beta1, beta2 = self.betas
        # Arrays, because Jittor would write a Python number into a kernel and compile it at every step.
        step_size = jt.array(np.float32(self.lr / (1 - beta1**self.n_step)))
        root_correction = jt.array(np.float32(math.sqrt(1 - beta2**self.n_step)))
        (group,) = self.param_groups
        gradients = mean_of_gradients(group["grads"])
        parameters = list(zip(group["params"], gradients, group["m"], group["v"], strict=True))
        update = update_together if jt.flags.use_cuda and not ops.reference_in_use() else update_each
        update(parameters, step_size, root_correction, self.betas, self.eps)
        self.post_step()

    def state_dict(self) -> dict[str, object]:
        """The number of steps made, the learning rate, and two moments per parameter: NumPy arrays by name."""
        (group,) = self.param_groups
        moments = {key: {n: x.numpy() for n, x in zip(self.names, group[key], strict=True)} for key in ("m", "v")}
        return {"n_step": self.n_step, "lr": self.lr, **moments}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Load a result of `state_dict`.

        Raises:
            ValueError: the moments belong to other parameters.
        """
        (group,) = self.param_groups
        for key in ("m", "v"):
            moments = state[key]
            if set(moments) != set(self.names):
                raise ValueError(f"optimizer state {key!r}: {len(moments)} parameters, expected {len(self.names)}")
            for name, x in zip(self.names, group[key], strict=True):
                if tuple(moments[name].shape) != tuple(x.shape):
                    raise ValueError(f"optimizer state {key!r} of {name}: shape {tuple(moments[name].shape)}")
                x.assign(moments[name])
        self.n_step = int(state["n_step"])
        self.lr = float(state["lr"])


class StepLR:
    """lr * gamma^floor(epoch / step_size), stepped once an epoch, as torch.optim.lr_scheduler.StepLR."""

    def __init__(self, optimizer: Adam, step_size: int, gamma: float) -> None:
        self.optimizer = optimizer
        self.step_size = step_size
        self.gamma = gamma
        self.last_epoch = 0

    def step(self) -> None:
        """End an epoch; after every `step_size` epochs, multiply the learning rate by gamma."""
        self.last_epoch += 1
        if self.last_epoch % self.step_size == 0:
            self.optimizer.lr *= self.gamma

    def state_dict(self) -> dict[str, object]:
        """The number of epochs ended, and the settings."""
        return {"last_epoch": self.last_epoch, "step_size": self.step_size, "gamma": self.gamma}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Load a result of `state_dict`; the settings stay as they are."""
        self.last_epoch = int(state["last_epoch"])
