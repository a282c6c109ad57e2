"""The interface of every sampler.

A kernel is a frozen dataclass with two pure functions: `init` makes a `State` from positions, `step` maps a state to
the next one. The batch dimension is the chain dimension: all N chains move at once and never interact (but for the
particles of `SMC`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm.errors import InputError
from gebm.latent import Target
from gebm.text import show

__all__ = ["Info", "Kernel", "State", "UnfinishedError", "always_accepted", "check_target", "evaluate"]
__all__ += ["normal_like"]


class State(NamedTuple):
    """All that the next step needs, so that a chain can be stopped, saved and resumed.

    position (N, d); potential (N,) and gradient (N, d) of the position (None for kernels that use no gradient);
    velocity (N, d) of kinetic samplers, else None; extra: tensors that one kernel alone needs, named in its docstring.
    """

    position: Tensor
    potential: Tensor
    gradient: Tensor | None = None
    velocity: Tensor | None = None
    extra: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def grad(self) -> Tensor:
        """The gradient; TypeError where the kernel of this state uses none."""
        if self.gradient is None:
            raise TypeError("this state has no gradient: it is of a kernel that uses none")
        return self.gradient


class Info(NamedTuple):
    """What a step did: acceptance probability (N,), whether the proposal was accepted (N,), and whether its potential
    and gradient were finite (N,).
    """

    acceptance: Tensor
    accepted: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Kernel(ABC):
    """One Markov transition.

    step_size: the sampler's own h; gamma_power: h is proportional to gamma**gamma_power, gamma that of `--lmc_gamma`;
    exact: it targets exp(-U) itself, by accept steps or weights, so potentials must be in full precision; moves: its
    chains travel through the target, so that their ESS and R-hat say whether they have mixed; anneals: beta may change
    on its way (weights and constants hold for one beta); goal: the acceptance that tuning aims at, None where there is
    nothing to tune; differentiates: it uses the target's gradient; cost: evaluations of the target in a step.
    """

    step_size: float | Tensor

    gamma_power: ClassVar[float] = 1.0
    exact: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    anneals: ClassVar[bool] = True
    goal: ClassVar[float | None] = None
    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.step_size, Tensor):
            return
        if not isinstance(self.step_size, Real) or not 0 < self.step_size < math.inf:
            raise InputError(f"{type(self).__name__}: step_size {show(self.step_size)} must be a number above 0")

    @classmethod
    def from_gamma(cls, gamma: float, **own: Any) -> "Kernel":
        """Kernel of the documented flag `--lmc_gamma`, where gamma is 2h: z - (gamma/2) grad U + sqrt(gamma) xi."""
        return cls(gamma / 2, **own)

    @property
    def cost(self) -> int:
        return 1

    def init(self, position: Tensor, target: Target) -> State:
        """The state of chains at positions (N, d); ValueError or InputError for a target it cannot use."""
        check_target(self, target)
        values = target(position)
        if isinstance(values, Tensor):
            raise InputError("the target gives no gradient: wrap the potential in gebm.value_and_grad")
        return State(position, *values)

    @abstractmethod
    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        """The next state; the old one stays as it is."""

    def finished(self, state: State) -> "Kernel":
        """The kernel as it has tuned itself by the end of a run; UnfinishedError if its states are no draws yet."""
        return self


class UnfinishedError(FloatingPointError):
    """A run ended before its sampler had reached its target."""


def normal_like(position: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise (N, d) with the device and dtype of the positions."""
    return torch.randn(position.shape, generator=generator, device=position.device, dtype=position.dtype)


def check_target(kernel: Kernel, target: Target) -> None:
    """Raise InputError for an exact kernel on a target whose potentials are not float32 or float64, and for one that
    moves by the gradient on a latent posterior whose energy gives none.
    """
    if kernel.differentiates and (part := getattr(target, "cut", "")):
        raise InputError(
            f"{type(kernel).__name__}: moves by the gradient of E(G(z)), which the {part} cuts: compute it without "
            "torch.no_grad, .detach() or whole numbers, or take a sampler without gradients (mh, imh, sir)"
        )
    if kernel.exact and not getattr(target, "exact", True):
        name = type(kernel).__name__
        raise InputError(
            f"{name} is exact only with float32 potentials: freeze without dtype, sample outside autocast, and let the "
            "networks compute in no less"
        )


def evaluate(target: Target, position: Tensor) -> Tensor:
    """Potentials (N,) alone: a third of the cost of potential and gradient."""
    with torch.no_grad():
        return target.potential(position)


def always_accepted(position: Tensor) -> Info:
    """The `Info` of a kernel without a reject step."""
    ones = torch.ones(len(position), device=position.device)
    return Info(ones, ones.bool(), ones.bool())
