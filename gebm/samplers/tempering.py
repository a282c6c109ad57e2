r"""The path from the prior to the target, along which chains are tempered and annealed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.latent import Target, prior_potential
from gebm.samplers.base import Info, Kernel, State

__all__ = ["Tempered", "excess"]


def excess(state: State) -> Tensor:
    r"""What the target's potential has over the prior's, :math:`\beta E(G(z))` for a latent posterior: (N,)."""
    return state.potential - prior_potential(state.extra.get("evaluated_at", state.position))


@dataclass(frozen=True)
class Tempered:
    r"""A kernel aimed at a point of the path from the prior N(0, I) to the target.

    .. math:: U_t(z) = t\, U(z) + (1 - t) (\tfrac12 \|z\|^2 + \tfrac d2 \log 2\pi)

    For a latent posterior that is the inverse temperature t beta. The states are those of the kernel itself, with the
    potential and gradient of U: another t needs no new evaluation, and a step costs what the kernel's costs.

    Arguments:
        kernel: any kernel whose last evaluation in a step is that of its proposal.
        t: place on the path, 0 (prior) to 1 (target).
    """

    kernel: Kernel
    t: float | Tensor

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        path = _Path(target, self.t)
        potential = path.mixed(state.position, state.potential)
        gradient = None if state.gradient is None else path.mixed_gradient(state.position, state.gradient)
        moved, info = self.kernel.step(state._replace(potential=potential, gradient=gradient), path, generator)
        # Of the untempered values each chain keeps those of the point it is at.
        last_potential, last_gradient = path.last
        potential = torch.where(info.accepted, last_potential, state.potential)
        if state.gradient is not None and last_gradient is not None:
            gradient = torch.where(info.accepted[:, None], last_gradient, state.gradient)
        return moved._replace(potential=potential, gradient=gradient), info


class _Path:
    """The target as seen from t, which remembers what the target itself said last."""

    def __init__(self, target: Target, t: float | Tensor):
        self.target = target
        self.t = t
        self.last: tuple[Tensor, Tensor | None]

    def mixed(self, z: Tensor, potential: Tensor) -> Tensor:
        return self.t * potential + (1 - self.t) * prior_potential(z)

    def mixed_gradient(self, z: Tensor, gradient: Tensor) -> Tensor:
        return self.t * gradient + (1 - self.t) * z

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        potential, gradient = self.target(z)
        self.last = potential, gradient
        return self.mixed(z, potential), self.mixed_gradient(z, gradient)

    def potential(self, z: Tensor) -> Tensor:
        potential = self.target.potential(z)
        self.last = potential, None
        return self.mixed(z, potential)
