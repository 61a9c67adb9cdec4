"""Save memory in training: keep only the inputs of an operation, and compute it again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

from net.ops.binding import differentiated_once
from utils.runtime.jittor_env import jt


def recomputed(form: Callable[..., jt.Var]) -> Callable[..., jt.Var]:
    """`form`, with the same results, but nothing that it computes stays in memory between forward and backward pass.

    Its arguments are arrays, numbers, None, or tuples of these. Known as gradient checkpointing (Chen et al. 2016,
    arXiv 1604.06174).
    """

    def call(*arguments: object) -> jt.Var:
        groups = [a if isinstance(a, tuple) else (a,) for a in arguments]

        def call_flat(*values: object) -> jt.Var:
            rest = iter(values)
            taken = [tuple(next(rest) for _ in group) for group in groups]
            return form(*(t if isinstance(a, tuple) else t[0] for t, a in zip(taken, arguments, strict=True)))

        return _Recomputed(call_flat)(*(value for group in groups for value in group))

    return call


class _Recomputed(jt.Function):
    """One call of a recomputed form, whose arguments are no tuples."""

    def __init__(self, form: Callable[..., jt.Var]) -> None:
        self.form = form

    def execute(self, *inputs: object) -> jt.Var:
        self.inputs = inputs
        with jt.no_grad():  # or kernel operations would keep their inputs
            return self.form(*inputs)

    def grad(self, dy: jt.Var) -> list[jt.Var | None]:
        # Jittor runs operators in the order of their creation, so this forward pass runs when `dy` is known.
        inputs = [x.detach().start_grad() if isinstance(x, jt.Var) else x for x in self.inputs]
        with differentiated_once():
            loss = _Loss(dy)(self.form(*inputs))
        gradients = iter(jt.grad(loss, [x for x in inputs if isinstance(x, jt.Var)], retain_graph=False))
        return [next(gradients) if isinstance(x, jt.Var) else None for x in inputs]


class _Loss(jt.Function):
    """A number whose gradient with respect to y is `dy`. That of sum(y * dy) would be a copy of `dy`."""

    def __init__(self, dy: jt.Var) -> None:
        self.dy = dy

    def execute(self, y: jt.Var) -> jt.Var:
        return jt.zeros(1)

    def grad(self, _: jt.Var) -> jt.Var:
        return self.dy
