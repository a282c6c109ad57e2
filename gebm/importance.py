"""Means of importance weights: log-partitions with their errors, and whether these can be trusted."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["LogPartition", "importance_sampling", "pareto_k", "relative_ess", "reliable_below"]

LEAST = 5  # largest weights, of which a tail can be fitted


class LogPartition(NamedTuple):
    """An estimate of log Z with its standard error (by the delta method), from n draws or particles; n = 0: exact.

    relative_ess, pareto_k: of the weights it is the mean of, see `relative_ess` and `pareto_k`; of a population one
    weight for each start, that of all its descendants. None: not known.
    """

    value: float
    se: float
    relative_ess: float
    n: int
    pareto_k: float | None = None

    @property
    def warning(self) -> str:
        """Why the estimate and its error cannot be trusted, in words; empty where nothing speaks against them.

        Measured with log-normal weights, 200 runs each of 200 to 20,000 draws. At relative ESS 0.1 and above: 0.91 to
        0.98 of the intervals of two standard errors held the truth, warned of were at most 6 % of the runs (39 % at 200
        draws and ESS 0.1). At ESS 0.001: 0.65 to 0.85 held it, and 85 to 96 % were warned of. At ESS 5e-6: 0.46 to
        0.69, and all.
        """
        if not self.n or self.pareto_k is None or self.pareto_k <= (limit := reliable_below(self.n)):
            return ""
        k = f"{self.pareto_k:.2f}" if math.isfinite(self.pareto_k) else "not known"
        return (
            f"a few of the {self.n:,} weights decide this log-partition (Pareto k-hat {k}, reliable to {limit:.2f}): "
            "neither it nor its standard error can be trusted"
        )

    def summary(self) -> dict[str, Any]:
        """The fields with the warning, for JSON."""
        return {**self._asdict(), "warning": self.warning}


def importance_sampling(log_weights: Tensor) -> LogPartition:
    r"""log-mean-exp of log-weights (N,); with :math:`-\beta E` of base samples it estimates A(beta).

    Example:

        >>> e = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).double()
        >>> estimate = importance_sampling(-e)  # of log E exp(-e) = 1/2
        >>> abs(estimate.value - 0.5) < 4 * estimate.se
        True
    """
    log_weights = log_weights.double()
    n = len(log_weights)
    log_z = torch.logsumexp(log_weights, 0) - math.log(n)
    weights = torch.exp(log_weights - log_z)  # of mean one
    return LogPartition(
        float(log_z), float(weights.std() / n**0.5), relative_ess(log_weights), n, pareto_k(log_weights)
    )


def relative_ess(log_weights: Tensor) -> float:
    r"""Effective sample size of importance weights over their number, :math:`(\sum w)^2 / (n \sum w^2)`, in (0, 1].

    Example:

        >>> round(relative_ess(torch.zeros(10)), 3), round(relative_ess(torch.tensor([0.0, -100.0])), 3)
        (1.0, 0.5)
    """
    w = torch.softmax(log_weights.double(), 0)
    return float(1 / (len(w) * w.square().sum()))


def pareto_k(log_weights: Tensor) -> float:
    r"""Shape k of the generalized Pareto distribution fitted to the largest of the weights exp(log_weights), (N,).

    1/k is the number of moments that the weights have: at k > 1/2 their variance, at k > 1 their mean is infinite, as
    far as N draws can tell. Fitted to the excesses of the M largest weights over the next one, M the smaller of N / 5
    and 3 sqrt(N), by the empirical Bayes estimate of Zhang and Stephens (2009), with the weak prior at 1/2 of PSIS.

    Returns:
        k-hat; minus infinity where the largest weights are all equal, as of weights that are bounded from above;
        infinity where fewer than five weights lie above the rest, which is too few to tell; NaN where no weight is
        above zero or one is not a number.

    Reference: Vehtari, Simpson, Gelman, Yao and Gabry, *Pareto smoothed importance sampling*, JMLR 25(72), 2024, arXiv
    1507.02646, section 3 and appendix J; Zhang and Stephens, *A new and efficient estimation method for the generalized
    Pareto distribution*, Technometrics 51, 2009.

    Example:

        >>> u = torch.rand(100_000, generator=torch.Generator().manual_seed(0)).double()
        >>> 0.6 < pareto_k(-0.8 * u.log()) < 1.0  # weights u^-0.8, whose variance is infinite
        True
    """
    log_weights = log_weights.detach().double().cpu()
    n = len(log_weights)
    if not log_weights.max().isfinite():
        return math.nan
    size = int(min(n / 5, 3 * n**0.5))
    if size < LEAST:
        return math.inf
    largest = torch.exp(log_weights - log_weights.max()).topk(size + 1).values.flip(0)
    excess = largest[1:] - largest[0]
    excess = excess[excess > 0]
    if not len(excess):
        return -math.inf
    return _shape(excess) if len(excess) >= LEAST else math.inf


def reliable_below(n: int) -> float:
    """The k-hat up to which a mean of n weights and its error can be trusted: min(1 - 1 / log10(n), 0.7).

    Reference: Vehtari et al., as above, section 3.2.
    """
    return min(1 - 1 / math.log10(n), 0.7) if n > 10 else 0.0


def _shape(excess: Tensor) -> float:
    """Posterior mean of the shape of a generalized Pareto distribution of excesses (M,), rising and above zero."""
    m = len(excess)
    grid = 30 + int(m**0.5)
    theta = 1 - torch.sqrt(grid / (torch.arange(1, grid + 1, dtype=excess.dtype) - 0.5))
    theta = theta / (3 * excess[int(m / 4 + 0.5) - 1]) + 1 / excess[-1]
    k = torch.log1p(-theta[:, None] * excess).mean(1)
    weights = torch.softmax(m * (torch.log(-theta / k) - k - 1), 0)
    k_hat = torch.log1p(-(weights * theta).sum() * excess).mean()
    return float((m * k_hat + 10 * 0.5) / (m + 10))
