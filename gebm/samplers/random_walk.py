"""Metropolis-Hastings without gradients: random walk and independent proposals."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.latent import Target
from gebm.samplers.base import Info, State, normal_like
from gebm.samplers.metropolis import accept

__all__ = ["IndependentMetropolis", "RandomWalk"]


@dataclass(frozen=True)
class RandomWalk:
    r"""Random-walk Metropolis, :math:`z^* = z + \sqrt{2h}\, \xi`: the noise of MALA without its drift.

    Target: exp(-U), exactly. Cost: one evaluation a step.

    Arguments:
        step_size: h. The documented gamma is 2h.
    """

    step_size: float

    gamma_power = 1.0

    @classmethod
    def from_gamma(cls, gamma: float) -> "RandomWalk":
        """Kernel of the documented flag `--lmc_gamma`: proposals z + sqrt(gamma) xi."""
        return cls(gamma / 2)

    def init(self, position: Tensor, target: Target) -> State:
        return State(position, *target(position))

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        position = state.position + math.sqrt(2 * self.step_size) * normal_like(state.position, generator)
        proposal = State(position, *target(position))
        return accept(state, proposal, state.potential - proposal.potential, generator)


@dataclass(frozen=True)
class IndependentMetropolis:
    r"""Metropolis-Hastings with proposals from the prior, :math:`z^* \sim N(0, I)`, whatever the chain's position.

    .. math:: \log \alpha = [U(z) - \tfrac12 \|z\|^2] - [U(z^*) - \tfrac12 \|z^*\|^2] = \beta E(G(z)) - \beta E(G(z^*))

    Target: exp(-U), exactly. Cost: one evaluation a step. The MH-GAN of Turner et al. 2019 is this sampler.

    Arguments:
        step_size: without effect; every proposal is a fresh draw.
    """

    step_size: float = 1.0

    gamma_power = 0.0

    @classmethod
    def from_gamma(cls, gamma: float) -> "IndependentMetropolis":
        """The same kernel for every gamma."""
        return cls()

    def init(self, position: Tensor, target: Target) -> State:
        return State(position, *target(position))

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        position = normal_like(state.position, generator)
        proposal = State(position, *target(position))
        prior = 0.5 * (position.square().sum(1) - state.position.square().sum(1))
        return accept(state, proposal, state.potential - proposal.potential + prior, generator)
