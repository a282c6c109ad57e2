"""Kernels with an accept step leave their target as it is: exact draws, one step, and they are exact draws still."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import integrate, stats

from gebm.latent import GaussianPrior, LatentPosterior, value_and_grad
from gebm.samplers import HMC, MALA, SIR, IndependentMetropolis, Langevin, RandomWalk, run

DRAWS = 60_000
CRITICAL = 1.95  # Kolmogorov-Smirnov at level 0.001, times sqrt(nm / (n + m))

KERNELS = {
    "mala": MALA(0.3),
    "mala, scaled": MALA(0.3, scale=0.8),
    "hmc": HMC(0.4, leapfrog=3),
    "hmc, scaled": HMC(0.4, leapfrog=3, scale=0.8),
    "mh": RandomWalk(0.15),
    "imh": IndependentMetropolis(),
}
STEPS = {"mh": 20}  # a random walk moves so little in one that aiming it wrongly hardly shows


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Gaussian:
    """Correlated, in ten dimensions."""

    def __init__(self, d: int = 10):
        self.cov = 0.4 ** (torch.arange(d)[:, None] - torch.arange(d)).abs().double()
        self.precision = torch.linalg.inv(self.cov)

    def potential(self, z):
        return 0.5 * (z @ self.precision * z).sum(1)

    def draw(self, n, generator):
        noise = torch.randn(n, len(self.cov), generator=generator, dtype=torch.float64)
        return noise @ torch.linalg.cholesky(self.cov).T


class Mixture:
    """0.7 N((-1, 0), 0.6^2) + 0.3 N((1.5, 0.5), 0.6^2)."""

    centres = torch.tensor([[-1.0, 0.0], [1.5, 0.5]], dtype=torch.float64)
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)

    def potential(self, z):
        squares = (z[:, None] - self.centres).square().sum(2) / (2 * 0.36)
        return -torch.logsumexp(self.weights.log() - squares, 1)

    def draw(self, n, generator):
        which = (torch.rand(n, generator=generator, dtype=torch.float64) > 0.7).long()
        return self.centres[which] + 0.6 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


class Banana:
    """z1 ~ N(0, 1), z2 | z1 ~ N(z1^2 / 2, 1)."""

    def potential(self, z):
        return 0.5 * z[:, 0].square() + 0.5 * (z[:, 1] - 0.5 * z[:, 0].square()).square()

    def draw(self, n, generator):
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return torch.stack([noise[:, 0], noise[:, 1] + 0.5 * noise[:, 0].square()], 1)


TARGETS = {"gaussian": Gaussian(), "mixture": Mixture(), "banana": Banana()}


def departure(name: str, law, scale: float, dtype: torch.dtype = torch.float64) -> float:
    """Largest scaled KS statistic over coordinates and potential, of draws moved by a kernel aimed at scale * U."""
    start = law.draw(DRAWS, seeded(1)).to(dtype)
    target = value_and_grad(lambda z: scale * law.potential(z.double()).to(dtype))
    moved = run(KERNELS[name], target, start, STEPS.get(name, 1), generator=seeded(2)).state.position
    fresh = law.draw(DRAWS, seeded(3))
    views = [(moved[:, i], fresh[:, i]) for i in range(start.shape[1])]
    views.append((law.potential(moved.double()), law.potential(fresh)))
    return max(stats.ks_2samp(a.numpy(), b.numpy()).statistic for a, b in views) * math.sqrt(DRAWS / 2)


@pytest.mark.parametrize("law", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_step_leaves_the_target(name, law, dtype):
    assert departure(name, TARGETS[law], 1.0, dtype) < CRITICAL


@pytest.mark.parametrize("law", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_one_step_shows_a_kernel_aimed_ten_percent_off(name, law):
    assert departure(name, TARGETS[law], 1.1) > CRITICAL


class Tenfold(torch.nn.Module):
    """A base G(z) = 10 z, as images of one pixel a channel."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(10.0))

    def forward(self, z):
        return (self.scale * z)[:, :, None, None]


