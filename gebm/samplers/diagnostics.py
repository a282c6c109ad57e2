"""Have the chains mixed, and what are their draws worth: R-hat, effective sample size, Monte-Carlo standard error.

Each function takes draws (chains, draws, ...) of any number of scalar quantities and gives one float64 for each, (...),
without waiting for the device. The arrays of a `Chain` have the draws first: pass `chain.positions.transpose(0, 1)`.

Definitions: Vehtari, Gelman, Simpson, Carpenter and Bürkner, Rank-normalization, folding, and localization: an improved
R-hat for assessing convergence of MCMC, Bayesian Analysis 16 (2021). Edge cases are ArviZ's: a quantity with a NaN
among its draws, and any quantity of chains of fewer than four draws, gives NaN.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from gebm.errors import InputError

__all__ = ["ess", "mcse_mean", "rhat"]

MIN_DRAWS = 4  # two in each half of a chain


def ess(draws: Tensor) -> Tensor:
    """Bulk effective sample size: how many independent draws would give the mean of the normal scores as precisely.

    Chains are split, and those at different levels lower it. S draws count for S where they are constant, and for more
    where their autocorrelation is negative, at most S log10 S.

    Arguments:
        draws: (chains, draws, ...).

    Raises:
        InputError: draws without a chain and a draw dimension.

    Example:

        >>> ess(torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))) > 3000  # of 4,000 independent draws
        tensor(True)
    """
    if _too_few(draws, chains=1):
        return _nan(draws)
    return _ess(_normal_scores(_half_chains(draws)))


def rhat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat: 1 where the chains agree; Vehtari et al. trust draws below 1.01.

    R-hat^2 is the variance of the pooled draws over the mean variance within half a chain; the larger value is taken of
    the normal scores of the draws (bulk) and of their distances from the median (folded). One chain and constant draws
    give NaN; chains that stand still, each somewhere else, infinity.

    Arguments:
        draws: (chains, draws, ...).

    Raises:
        InputError: draws without a chain and a draw dimension.

    Example:

        >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
        >>> bool(rhat(draws) < 1.01), bool(rhat(draws + torch.arange(4)[:, None]) > 1.5)
        (True, True)
    """
    if _too_few(draws, chains=2):
        return _nan(draws)
    halves = _half_chains(draws)
    bulk = _rhat(_normal_scores(halves))
    folded = _rhat(_normal_scores((halves - _median(halves)).abs()))
    # Two values, half the draws each, are all as far from the median: the folded R-hat is NaN and does not count.
    return torch.where(folded > bulk, folded, bulk)


def mcse_mean(draws: Tensor) -> Tensor:
    """Monte-Carlo standard error of the mean over all draws: their standard deviation over the root of their ESS.

    The effective sample size is that of the draws themselves: without rank normalisation, of split chains.

    Arguments:
        draws: (chains, draws, ...).

    Raises:
        InputError: draws without a chain and a draw dimension.
    """
    if _too_few(draws, chains=1):
        return _nan(draws)
    return draws.double().flatten(0, 1).std(0) / _ess(_half_chains(draws)).sqrt()


def _too_few(draws: Tensor, chains: int) -> bool:
    """Whether the shape alone leaves nothing to estimate."""
    if draws.ndim < 2:
        raise InputError(
            f"draws have shape {tuple(draws.shape)}, need (chains, draws, ...); pass draws[None] for one chain"
        )
    return draws.shape[0] < chains or draws.shape[1] < MIN_DRAWS or draws.numel() == 0


def _nan(draws: Tensor) -> Tensor:
    return draws.new_full(draws.shape[2:], math.nan, dtype=torch.float64)


# Below, quantities come first: half chains are (..., chains, draws).


