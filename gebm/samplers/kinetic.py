"""Kinetic (underdamped) Langevin."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm.arguments import check_number
from gebm.errors import InputError
from gebm.latent import Target
from gebm.samplers.base import Info, Kernel, State, always_accepted, check_target, normal_like

__all__ = ["KineticLangevin"]


@dataclass(frozen=True)
class KineticLangevin(Kernel):
    r"""Kinetic Langevin by splitting into drift A, half kicks B and friction with noise O.

    .. math::
        A: z \leftarrow z + \tfrac h2 v, \quad B: v \leftarrow v - \tfrac h2 \nabla U(z), \quad
        O: v \leftarrow C v + \sqrt{1 - C^2}\, \xi, \quad C = e^{-\kappa h}

    ABOBA (Sachs, Leimkuhler and Danos 2017; Alg. 3 of Arbel et al. 2021) or BAOAB (Leimkuhler and Matthews 2013).

    Target: :math:`e^{-U(z) - |v|^2/2}` up to a bias of second order in h; on a Gaussian the positions at a step's end
    have none. Cost: one value-and-gradient a step. ABOBA evaluates at its midpoint: the state's potential and gradient
    are those of `extra["evaluated_at"]`, zero before the first step. There is no reject step: acceptance is one.
    Velocities start at zero as in the paper.

    Arguments:
        step_size: h. The documented gamma is (h/2)^2.
        friction: kappa.
        splitting: 'ABOBA' or 'BAOAB'.

    Example:

        >>> import torch
        >>> from gebm.latent import GaussianPrior, LatentPosterior
        >>> from gebm.samplers import run
        >>> posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: 1.5 * x.square().sum(1))  # N(0, I / 4)
        >>> start, generator = posterior.start(1000), torch.Generator().manual_seed(0)
        >>> chain = run(KineticLangevin(0.2, friction=1.0), posterior, start, 200, generator=generator)
        >>> round(float(chain.state.position.std()), 1)
        0.5
    """

    friction: float = 100.0
    splitting: str = "ABOBA"

    gamma_power = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.splitting not in ("ABOBA", "BAOAB"):
            raise InputError(f"KineticLangevin: splitting {self.splitting!r}: choose ABOBA or BAOAB")
        check_number(0, friction=self.friction)

    @classmethod
    def from_gamma(cls, gamma: float, **own: Any) -> "KineticLangevin":
        """Kernel of the documented flag `--lmc_gamma`: h = 2 sqrt(gamma)."""
        return cls(2 * gamma**0.5, **own)

    def init(self, position: Tensor, target: Target) -> State:
        check_target(self, target)
        zeros = torch.zeros_like(position)
        if self.splitting == "BAOAB":
            return State(position, *target(position), zeros)
        # At rest the first midpoint is the start itself; the step evaluates there, so nothing is evaluated twice.
        return State(position, zeros[:, 0], zeros, zeros, {"evaluated_at": position})

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        half = self.step_size / 2
        extra: dict[str, Tensor] = {}
        position, velocity = state.position, state.velocity
        assert velocity is not None, "a state of another kernel"
        if self.splitting == "ABOBA":
            position = position + half * velocity
            potential, gradient = target(position)
            extra["evaluated_at"] = position
            velocity = self._ou_step(velocity - half * gradient, generator) - half * gradient
            position = position + half * velocity
        else:
            velocity = velocity - half * state.grad
            position = position + half * velocity
            velocity = self._ou_step(velocity, generator)
            position = position + half * velocity
            potential, gradient = target(position)
            velocity = velocity - half * gradient
        return State(position, potential, gradient, velocity, extra), always_accepted(position)

    def _ou_step(self, velocity: Tensor, generator: torch.Generator | None) -> Tensor:
        """Friction and noise: the Ornstein-Uhlenbeck process over a time h, exactly."""
        keep = math.exp(-self.friction * self.step_size)
        return keep * velocity + math.sqrt(1 - keep**2) * normal_like(velocity, generator)
