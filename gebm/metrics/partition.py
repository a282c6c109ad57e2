r"""KALE and the log-partition of a model, on data it may not have seen.

log Z of a target is :math:`\log \int e^{-U}`; for a latent posterior, whose U holds the prior's constant, that is
:math:`A(\beta) = \log E_G[e^{-\beta E}]`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gebm.arguments import check_whole
from gebm.errors import InputError
from gebm.importance import LogPartition, importance_sampling, relative_ess
from gebm.latent import Target, one_a_row
from gebm.model import GEBM
from gebm.networks.common import evaluating
from gebm.samplers import SMC, Kernel, UnfinishedError, run
from gebm.samplers.smc import log_weights_of
from gebm.samplers.tempering import Tempered, excess

__all__ = [
    "KALEEstimate", "LogPartition", "annealed_importance_sampling", "base_energies", "energies", "evaluate_kale",
    "importance_sampling", "path", "relative_ess", "sequential_monte_carlo",
]  # fmt: skip


def path(steps: int) -> list[float]:
    """Places t from 0 to 1 of an annealing path, quadratic: dense near the prior, where the weights change most."""
    check_whole(1, steps=steps)
    return [(k / steps) ** 2 for k in range(steps + 1)]


def annealed_importance_sampling(
    target: Target,
    kernel: Kernel,
    start: Tensor,
    places: Sequence[float],
    *,
    reverse: bool = False,
    generator: torch.Generator | None = None,
) -> LogPartition:
    r"""Annealed importance sampling along the path from the prior to the target (Neal 2001), see `Tempered`.

    Forward, from prior draws, log-mean-exp of :math:`\log w = -\sum_k (t_k - t_{k-1}) \phi(z_{k-1})` is on average
    below log Z. In reverse, from exact draws of the target, minus the log-mean-exp of the same sum upwards is on
    average above it: the two bracket the truth (Grosse, Ghahramani and Adams 2015).

    Arguments:
        target: potential and gradient.
        kernel: one that leaves its target exactly invariant, one step of it at each place.
        start: draws (N, d) from the prior N(0, I); in reverse, exact draws from the target.
        places: t from 0 to 1, rising; `path(steps)`.

    Raises:
        InputError: a kernel that is not exact.
    """
    if not (kernel.exact and kernel.moves):
        raise InputError(f"{type(kernel).__name__}: annealing needs a kernel whose every step is exact: MALA, HMC, ...")
    order = list(reversed(places)) if reverse else list(places)
    state = kernel.init(start, target)
    log_weights = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    for here, there in pairwise(order):
        log_weights -= (there - here) * excess(state).double()
        state, _ = Tempered(kernel, there).step(state, target, generator)
    estimate = importance_sampling(log_weights)
    return estimate._replace(value=-estimate.value) if reverse else estimate


def sequential_monte_carlo(
    target: Target,
    start: Tensor,
    *,
    step_size: float = 0.1,
    ess: float = 0.99,
    max_steps: int = 1000,
    generator: torch.Generator | None = None,
) -> LogPartition:
    """log Z by `SMC(step_size, ess)` from prior draws (N, d), as many steps as it takes.

    Raises:
        UnfinishedError: `max_steps` were not enough.
    """
    check_whole(1, max_steps=max_steps)
    kernel = SMC(step_size, ess)
    state = kernel.init(start, target)
    for _ in range(0, max_steps, 10):
        state = run(kernel, target, state, 10, generator=generator).state
        if float(state.extra["t"]) >= 1:
            return importance_sampling(log_weights_of(state))
    kernel.finished(state)
    raise UnfinishedError("smc: no step was allowed; give max_steps")


class KALEEstimate(NamedTuple):
    """KALE of an energy on one set of data, from n_fake base samples.

    fenchel: with the learnt c; donsker_varadhan: with the Monte-Carlo log-partition, the larger of the two;
    log_partition: that estimate, log-mean-exp(-E), with its standard error; c: the learnt one; relative_ess, pareto_k:
    of the importance weights exp(-E) of the base samples; warning: as `LogPartition.warning` has it.
    """

    fenchel: float
    donsker_varadhan: float
    log_partition: float
    log_partition_se: float
    c: float
    relative_ess: float
    n_real: int
    n_fake: int
    pareto_k: float | None
    warning: str


def energies(energy: nn.Module, samples: Tensor, batch_size: int = 1000) -> Tensor:
    """Energies (N,) in float64 on the CPU of samples (N, ...), without gradients, in evaluation mode."""
    with evaluating(energy):
        batches = torch.split(samples, batch_size)
        return torch.cat([one_a_row(energy(x), x, "the energy").double().cpu() for x in batches])


def base_energies(model: GEBM, n: int, generator: torch.Generator | None = None, batch_size: int = 1000) -> Tensor:
    """Energies (n,) in float64 on the CPU of n base samples, both networks in evaluation mode."""
    check_whole(1, n=n, batch_size=batch_size)
    with evaluating(model.base):
        sizes = [min(batch_size, n - i) for i in range(0, n, batch_size)]
        return torch.cat([energies(model.energy, model.generate(size, generator)) for size in sizes])


def evaluate_kale(e_real: Tensor, e_fake: Tensor, c: float) -> KALEEstimate:
    r"""KALE in both forms from energies of data (N,) and of base samples (M,).

    .. math::
        F = -\overline{E(x)} - c - \overline{e^{-(E(y) + c)}} + 1, \qquad
        DV = -\overline{E(x)} - \log \overline{e^{-E(y)}} \ge F
    """
    partition = importance_sampling(-e_fake)
    return KALEEstimate(
        fenchel=float(-e_real.mean() - c - math.exp(partition.value - c) + 1),
        donsker_varadhan=float(-e_real.mean() - partition.value),
        log_partition=partition.value,
        log_partition_se=partition.se,
        c=c,
        relative_ess=partition.relative_ess,
        n_real=len(e_real),
        n_fake=len(e_fake),
        pareto_k=partition.pareto_k,
        warning=partition.warning,
    )
