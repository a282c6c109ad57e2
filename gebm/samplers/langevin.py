"""Unadjusted (overdamped) Langevin."""

from dataclasses import dataclass

import torch

from gebm.latent import Target
from gebm.samplers.base import Info, Kernel, State, always_accepted, normal_like

__all__ = ["Langevin"]


@dataclass(frozen=True)
class Langevin(Kernel):
    r"""Unadjusted Langevin algorithm (paper.md section 1, Alg. 2 of Arbel et al. 2021).

    .. math:: z' = z - h \nabla U(z) + \sqrt{2h}\, \xi, \quad \xi \sim N(0, I)

    Target: exp(-U) up to a bias of first order in h; on N(0, 1) the stationary variance is 1 / (1 - h/2). Cost: one
    value-and-gradient a step. There is no reject step: acceptance is one.

    Arguments:
        step_size: h. The documented gamma is 2h.

    Example:

        >>> import torch
        >>> from gebm.latent import GaussianPrior, LatentPosterior
        >>> from gebm.samplers import run
        >>> posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: 1.5 * x.square().sum(1))  # N(0, I / 4)
        >>> start, generator = posterior.start(1000), torch.Generator().manual_seed(0)
        >>> chain = run(Langevin(0.02), posterior, start, 200, generator=generator)
        >>> round(float(chain.state.position.std()), 1)
        0.5
    """

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        noise = normal_like(state.position, generator)
        position = state.position - self.step_size * state.grad + (2 * self.step_size) ** 0.5 * noise
        return State(position, *target(position)), always_accepted(position)
