"""Metropolis-adjusted Langevin."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.latent import Target
from gebm.samplers.base import Info, State
from gebm.samplers.langevin import normal_like
from gebm.samplers.metropolis import accept

__all__ = ["MALA"]


@dataclass(frozen=True)
class MALA:
    r"""Metropolis-adjusted Langevin algorithm (Roberts and Tweedie 1996).

    .. math:: z^* = z - h \nabla U(z) + \sqrt{2h}\, \xi, \qquad
              \log q(z^* \to z) - \log q(z \to z^*) = \tfrac12 \|\xi\|^2
              - \tfrac{1}{4h} \|z - z^* + h \nabla U(z^*)\|^2

    Target: exp(-U), exactly. Cost: one value-and-gradient a step.

    Arguments:
        step_size: h. The documented gamma is 2h.
    """

    step_size: float

    gamma_power = 1.0

    @classmethod
    def from_gamma(cls, gamma: float) -> "MALA":
        """Kernel of the documented flag `--lmc_gamma`: proposals z - (gamma/2) grad U + sqrt(gamma) xi."""
        return cls(gamma / 2)

    def init(self, position: Tensor, target: Target) -> State:
        return State(position, *target(position))

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        h = self.step_size
        noise = normal_like(state.position, generator)
        position = state.position - h * state.gradient + math.sqrt(2 * h) * noise
        proposal = State(position, *target(position))
        back = state.position - position + h * proposal.gradient
        log_ratio = (
            state.potential - proposal.potential + 0.5 * noise.square().sum(1) - back.square().sum(1) / (4 * h)
        )
        return accept(state, proposal, log_ratio, generator)
