"""The interface of every sampler, and the one loop that runs them.

A kernel is a frozen dataclass with two pure functions: `init` makes a `State` from positions, `step` maps a state to
the next one. The batch dimension is the chain dimension: all N chains move at once and never interact.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from gebm.latent import Target

__all__ = [
    "Chain", "Info", "Kernel", "NonFiniteError", "State", "always_accepted", "constant", "normal_like", "run",
    "step_decay",
]  # fmt: skip


class State(NamedTuple):
    """All that the next step needs, so that a chain can be stopped, saved and resumed.

    position (N, d); potential (N,) and gradient (N, d) where they were last evaluated (the position, except where a
    kernel's docstring says otherwise); velocity (N, d) of kinetic samplers, else None.
    """

    position: Tensor
    potential: Tensor
    gradient: Tensor
    velocity: Tensor | None = None


class Info(NamedTuple):
    """What a step did: acceptance probability (N,) and whether the proposal was accepted (N,)."""

    acceptance: Tensor
    accepted: Tensor


class Kernel(Protocol):
    """One Markov transition.

    step_size: the sampler's own h; gamma_power: h is proportional to gamma**gamma_power, gamma that of `--lmc_gamma`.
    """

    step_size: float
    gamma_power: ClassVar[float]

    def init(self, position: Tensor, target: Target) -> State: ...

    def step(self, state: State, target: Target, generator: torch.Generator | None) -> tuple[State, Info]: ...


class Chain(NamedTuple):
    """Result of `run`.

    state: the last state; positions (draws, N, d) and potentials (draws, N): those of the thinned states; acceptance
    (N,): mean acceptance over the steps.
    """

    state: State
    positions: Tensor
    potentials: Tensor
    acceptance: Tensor


def normal_like(position: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise (N, d) with the device and dtype of the positions."""
    return torch.randn(position.shape, generator=generator, device=position.device, dtype=position.dtype)


def always_accepted(position: Tensor) -> Info:
    """The `Info` of a kernel without a reject step."""
    ones = torch.ones(len(position), device=position.device)
    return Info(ones, ones.bool())


class NonFiniteError(FloatingPointError):
    """A chain reached a potential or gradient that is not finite, in a kernel without a reject step."""


def constant(step: int) -> float:
    """The schedule of a fixed step size."""
    return 1.0


def step_decay(factor: float = 0.1, every: int = 200) -> Callable[[int], float]:
    """Schedule that multiplies the step size by `factor` after every `every` steps (0: never)."""
    return lambda step: factor ** (step // every) if every else 1.0


def run(
    kernel: Kernel,
    target: Target,
    start: Tensor | State,
    steps: int,
    *,
    schedule: Callable[[int], float] = constant,
    thin: int = 0,
    first_step: int = 0,
    callback: Callable[[int, State], None] | None = None,
    generator: torch.Generator | None = None,
) -> Chain:
    """Run N chains for `steps` steps.

    Arguments:
        kernel: the transition.
        target: potential and gradient.
        start: positions (N, d), or the state of an earlier run to go on from.
        steps: number of steps.
        schedule: step number (from 0) -> factor on the kernel's step size.
        thin: keep every thin-th position (0: none), so that memory is flat in the number of steps.
        first_step: number of the first step, for a run that goes on.
        callback: called with (steps done, state) after every step.
        generator: source of all randomness.

    Raises:
        NonFiniteError: a potential or gradient was not finite; names the first step where.
    """
    state = start if isinstance(start, State) else kernel.init(start, target)
    acceptance = torch.zeros(len(state.position), device=state.position.device)
    first_bad = torch.full((), -1, device=state.position.device)
    positions, potentials = [], []
    factor = None
    for t in range(first_step, first_step + steps):
        if (wanted := schedule(t)) != factor:
            factor, current = wanted, replace(kernel, step_size=kernel.step_size * wanted)
        state, info = current.step(state, target, generator)
        acceptance += info.acceptance
        bad = ~(torch.isfinite(state.potential).all() & torch.isfinite(state.gradient).all())
        first_bad = torch.where(bad & (first_bad < 0), t + 1, first_bad)
        if thin and (t + 1) % thin == 0:
            positions.append(state.position)
            potentials.append(state.potential)
        # Reading the flag waits for the device, so it is read rarely; a chain that went bad stays bad.
        if t + 1 == first_step + steps or (t + 1) % 100 == 0:
            _raise_if_bad(kernel, first_bad)
        if callback is not None:
            callback(t + 1, state)
    return Chain(
        state,
        torch.stack(positions) if positions else state.position.new_empty(0, *state.position.shape),
        torch.stack(potentials) if potentials else state.potential.new_empty(0, *state.potential.shape),
        acceptance / max(steps, 1),
    )


def _raise_if_bad(kernel: Kernel, first_bad: Tensor) -> None:
    if (step := int(first_bad)) >= 0:
        raise NonFiniteError(
            f"{type(kernel).__name__}: potential or gradient not finite at step {step}; "
            "use a smaller step size or a lower beta"
        )
