"""Gradient descent: Langevin at temperature zero."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.latent import Target
from gebm.samplers.base import Info, State, always_accepted

__all__ = ["GradientDescent"]


@dataclass(frozen=True)
class GradientDescent:
    r"""Gradient descent on the potential, :math:`z' = z - h \nabla U(z)`: Langevin without its noise.

    Target: none; chains end in local minima of U. Cost: one value-and-gradient a step.

    Arguments:
        step_size: h. The documented gamma is 2h.
    """

    step_size: float

    gamma_power = 1.0

    @classmethod
    def from_gamma(cls, gamma: float) -> "GradientDescent":
        """Kernel of the documented flag `--lmc_gamma`: z - (gamma/2) grad U."""
        return cls(gamma / 2)

    def init(self, position: Tensor, target: Target) -> State:
        return State(position, *target(position))

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        position = state.position - self.step_size * state.gradient
        return State(position, *target(position)), always_accepted(position)
