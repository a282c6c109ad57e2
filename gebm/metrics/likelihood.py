r"""Likelihoods of a model on a base with a density: :math:`\log q(x) = \log g(x) - E(x) - A`."""

from typing import NamedTuple

import torch
from torch import Tensor

from gebm.metrics.partition import LogPartition, base_energies, importance_sampling
from gebm.model import GEBM
from gebm.networks.common import HasDensity, evaluating

__all__ = ["NLL", "base_log_prob", "log_partition", "model_log_prob", "nll"]


class NLL(NamedTuple):
    """Mean negative log-likelihood in nats over n rows, with the standard error of that mean over rows."""

    value: float
    se: float
    n: int


def log_partition(model: GEBM, n: int, generator: torch.Generator | None = None, batch: int = 10_000) -> LogPartition:
    """A = log E_G[exp(-E)]: exact (standard error 0, n 0) where the energy knows it, else from n base samples.

    A mean of exponentials falls short of A on average, by about half its squared standard error, so the likelihood
    that comes of it is that much too good.
    """
    known = getattr(model.energy, "known_log_partition", None)
    if known is not None:
        return LogPartition(float(known), 0.0, 1.0, 0)
    return importance_sampling(-base_energies(model, n, generator, batch))


def base_log_prob(model: GEBM, x: Tensor, batch: int = 10_000) -> Tensor:
    """Log-density of the base alone, rows (N, d) -> (N,), in float64 on the CPU."""
    base = model.base
    assert isinstance(base, HasDensity)
    with evaluating(base):
        return torch.cat([base.log_prob(part).double().cpu() for part in torch.split(x, batch)])


def model_log_prob(model: GEBM, x: Tensor, log_partition: float, batch: int = 10_000) -> Tensor:
    """Log-density of the model, rows (N, d) -> (N,), in float64 on the CPU."""
    with evaluating(model):
        return torch.cat([model.log_prob(part, log_partition).double().cpu() for part in torch.split(x, batch)])


def nll(log_prob: Tensor) -> NLL:
    """Mean and standard error of the negative log-likelihood of rows (N,), N > 1.

    Example:

        >>> nll(torch.tensor([-1.0, -2.0, -3.0]))
        NLL(value=2.0, se=0.57..., n=3)
    """
    return NLL(float(-log_prob.mean()), float(log_prob.std() / len(log_prob) ** 0.5), len(log_prob))
