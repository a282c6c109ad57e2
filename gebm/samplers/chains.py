"""The one loop that runs every sampler."""

import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gebm.arguments import check_whole
from gebm.errors import InputError
from gebm.latent import Target
from gebm.samplers.base import Kernel, State, check_target
from gebm.samplers.tempering import Tempered

__all__ = ["Chain", "NonFiniteError", "run"]

log = logging.getLogger("gebm")

_warned: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


class NonFiniteError(FloatingPointError):
    """A chain reached a potential or gradient that is not finite, in a kernel without a reject step."""


class Chain(NamedTuple):
    """Result of `run`.

    state: the last state; positions (draws, N, d) and potentials (draws, N): those of the thinned states; acceptance
    (N,): mean acceptance over the steps; nonfinite (N,): number of proposals whose potential or gradient was not
    finite, all of them rejected.
    """

    state: State
    positions: Tensor
    potentials: Tensor
    acceptance: Tensor
    nonfinite: Tensor


def run(
    kernel: Kernel,
    target: Target,
    start: Tensor | State,
    steps: int,
    *,
    schedule: Callable[[int], float] | None = None,
    beta_schedule: Callable[[int], float] | None = None,
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
        schedule: step number (from 0) -> factor on the kernel's step size; None: constant.
        beta_schedule: step number -> factor in [0, 1] on the inverse temperature, see `Tempered`; None: one.
        thin: keep every thin-th position (0: none), so that memory is flat in the number of steps.
        first_step: number of the first step, for a run that goes on.
        callback: called with (steps done, state) after every step.
        generator: source of all randomness.

    Raises:
        NonFiniteError: a potential or gradient was not finite; names the first step where.
        ValueError: an exact kernel on a target of lower precision (`LatentPosterior.frozen`).
        InputError: a beta schedule for a kernel that takes none, or that leaves [0, 1]; a number that is not whole, or
            negative.

    Example:

        >>> from gebm.latent import value_and_grad
        >>> from gebm.samplers import MALA
        >>> target = value_and_grad(lambda z: (z - 3).square().sum(1) / 2)
        >>> generator = torch.Generator().manual_seed(0)
        >>> chain = run(MALA(0.5), target, torch.zeros(500, 2), 100, thin=10, generator=generator)
        >>> chain.positions.shape, round(float(chain.state.position.mean()))
        (torch.Size([10, 500, 2]), 3)
    """
    check_whole(0, steps=steps, thin=thin, first_step=first_step)
    check_target(kernel, target)
    _warn_of_training(target)
    if beta_schedule is not None and not kernel.anneals:
        raise InputError(f"{type(kernel).__name__}: works at one beta, or sets it itself; leave beta_schedule out")
    state = start if isinstance(start, State) else kernel.init(start, target)
    acceptance = torch.zeros(len(state.position), device=state.position.device)
    nonfinite = torch.zeros(len(state.position), dtype=torch.long, device=state.position.device)
    first_bad = torch.full((), -1, device=state.position.device)
    bad_start = _is_bad(state)
    positions, potentials = [], []
    factors = None
    for t in range(first_step, first_step + steps):
        if (wanted := (schedule and schedule(t), beta_schedule and beta_schedule(t))) != factors:
            factors, current = wanted, _at(kernel, *wanted)
        state, info = current.step(state, target, generator)
        acceptance += info.acceptance
        nonfinite += ~info.finite
        first_bad = torch.where(_is_bad(state) & (first_bad < 0), torch.where(bad_start, first_step, t + 1), first_bad)
        if thin and (t + 1) % thin == 0:
            positions.append(state.position)
            potentials.append(state.potential)
        # Reading the flag waits for the device, so it is read rarely; a chain that went bad stays bad.
        if t + 1 == first_step + steps or (t + 1) % 100 == 0:
            _raise_if_bad(kernel, first_bad, first_step)
        if callback is not None:
            callback(t + 1, state)
    return Chain(
        state,
        torch.stack(positions) if positions else state.position.new_empty(0, *state.position.shape),
        torch.stack(potentials) if potentials else state.potential.new_empty(0, *state.potential.shape),
        acceptance / max(steps, 1),
        nonfinite,
    )


def _warn_of_training(target: Target) -> None:
    """Once for each network that is not the same function at each step."""
    for part in ("base", "energy"):
        network = getattr(target, part, None)
        if not isinstance(network, nn.Module) or network in _warned:
            continue
        if any(isinstance(layer, _BatchNorm | _DropoutNd) and layer.training for layer in network.modules()):
            _warned.add(network)
            log.warning(
                "run: the %s is in training mode: its batch norms move their statistics and its dropout draws anew at "
                "each step; put it into eval(), or sample from posterior.frozen()", part,
            )  # fmt: skip


def _at(kernel: Kernel, step_factor: float | None, beta_factor: float | None) -> Kernel | Tempered:
    """The kernel with a factor on its step size and one on its inverse temperature."""
    if step_factor is not None:
        kernel = replace(kernel, step_size=kernel.step_size * step_factor)
    if beta_factor is not None and not 0 <= beta_factor <= 1:
        raise InputError(f"beta_schedule must give factors from 0 to 1, not {beta_factor}")
    return kernel if beta_factor is None or beta_factor == 1.0 else Tempered(kernel, beta_factor)


def _is_bad(state: State) -> Tensor:
    finite = torch.isfinite(state.potential).all()
    return ~finite if state.gradient is None else ~(finite & torch.isfinite(state.gradient).all())


def _raise_if_bad(kernel: Kernel, first_bad: Tensor, first_step: int) -> None:
    if (step := int(first_bad)) < 0:
        return
    where = "at the start" if step == first_step else f"at step {step}"
    mend = "use other starts" if step == first_step else "use a smaller step size or a lower beta"
    raise NonFiniteError(f"{type(kernel).__name__}: potential or gradient not finite {where}; {mend}")
