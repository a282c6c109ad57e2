"""Hamiltonian Monte Carlo."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm.arguments import check_whole
from gebm.latent import Target
from gebm.samplers.base import Info, Kernel, State, normal_like
from gebm.samplers.metropolis import accept

__all__ = ["HMC"]


@dataclass(frozen=True)
class HMC(Kernel):
    r"""Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011), with an optional diagonal preconditioner.

    A velocity v ~ N(0, I) is drawn anew and L leapfrog steps are taken,

    .. math:: v \leftarrow v - \tfrac h2 s \nabla U(z), \quad z \leftarrow z + h s v, \quad
              v \leftarrow v - \tfrac h2 s \nabla U(z),

    then the end is accepted by the change of :math:`U(z) + |v|^2 / 2`.

    Target: exp(-U), exactly. Cost: L value-and-gradients a step; the first half-kick takes the state's gradient.

    Arguments:
        step_size: leapfrog step h. The documented gamma is (h/2)^2.
        leapfrog: number of leapfrog steps L.
        scale: s, (d,): typical scales of the coordinates (a mass matrix diag(1 / s^2)); 1 for all alike.

    Example:

        >>> import torch
        >>> from gebm.latent import GaussianPrior, LatentPosterior
        >>> from gebm.samplers import run
        >>> posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: 1.5 * x.square().sum(1))  # N(0, I / 4)
        >>> start, generator = posterior.start(1000), torch.Generator().manual_seed(0)
        >>> chain = run(HMC(0.4, leapfrog=5), posterior, start, 200, generator=generator)
        >>> round(float(chain.state.position.std()), 1)
        0.5
    """

    leapfrog: int = 10
    scale: float | Tensor = 1.0

    gamma_power = 0.5
    exact = True
    goal = 0.651

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(1, leapfrog=self.leapfrog)

    @classmethod
    def from_gamma(cls, gamma: float, **own: Any) -> "HMC":
        """Kernel of the documented flag `--lmc_gamma`: h = 2 sqrt(gamma)."""
        return cls(2 * gamma**0.5, **own)

    @property
    def cost(self) -> int:
        return self.leapfrog

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        h, s = self.step_size, self.scale
        drawn = velocity = normal_like(state.position, generator)
        proposal = state
        for _ in range(self.leapfrog):
            velocity = velocity - h / 2 * s * proposal.grad
            position = proposal.position + h * s * velocity
            proposal = State(position, *target(position))
            velocity = velocity - h / 2 * s * proposal.grad
        kinetic = 0.5 * (drawn.square().sum(1) - velocity.square().sum(1))
        return accept(state, proposal, state.potential - proposal.potential + kinetic, generator)
