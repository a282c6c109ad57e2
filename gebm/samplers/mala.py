"""Metropolis-adjusted Langevin."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.latent import Target
from gebm.samplers.base import Info, Kernel, State, normal_like
from gebm.samplers.metropolis import accept

__all__ = ["MALA"]


@dataclass(frozen=True)
class MALA(Kernel):
    r"""Metropolis-adjusted Langevin algorithm (Roberts and Tweedie 1996), with an optional diagonal preconditioner.

    .. math:: z^* = z - h s^2 \nabla U(z) + \sqrt{2h}\, s\, \xi, \qquad
              \log q(z^* \to z) - \log q(z \to z^*) = \tfrac12 \|\xi\|^2
              - \tfrac{1}{4h} \|(z - z^*) / s + h s \nabla U(z^*)\|^2

    Target: exp(-U), exactly. Cost: one value-and-gradient a step.

    Arguments:
        step_size: h. The documented gamma is 2h.
        scale: s, (d,): typical scales of the coordinates; 1 for all alike.

    Example:

        >>> import torch
        >>> from gebm.latent import GaussianPrior, LatentPosterior
        >>> from gebm.samplers import run
        >>> posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: 1.5 * x.square().sum(1))  # N(0, I / 4)
        >>> start, generator = posterior.start(1000), torch.Generator().manual_seed(0)
        >>> chain = run(MALA(0.3), posterior, start, 200, generator=generator)
        >>> round(float(chain.state.position.std()), 1)
        0.5
    """

    scale: float | Tensor = 1.0

    exact = True
    goal = 0.574

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        h, s = self.step_size, self.scale
        noise = normal_like(state.position, generator)
        move = (2 * h) ** 0.5 * noise - h * s * state.grad
        position = state.position + s * move
        proposal = State(position, *target(position))
        back = h * s * proposal.grad - move
        log_ratio = state.potential - proposal.potential + 0.5 * noise.square().sum(1) - back.square().sum(1) / (4 * h)
        return accept(state, proposal, log_ratio, generator)
