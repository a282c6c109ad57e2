"""Gradient descent: Langevin at temperature zero."""

from dataclasses import dataclass

import torch

from gebm.latent import Target
from gebm.samplers.base import Info, Kernel, State, always_accepted

__all__ = ["GradientDescent"]


@dataclass(frozen=True)
class GradientDescent(Kernel):
    r"""Gradient descent on the potential, :math:`z' = z - h \nabla U(z)`: Langevin without its noise.

    Target: none; chains end in local minima of U. Cost: one value-and-gradient a step.

    Arguments:
        step_size: h. The documented gamma is 2h.

    Example:

        >>> from gebm.latent import value_and_grad
        >>> from gebm.samplers import run
        >>> target = value_and_grad(lambda z: (z - 1).square().sum(1))
        >>> run(GradientDescent(0.1), target, torch.zeros(1, 2), 100).state.position
        tensor([[1.0000, 1.0000]])
    """

    moves = False

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        position = state.position - self.step_size * state.grad
        return State(position, *target(position)), always_accepted(position)
