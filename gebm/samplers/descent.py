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
    """

    moves = False

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        position = state.position - self.step_size * state.grad
        return State(position, *target(position)), always_accepted(position)
