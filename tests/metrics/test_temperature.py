"""The beta that held-out data ask for, where it is known: E = -c log dP/dG, whose best beta is 1 / c."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from gebm.latent import GaussianPrior, LatentPosterior
from gebm.metrics.temperature import BetaFit, fit_beta


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class LogRatio(nn.Module):
    """c times minus the log-density ratio of P = N(m, s^2 I) to the base N(0, I)."""

    def __init__(self, c: float, m: float, s: float, d: int):
        super().__init__()
        self.c = nn.Parameter(torch.tensor(c, dtype=torch.float64))
        self.m, self.s, self.d = m, s, d

    def forward(self, x: Tensor) -> Tensor:
        ratio = (x - self.m).square().sum(1) / self.s**2 - x.square().sum(1)
        return self.c * (0.5 * ratio + self.d * math.log(self.s))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return self.m + self.s * torch.randn(n, self.d, generator=generator, dtype=torch.float64)


class Mixture(nn.Module):
    """The same with c = 1 for two modes of unlike height, between which no particle moves."""

    centres = torch.tensor([[2.0, 0.0, 0.0], [-2.0, 0.0, 0.0]], dtype=torch.float64)
    s = torch.tensor([0.3, 0.6], dtype=torch.float64)

    def __init__(self):
        super().__init__()
        self.c = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        squares = (x[:, None] - self.centres).square().sum(2) / (2 * self.s**2)
        return -torch.logsumexp(math.log(0.5) - 3 * self.s.log() - squares, 1) - 0.5 * x.square().sum(1)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(2, (n,), generator=generator)
        noise = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        return self.centres[which] + self.s[which, None] * noise


def fit(energy: nn.Module, n_real: int, n: int, seed: int, **limits: float) -> BetaFit | None:
    generator = seeded(seed)
    posterior = LatentPosterior(GaussianPrior(getattr(energy, "d", 3)), nn.Identity(), energy, beta=7.0)
    with torch.no_grad():
        e_real = energy(energy.draw(n_real, generator))
    return fit_beta(e_real, posterior, n, generator=generator, **limits)


@pytest.mark.parametrize("c", [1e-2, 1.0, 30.0, 1e5])
@pytest.mark.parametrize("m, s, d", [(0.5, 0.7, 2), (0.8, 0.6, 10)])
def test_finds_the_true_beta(c, m, s, d):
    result = fit(LogRatio(c, m, s, d), 3000, 1000, seed=1)
    assert 0 < c * result.se < 0.08 and abs(result.beta - 1 / c) < 3 * result.se
    divergence = d / 2 * (s**2 - 1 + m**2 - 2 * math.log(s))  # KL(P | base), the largest likelihood there is
    spread = math.sqrt(d / 2 * (s**2 - 1) ** 2 + d * (m * s) ** 2)  # of log dP/dG under P
    assert abs(result.likelihood - divergence) < 4 * spread / math.sqrt(1000)
    assert (result.n_real, result.n_fake) == (3000, 1000)


@pytest.mark.parametrize(
    "energy, n_real, n",
    [(LogRatio(1.0, 0.5, 0.7, 4), 5000, 200), (LogRatio(1.0, 0.5, 0.7, 2), 100, 300), (Mixture(), 10000, 200)],
    ids=["of the particles", "of the data", "of trapped particles"],
)
def test_standard_error_is_the_spread_of_repetitions(energy, n_real, n):
    repeats = 40
    fits = [fit(energy, n_real, n, seed) for seed in range(repeats)]
    chi_square = (repeats - 1) * np.var([f.beta for f in fits], ddof=1) / np.mean([f.se**2 for f in fits])
    # Systematic resampling makes it a little smaller.
    low, high = stats.chi2.ppf([0.0005, 0.9995], repeats - 1)
    assert 0.9 * low < chi_square < high
    assert abs(np.mean([f.beta for f in fits]) - 1) < 4 * np.mean([f.se for f in fits]) / math.sqrt(repeats) + 0.005


def test_where_importance_weights_fail():
    """P far from the base: the weights of base samples have next to no effective size at the best beta."""
    result = fit(LogRatio(1.0, 2.5, 0.5, 10), 3000, 1000, seed=0)
    assert result.relative_ess < 3 / 1000  # of 1000 draws, less than three
    assert result.se < 0.03 and abs(result.beta - 1) < 3 * result.se


def test_curve():
    result = fit(LogRatio(2.0, 0.5, 0.7, 5), 5000, 3000, seed=0)
    beta, likelihood, energy, size = np.array(result.curve).T
    assert (np.diff(beta) > 0).all() and beta[0] == 0 and beta[-1] >= 1.5 * result.beta > beta[-2]
    assert likelihood[0] == 0 and size[0] == pytest.approx(1) and (np.diff(size) < 0).all()
    # Concave: its slope, the model's mean energy less that of the data, falls but for noise.
    slope = np.diff(likelihood) / np.diff(beta)
    assert (np.diff(slope) < 0.02 * np.ptp(slope)).all()
    assert (np.diff(energy) < 0.02 * np.ptp(energy)).all()
    generator = seeded(0)
    module = LogRatio(2.0, 0.5, 0.7, 5)
    data_mean = float(module(module.draw(5000, generator)).detach().mean())
    middle = (energy[1:] + energy[:-1]) / 2 - data_mean
    assert np.abs(slope - middle).max() < 0.02 * np.ptp(slope)
    # Its maximum is at the beta reported, where the mean energies meet.
    above = (energy > data_mean).argmin() + 1
    assert result.beta == pytest.approx(np.interp(-data_mean, -energy[:above], beta[:above]))
    best = beta[likelihood.argmax()]
    assert abs(best - result.beta) <= np.diff(beta).max() and likelihood.max() == result.likelihood
    assert size[beta <= result.beta][-1] >= result.relative_ess >= size[beta >= result.beta][0]


def test_curve_ends_at_the_largest_beta():
    result = fit(LogRatio(1.0, 0.5, 0.7, 2), 3000, 1000, seed=0, largest=1.2)
    beta = [row[0] for row in result.curve]
    assert beta[-1] == pytest.approx(1.2) and (np.diff(beta) > 0).all() and abs(result.beta - 1) < 3 * result.se


def test_data_of_higher_energy_than_the_base_ask_for_none():
    energy = LogRatio(1.0, 0.5, 0.7, 2)
    posterior = LatentPosterior(GaussianPrior(2), nn.Identity(), energy)
    result = fit_beta(torch.full((100,), 50.0), posterior, 200, generator=seeded(0))
    assert result.beta == 0 and result.likelihood == 0 and result.relative_ess == pytest.approx(1)
    assert len(result.curve) == 1 and result.se >= 0


@pytest.mark.parametrize("limits", [{"largest": 5.0}, {"max_steps": 20}])
def test_likelihood_that_rises_for_ever(limits):
    """Data of an energy below all that the base can make."""
    energy = LogRatio(1.0, 0.5, 0.7, 2)
    posterior = LatentPosterior(GaussianPrior(2), nn.Identity(), energy)
    assert fit_beta(torch.full((100,), -50.0), posterior, 200, generator=seeded(0), **limits) is None


def test_flat_energy_says_nothing():
    class Flat(LogRatio):
        def forward(self, x):
            return 0 * x.sum(1)

    result = fit(Flat(1.0, 0.0, 1.0, 2), 100, 200, seed=0)
    assert result.beta == 0 and result.se == math.inf