class Bowl(torch.nn.Module):
    """E(x) = |x|^2 / 200."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1 / 200))

    def forward(self, x):
        return self.scale * x.flatten(1).square().sum(1)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_step_leaves_a_latent_posterior(name, dtype):
    """beta 100 on E(G(z)) = |z|^2 / 2: the posterior is N(0, I / 101), in each precision exact kernels may have."""
    target = LatentPosterior(GaussianPrior(2), Tenfold().to(dtype), Bowl().to(dtype), beta=100.0).frozen()
    kernel = KERNELS[name]
    if kernel.gamma_power:
        kernel = replace(kernel, step_size=kernel.step_size / 101**kernel.gamma_power)
    start = torch.randn(DRAWS, 2, generator=seeded(1), dtype=dtype) / 101**0.5
    moved = run(kernel, target, start, STEPS.get(name, 1), generator=seeded(2)).state.position
    assert (moved != start).any(1).double().mean() > 0.005
    for column in moved.double().T:
        assert stats.kstest(column.numpy() * 101**0.5, "norm").pvalue > 1e-3


@pytest.mark.parametrize("name", KERNELS)
def test_exact_kernels_refuse_low_precision(name):
    target = LatentPosterior(GaussianPrior(2), Tenfold(), Bowl(), beta=100.0).frozen(torch.bfloat16)
    with pytest.raises(ValueError, match="exact only with float32 potentials"):
        run(KERNELS[name], target, torch.zeros(3, 2), 1)
    run(Langevin(1e-4), target, torch.zeros(3, 2), 1)


def test_double_well():
    """2 (x^2 - 1)^2 + x / 2, where the reference's MALA gives a mean of -0.273."""
    potential = lambda x: 2 * (x**2 - 1) ** 2 + x / 2  # noqa: E731
    z, mean, above = (
        integrate.quad(lambda x, f=f: f(x) * math.exp(-potential(x)), -4, 4)[0]
        for f in (lambda x: 1.0, lambda x: x, lambda x: float(x > 0))
    )
    mean, above = mean / z, above / z
    assert mean == pytest.approx(-0.4028, abs=1e-4) and above == pytest.approx(0.2958, abs=1e-4)
    target = value_and_grad(lambda x: potential(x[:, 0]))
    chains = 4000
    for kernel in (MALA(0.1), HMC(0.3, leapfrog=4)):
        start = torch.randn(chains, 1, generator=seeded(0), dtype=torch.float64)
        end = run(kernel, target, start, 400, generator=seeded(1)).state.position[:, 0].numpy()
        assert abs(end.mean() - mean) < 3 * end.std() / math.sqrt(chains)
        assert abs((end > 0).mean() - above) < 3 * math.sqrt(above * (1 - above) / chains)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_proposals_that_are_not_finite_are_rejected(name, bad):
    target = value_and_grad(lambda z: torch.where(z[:, 0] > 0, bad, 0.5 * z.square().sum(1)))
    start = -torch.rand(500, 2, generator=seeded(0), dtype=torch.float64) - 0.01
    chain = run(KERNELS[name], target, start, 20, generator=seeded(1))
    assert (chain.state.position[:, 0] <= 0).all() and chain.state.potential.isfinite().all()
    assert 0 < chain.nonfinite.sum() < 20 * 500 and chain.nonfinite.dtype == torch.long
    assert 0 < chain.acceptance.mean() < 1


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_a_rejected_chain_keeps_its_own_gradient(name):
    kernel = {"mala": MALA(0.5), "hmc": HMC(0.9, leapfrog=4)}[name]
    law = Gaussian()
    target = value_and_grad(law.potential)
    state, info = kernel.step(kernel.init(law.draw(1000, seeded(0)), target), target, seeded(1))
    assert 0.01 < info.accepted.double().mean() < 0.99
    potential, gradient = target(state.position)
    torch.testing.assert_close(state.potential, potential)
    torch.testing.assert_close(state.gradient, gradient)


def test_gammas():
    assert MALA.from_gamma(0.2).step_size == pytest.approx(0.1)
    assert HMC.from_gamma(0.04, leapfrog=3) == HMC(0.4, 3)
    assert RandomWalk.from_gamma(0.2).step_size == pytest.approx(0.1)


def test_importance_resampling_draws_the_target():
    """Many prior draws a chain on N(0.8, 0.5^2), whose weights are bounded: exact up to one over their number."""
    target = value_and_grad(lambda z: 2 * (z[:, 0] - 0.8).square())
    chains = 20_000
    start = torch.randn(chains, 1, generator=seeded(0), dtype=torch.float64)
    few, many = (run(SIR(), target, start, steps, generator=seeded(1)) for steps in (1, 400))
    end = many.state.position[:, 0].numpy()
    assert stats.kstest(end, stats.norm(0.8, 0.5).cdf).pvalue > 1e-3
    assert stats.kstest(few.state.position[:, 0].numpy(), stats.norm(0.8, 0.5).cdf).pvalue < 1e-6
    # The sum of weights estimates Z of exp(-U) over the normalised prior.
    weights = torch.exp(many.state.extra["log_weights"]) / 401
    exact = math.sqrt(2 * math.pi) * 0.5
    assert abs(weights.mean() - exact) < 4 * weights.std() / math.sqrt(chains)


def test_importance_resampling_passes_over_what_is_not_finite():
    target = value_and_grad(lambda z: torch.where(z[:, 0] > 0, math.nan, 0.5 * z.square().sum(1)))
    start = torch.randn(500, 2, generator=seeded(0), dtype=torch.float64)
    state = SIR().init(-start.abs(), target)
    assert (run(SIR(), target, state, 30, generator=seeded(1)).state.position[:, 0] <= 0).all()


def test_a_chain_that_starts_where_nothing_is_finite_can_leave():
    target = value_and_grad(lambda z: torch.where(z[:, 0] > 9, math.nan, 0.5 * z.square().sum(1)))
    start = torch.full((50, 2), 10.0, dtype=torch.float64)
    assert run(IndependentMetropolis(), target, start, 1, generator=seeded(0)).state.potential.isfinite().all()
    with pytest.raises(FloatingPointError, match="MALA: .* not finite at the start; use other starts"):
        run(MALA(0.1), target, start, 5, generator=seeded(0))
