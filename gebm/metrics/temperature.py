"""The inverse temperature that held-out data ask for."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gebm.latent import LatentPosterior
from gebm.metrics.partition import relative_ess
from gebm.samplers import SMC
from gebm.samplers.smc import family_totals
from gebm.samplers.tempering import excess

__all__ = ["BetaFit", "fit_beta"]

BEYOND = 1.5  # how far past the best beta the curve goes, so that its maximum can be seen


class BetaFit(NamedTuple):
    """The beta of greatest generalised log-likelihood.

    beta, with its standard error; likelihood: L(beta) in nats; relative_ess: of exp(-beta E) over base samples; curve:
    rows (beta, L(beta), mean energy of the model, relative ESS), rising; n_real, n_fake: numbers of data and particles.
    """

    beta: float
    se: float
    likelihood: float
    relative_ess: float
    curve: list[tuple[float, float, float, float]]
    n_real: int
    n_fake: int


def fit_beta(
    e_real: Tensor,
    posterior: LatentPosterior,
    n: int = 2000,
    *,
    largest: float = 1000.0,
    max_steps: int = 1000,
    generator: torch.Generator | None = None,
) -> BetaFit | None:
    r"""Maximise the generalised log-likelihood over beta >= 0.

    .. math:: L(\beta) = -\beta\, \overline{E(x)} - A(\beta), \qquad
              L'(\beta) = E_{Q_\beta}[E] - \overline{E(x)}, \qquad A(\beta) = \log E_G[e^{-\beta E}]

    L is concave, so its maximum is where the model's mean energy, which falls with beta, meets that of the data (Arbel
    et al. 2021: the generalised likelihood of beta E). A population of prior draws is carried from beta = 0 upwards by
    `SMC`, which gives both at every beta on the way, also where importance weights of base samples fail. If E is
    -log(dP/dG) / b, the best beta is b. The standard error is that of L' over its slope, the variance of E under the
    model.

    Arguments:
        e_real: energies (N,) of data that the energy was not trained on.
        posterior: of the model, frozen for speed; its own beta plays no part.
        n: number of particles.
        largest, max_steps: where to give up.

    Returns:
        The fit; beta 0 where the data's energies are the higher ones; None where L still rises at the end.
    """
    e_real = e_real.double()
    mean = float(e_real.mean())
    target, kernel = posterior.at(largest), SMC(0.1)
    state = kernel.init(target.start(n, generator), target)
    e_base = excess(state).double() / largest
    curve, best = [], None
    for _ in range(max_steps):
        beta = largest * float(state.extra["t"])
        energies, weights = excess(state).double() / largest, state.extra["weights"]
        model_mean = float((weights * energies).sum())
        log_z = float(state.extra["log_z"])
        curve.append((beta, -beta * mean - log_z, model_mean, relative_ess(-beta * e_base)))
        if best is None and model_mean <= mean:
            variance = float((weights * (energies - model_mean).square()).sum())
            # The error of the model's mean is that of its families, as in `log_partition_of`.
            families = family_totals(weights * (energies - model_mean), state.extra["ancestor"])
            noise = float(e_real.var()) / len(e_real) + float(families.square().sum())
            best, se = _crossing(curve, mean), noise**0.5 / variance if variance > 0 else math.inf
        if (best is not None and beta >= BEYOND * best) or beta >= largest:
            break
        state, _ = kernel.step(state, target, generator)
    if best is None:
        return None
    likelihood = max(row[1] for row in curve)
    return BetaFit(best, se, likelihood, relative_ess(-best * e_base), curve, len(e_real), n)


def _crossing(curve: list[tuple[float, float, float, float]], mean: float) -> float:
    """The beta, between the last two rows, at which the model's mean energy is that of the data."""
    if len(curve) == 1:
        return 0.0
    (low, _, above, _), (high, _, below, _) = curve[-2:]
    return low + (high - low) * (above - mean) / (above - below)
