"""Langevin on the sphere where almost all of a Gaussian's mass lies."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.latent import Target
from gebm.samplers.base import Info, Kernel, State, always_accepted, normal_like

__all__ = ["SphereLangevin"]


@dataclass(frozen=True)
class SphereLangevin(Kernel):
    r"""Unadjusted Langevin on the sphere of radius :math:`\sqrt d`.

    .. math:: z' = \sqrt d\, \frac{y}{\|y\|}, \qquad y = z + P_z(-h \nabla U(z) + \sqrt{2h}\, \xi), \qquad
              P_z = I - \frac{z z^\top}{\|z\|^2}

    Target: exp(-U) relative to the uniform measure of the sphere, up to a bias of first order in h. Starts are put on
    the sphere. Cost: one value-and-gradient a step.

    Arguments:
        step_size: h. The documented gamma is 2h.

    Example:

        >>> from gebm.latent import GaussianPrior, LatentPosterior
        >>> from gebm.samplers import run
        >>> posterior = LatentPosterior(GaussianPrior(4), lambda z: z, lambda x: x[:, 0])
        >>> z = run(SphereLangevin(0.1), posterior, torch.randn(2, 4), 50).state.position
        >>> torch.allclose(z.norm(dim=1), torch.tensor(2.0))
        True
    """

    def init(self, position: Tensor, target: Target) -> State:
        position = _onto_sphere(position)
        return super().init(position, target)

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        z = state.position
        move = (2 * self.step_size) ** 0.5 * normal_like(z, generator) - self.step_size * state.grad
        radial = (move * z).sum(1, keepdim=True) / z.square().sum(1, keepdim=True)
        position = _onto_sphere(z + move - radial * z)
        return State(position, *target(position)), always_accepted(position)


def _onto_sphere(z: Tensor) -> Tensor:
    radius: Tensor = z.norm(dim=1, keepdim=True)
    return z * (math.sqrt(z.shape[1]) / radius)