def _half_chains(draws: Tensor) -> Tensor:
    """Both halves of every chain, as chains; of an odd number of draws the middle one is left out."""
    draws = draws.double().movedim((0, 1), (-2, -1))
    # One NaN spoils its quantity, also where the halves leave it out.
    draws = draws.masked_fill(draws.isnan().any(-1, keepdim=True).any(-2, keepdim=True), math.nan)
    half = draws.shape[-1] // 2
    return torch.cat([draws[..., :half], draws[..., -half:]], -2)


def _normal_scores(chains: Tensor) -> Tensor:
    """Normal quantiles at (rank - 3/8) / (S + 1/4), rank from 1 to S among the draws of all chains.

    Ties share their mean rank: a chain that rejects proposals is full of them.
    """
    ordered, order = chains.flatten(-2).sort(-1)
    size = ordered.shape[-1]
    rank = torch.arange(1, size + 1, dtype=ordered.dtype, device=ordered.device)
    rises = ordered[..., 1:] != ordered[..., :-1]
    lowest = torch.where(pad(rises, (1, 0), value=True), rank, 0).cummax(-1).values
    highest = torch.where(pad(rises, (0, 1), value=True), rank, size).flip(-1).cummin(-1).values.flip(-1)
    scores: Tensor = torch.special.ndtri(((lowest + highest) / 2 - 3 / 8) / (size + 1 / 4))
    scores = scores.masked_fill(ordered.isnan(), math.nan)
    return scores.scatter(-1, order, scores).view_as(chains)


def _median(chains: Tensor) -> Tensor:
    ordered = chains.flatten(-2).sort(-1).values
    size = ordered.shape[-1]
    median: Tensor = (ordered[..., (size - 1) // 2] + ordered[..., size // 2]) / 2
    return median[..., None, None]


def _rhat(chains: Tensor) -> Tensor:
    n = chains.shape[-1]
    within = chains.var(-1).mean(-1)
    return (chains.mean(-1).var(-1) / within + (n - 1) / n).sqrt()


def _ess(chains: Tensor) -> Tensor:
    """Number of draws over their autocorrelation time, summed over Geyer's initial positive and monotone sequence."""
    n, size = chains.shape[-1], chains.shape[-2] * chains.shape[-1]
    covariance = _autocovariance(chains)
    within = covariance[..., :1] * n / (n - 1)
    pooled = covariance[..., :1] + chains.mean(-1).var(-1, keepdim=True)
    correlation = 1 - (within - covariance) / pooled
    correlation[..., 0] = (pooled / pooled)[..., 0]  # 1, or NaN

    # A reversible chain's sums over lags 2k and 2k + 1 are positive and fall with k. Estimates are trusted up to the
    # first that is not positive, and made to fall; of the pair after them the even lag alone is used.
    pairs = torch.unflatten(correlation[..., : 2 * max(1, (n - 1) // 2)], -1, (-1, 2))
    even, sums = pairs[..., 0], pairs.sum(-1)
    trusted = sums.cummin(-1).values[..., :-1].clamp(min=0)
    after = (trusted > 0).sum(-1, keepdim=True)
    last = even.gather(-1, after)
    last = torch.where(sums.gather(-1, after) >= 0, last, last.clamp(min=0))
    time = (2 * trusted.sum(-1, keepdim=True) + last - 1).clamp(min=1 / math.log10(size)).squeeze(-1)

    spread = chains.amax((-2, -1)) - chains.amin((-2, -1))
    return torch.where(spread < torch.finfo(chains.dtype).resolution, size, size / time)


def _autocovariance(chains: Tensor) -> Tensor:
    """Autocovariances (..., draws) at lags 0, 1, ..., divided by the number of draws: the mean over the chains."""
    n = chains.shape[-1]
    centred = chains - chains.mean(-1, keepdim=True)
    # Padding to 2n keeps the ends apart; the mean over chains commutes with the inverse transform, done once.
    spectrum = torch.fft.rfft(centred, 2 * n)
    power = (spectrum.real.square() + spectrum.imag.square()).mean(-2)
    covariances: Tensor = torch.fft.irfft(power, 2 * n)[..., :n]
    return covariances / n
