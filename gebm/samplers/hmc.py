"""Hamiltonian Monte Carlo."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.latent import Target
from gebm.samplers.base import Info, State
from gebm.samplers.langevin import normal_like
from gebm.samplers.metropolis import accept

__all__ = ["HMC"]


@dataclass(frozen=True)
class HMC:
    r"""Hamiltonian Monte Carlo with unit mass (Duane et al. 1987; Neal 2011).

    A velocity v ~ N(0, I) is drawn anew and L leapfrog steps are taken,

    .. math:: v \leftarrow v - \tfrac h2 \nabla U(z), \quad z \leftarrow z + h v, \quad
              v \leftarrow v - \tfrac h2 \nabla U(z),

    then the end is accepted by the change of U(z) + |v|^2 / 2.

    Target: exp(-U), exactly. Cost: L value-and-gradients a step; the first half-kick takes the state's gradient.

    Arguments:
        step_size: leapfrog step h. The documented gamma is (h/2)^2.
        leapfrog: number of leapfrog steps L.
    """

    step_size: float
    leapfrog: int = 10

    gamma_power = 0.5

    @classmethod
    def from_gamma(cls, gamma: float, leapfrog: int = 10) -> "HMC":
        """Kernel of the documented flag `--lmc_gamma`: h = 2 sqrt(gamma)."""
        return cls(2 * math.sqrt(gamma), leapfrog)

    def init(self, position: Tensor, target: Target) -> State:
        return State(position, *target(position))

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        h = self.step_size
        drawn = velocity = normal_like(state.position, generator)
        proposal = state
        for _ in range(self.leapfrog):
            velocity = velocity - h / 2 * proposal.gradient
            position = proposal.position + h * velocity
            proposal = State(position, *target(position))
            velocity = velocity - h / 2 * proposal.gradient
        kinetic = 0.5 * (drawn.square().sum(1) - velocity.square().sum(1))
        return accept(state, proposal, state.potential - proposal.potential + kinetic, generator)
