"""Tuning of a kernel during a warm-up."""

import math
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from gebm.arguments import check_whole
from gebm.errors import InputError
from gebm.latent import Target
from gebm.samplers.base import Kernel, State

__all__ = ["Adapted", "adapt"]

# Hoffman and Gelman 2014, section 3.2: shrinkage towards the start, delay of the early steps, decay of the average.
SHRINKAGE, DELAY, DECAY = 0.05, 10, 0.75


class Adapted(NamedTuple):
    """Result of `adapt`.

    kernel: the tuned one, for good; state: of the chains at the end of the warm-up; steps: its length.
    """

    kernel: Kernel
    state: State
    steps: int


def adapt(
    kernel: Kernel,
    target: Target,
    start: Tensor | State,
    steps: int,
    *,
    precondition: bool = False,
    generator: torch.Generator | None = None,
) -> Adapted:
    r"""Tune the step size to the kernel's goal of acceptance over all chains by dual averaging (Nesterov 2009).

    With :math:`\bar H_t` the sum of the shortfalls of the acceptance up to warm-up step t over t + 10, and h_0 the
    first step size,

    .. math:: \log h_t = \log 10 h_0 - \tfrac{\sqrt t}{0.05} \bar H_t, \qquad
              \log \bar h_t = t^{-0.75} \log h_t + (1 - t^{-0.75}) \log \bar h_{t-1}

    (Hoffman and Gelman 2014); the kernel returned has the last :math:`\bar h`. With `precondition` the first half of
    the warm-up also estimates the standard deviation of each coordinate over chains and steps, which becomes the
    kernel's `scale`, and the second half tunes the step size anew. The chains move to the target on the way; these
    steps are not draws, and nothing is adapted after them.

    Raises:
        InputError: the kernel has no acceptance to tune to, or no scale to set; steps that are no number of 0 or more.

    Example:

        >>> from gebm.latent import value_and_grad
        >>> from gebm.samplers import HMC, run
        >>> target = value_and_grad(lambda z: 50 * z.square().sum(1))  # standard deviation 0.1
        >>> generator = torch.Generator().manual_seed(0)
        >>> tuned = adapt(HMC(1.0, leapfrog=3), target, torch.zeros(100, 5), 100, generator=generator)
        >>> 0.05 < tuned.kernel.step_size < 0.2
        True
        >>> chain = run(tuned.kernel, target, tuned.state, 50)
    """
    check_whole(0, steps=steps)
    name = type(kernel).__name__
    if kernel.goal is None:
        raise InputError(f"{name}: has no acceptance to tune to; tune MALA, HMC or RandomWalk")
    if precondition and "scale" not in {f.name for f in fields(kernel)}:
        raise InputError(f"{name}: takes no preconditioner; MALA and HMC do")
    state = start if isinstance(start, State) else kernel.init(start, target)
    if precondition:
        moments = _Moments(state.position)
        kernel, state = _average(kernel, target, state, steps // 2, moments, generator)
        kernel = replace(kernel, **{"scale": moments.deviations()})  # a field of some kernels, as checked above
    steps_left = steps - steps // 2 if precondition else steps
    kernel, state = _average(kernel, target, state, steps_left, None, generator)
    return Adapted(replace(kernel, step_size=float(kernel.step_size)), state, steps)


def _average(
    kernel: Kernel,
    target: Target,
    state: State,
    steps: int,
    moments: "_Moments | None",
    generator: torch.Generator | None,
) -> tuple[Kernel, State]:
    """Dual averaging over `steps` steps: the kernel with its step size, and the state."""
    zero = torch.zeros((), dtype=torch.float64, device=state.position.device)
    centre = math.log(10) + torch.log(zero + kernel.step_size)
    log_h = log_mean = centre - math.log(10)
    shortfall = zero
    assert kernel.goal is not None
    for t in range(1, steps + 1):
        state, info = replace(kernel, step_size=log_h.exp()).step(state, target, generator)
        missing = kernel.goal - info.acceptance.double().mean()
        shortfall = shortfall + (missing - shortfall) / (t + DELAY)
        log_h = centre - math.sqrt(t) / SHRINKAGE * shortfall
        log_mean = log_mean + t**-DECAY * (log_h - log_mean)
        if moments is not None and t > steps // 2:  # the first steps are still on their way
            moments.add(state.position)
    return replace(kernel, step_size=log_mean.exp()), state


class _Moments:
    """Running mean and variance of positions over chains and steps (Welford)."""

    def __init__(self, like: Tensor):
        self.n = 0
        self.mean = torch.zeros(like.shape[1], dtype=torch.float64, device=like.device)
        self.squares = torch.zeros_like(self.mean)
        self.dtype = like.dtype

    def add(self, positions: Tensor) -> None:
        positions = positions.double()
        m, mean = len(positions), positions.mean(0)
        apart = mean - self.mean
        self.squares += (positions - mean).square().sum(0) + apart.square() * (self.n * m / (self.n + m))
        self.mean += apart * (m / (self.n + m))
        self.n += m

    def deviations(self) -> Tensor:
        """Standard deviations (d,), drawn a little towards their typical size, with geometric mean one."""
        variance = self.squares / max(self.n - 1, 1)
        typical = variance.mean().clamp(min=1e-12)
        log_s = 0.5 * torch.log((self.n * variance + 5 * typical) / (self.n + 5))
        return torch.exp(log_s - log_s.mean()).to(self.dtype)
