"""Langevin in a box."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.latent import Target
from gebm.samplers.base import Info, Kernel, State, always_accepted, normal_like

__all__ = ["TruncatedLangevin"]


@dataclass(frozen=True)
class TruncatedLangevin(Kernel):
    r"""Unadjusted Langevin, reflected at the walls of the box [-b, b]^d.

    Target: exp(-U) cut to the box, up to a bias of first order in h: the prior without its tails. Starts outside are
    reflected into it. Cost: one value-and-gradient a step.

    Arguments:
        step_size: h. The documented gamma is 2h.
        bound: b, in Gaussian coordinates: 2 keeps 95 % of the prior's mass in each.

    Example:

        >>> from gebm.latent import GaussianPrior, LatentPosterior
        >>> from gebm.samplers import run
        >>> posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: -3 * x[:, 0])
        >>> run(TruncatedLangevin(0.1), posterior, torch.zeros(100, 2), 50).state.position.abs().max() <= 2
        tensor(True)
    """

    bound: float = 2.0

    def init(self, position: Tensor, target: Target) -> State:
        position = self._reflect(position)
        return super().init(position, target)

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        noise = (2 * self.step_size) ** 0.5 * normal_like(state.position, generator)
        position = self._reflect(state.position - self.step_size * state.grad + noise)
        return State(position, *target(position)), always_accepted(position)

    def _reflect(self, z: Tensor) -> Tensor:
        # A triangle wave of period 4b: any number of reflections at once.
        b = self.bound
        return b - (torch.remainder(z + b, 4 * b) - 2 * b).abs()
