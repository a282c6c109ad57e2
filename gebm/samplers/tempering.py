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
        potential, gradient = path.mix(state.position, state.potential, state.gradient)
        moved, info = self.kernel.step(state._replace(potential=potential, gradient=gradient), path, generator)
        # Of the untempered values each chain keeps those of the point it is at.
        potential = torch.where(info.accepted, path.last[0], state.potential)
        if state.gradient is not None:
            gradient = torch.where(info.accepted[:, None], path.last[1], state.gradient)
        return moved._replace(potential=potential, gradient=gradient), info


class _Path:
    """The target as seen from t, which remembers what the target itself said last."""

    def __init__(self, target: Target, t: float | Tensor):
        self.target = target
        self.t = t
        self.last: tuple[Tensor, Tensor | None] = ()

    def mix(self, z: Tensor, potential: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor | None]:
        t = self.t
        mixed = t * potential + (1 - t) * prior_potential(z)
        return mixed, None if gradient is None else t * gradient + (1 - t) * z

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.last = self.target(z)
        return self.mix(z, *self.last)

    def potential(self, z: Tensor) -> Tensor:
        self.last = self.target.potential(z), None
        return self.mix(z, *self.last)[0]
