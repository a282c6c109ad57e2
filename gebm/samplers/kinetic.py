"""Kinetic (underdamped) Langevin."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.latent import Target
from gebm.samplers.base import Info, State, always_accepted, normal_like

__all__ = ["KineticLangevin"]


@dataclass(frozen=True)
class KineticLangevin:
    r"""Kinetic Langevin, ABOBA splitting (Sachs, Leimkuhler and Danos 2017; Alg. 3 of Arbel et al. 2021).

    .. math::
        y &= z + \tfrac h2 v \\
        v_1 &= v - \tfrac h2 \nabla U(y), \quad v_2 = C v_1 + \sqrt{1 - C^2}\, \xi, \quad C = e^{-\kappa h} \\
        v' &= v_2 - \tfrac h2 \nabla U(y), \quad z' = y + \tfrac h2 v'

    Target: exp(-U(z) - |v|^2/2) up to a bias of second order in h; on a Gaussian the positions z' have none (the
    midpoints y have). Cost: one value-and-gradient a step, at the midpoint y: the state's potential and gradient are
    those of y, zero before the first step. There is no reject step: acceptance is one. Velocities start at zero as in
    the paper.

    Arguments:
        step_size: h. The documented gamma is (h/2)^2.
        friction: kappa.
    """

    step_size: float
    friction: float = 100.0

    gamma_power = 0.5

    @classmethod
    def from_gamma(cls, gamma: float, friction: float = 100.0) -> "KineticLangevin":
        """Kernel of the documented flags `--lmc_gamma` (h = 2 sqrt(gamma)) and `--lmc_kappa`."""
        return cls(2 * math.sqrt(gamma), friction)

    def init(self, position: Tensor, target: Target) -> State:
        # At rest the first midpoint is the start itself; the step evaluates there, so nothing is evaluated twice.
        zeros = torch.zeros_like(position)
        return State(position, zeros[:, 0], zeros, zeros)

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        half = self.step_size / 2
        keep = math.exp(-self.friction * self.step_size)
        middle = state.position + half * state.velocity
        potential, gradient = target(middle)
        velocity = keep * (state.velocity - half * gradient)
        velocity = velocity + math.sqrt(1 - keep**2) * normal_like(middle, generator) - half * gradient
        return State(middle + half * velocity, potential, gradient, velocity), always_accepted(middle)
