r"""KALE and the log-partition of a model, on data it may not have seen."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gebm.networks.common import evaluating
from gebm.objectives import log_mean_exp

__all__ = ["KALEEstimate", "base_energies", "energies", "evaluate_kale", "relative_ess"]


class KALEEstimate(NamedTuple):
    """KALE of an energy on one set of data, from n_fake base samples.

    fenchel: with the learnt c; donsker_varadhan: with the Monte-Carlo log-partition, the larger of the two;
    log_partition: that estimate, log-mean-exp(-E), with its standard error; c: the learnt one; relative_ess: that of
    the importance weights exp(-E) of the base samples, in (0, 1].
    """

    fenchel: float
    donsker_varadhan: float
    log_partition: float
    log_partition_se: float
    c: float
    relative_ess: float
    n_real: int
    n_fake: int


def energies(energy: nn.Module, samples: Tensor, batch_size: int = 1000) -> Tensor:
    """Energies (N,) in float64 on the CPU of samples (N, ...), without gradients, in evaluation mode."""
    with evaluating(energy):
        return torch.cat([energy(batch).double().cpu() for batch in samples.split(batch_size)])


def base_energies(model: nn.Module, n: int, generator: torch.Generator | None = None, batch_size: int = 1000) -> Tensor:
    """Energies (n,) in float64 on the CPU of n base samples, both networks in evaluation mode."""
    with evaluating(model.base):
        sizes = [min(batch_size, n - i) for i in range(0, n, batch_size)]
        return torch.cat([energies(model.energy, model.generate(size, generator)) for size in sizes])


def evaluate_kale(e_real: Tensor, e_fake: Tensor, c: float) -> KALEEstimate:
    r"""KALE in both forms from energies of data (N,) and of base samples (M,).

    .. math::
        F = -\overline{E(x)} - c - \overline{e^{-(E(y) + c)}} + 1, \qquad
        DV = -\overline{E(x)} - \log \overline{e^{-E(y)}} \ge F

    The standard error of the log-partition is that of the mean weight, by the delta method.
    """
    log_z = log_mean_exp(-e_fake)
    weights = torch.exp(-e_fake - log_z)  # of mean one
    return KALEEstimate(
        fenchel=float(-e_real.mean() - c - torch.exp(log_z - c) + 1),
        donsker_varadhan=float(-e_real.mean() - log_z),
        log_partition=float(log_z),
        log_partition_se=float(weights.std() / len(weights) ** 0.5),
        c=c,
        relative_ess=relative_ess(-e_fake),
        n_real=len(e_real),
        n_fake=len(e_fake),
    )


def relative_ess(log_weights: Tensor) -> float:
    r"""Effective sample size of importance weights over their number, :math:`(\sum w)^2 / (n \sum w^2)`, in (0, 1]."""
    w = torch.softmax(log_weights.double(), 0)
    return float(1 / (len(w) * w.square().sum()))
