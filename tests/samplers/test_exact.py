"""Kernels with an accept step leave their target as it is: exact draws, one step, and they are exact draws still."""

import math

import pytest
import torch
from scipy import integrate, stats

from gebm.latent import value_and_grad
from gebm.samplers import HMC, MALA, IndependentMetropolis, RandomWalk, run

DRAWS = 60_000
CRITICAL = 1.95  # Kolmogorov-Smirnov at level 0.001, times sqrt(nm / (n + m))

KERNELS = {
    "mala": MALA(0.3),
    "hmc": HMC(0.4, leapfrog=3),
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


def departure(name: str, law, scale: float) -> float:
    """Largest scaled KS statistic over coordinates and potential, of draws moved by a kernel aimed at scale * U."""
    start = law.draw(DRAWS, seeded(1))
    target = value_and_grad(lambda z: scale * law.potential(z))
    moved = run(KERNELS[name], target, start, STEPS.get(name, 1), generator=seeded(2)).state.position
    fresh = law.draw(DRAWS, seeded(3))
    views = [(moved[:, i], fresh[:, i]) for i in range(start.shape[1])]
    views.append((law.potential(moved), law.potential(fresh)))
    return max(stats.ks_2samp(a.numpy(), b.numpy()).statistic for a, b in views) * math.sqrt(DRAWS / 2)


@pytest.mark.parametrize("law", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_one_step_leaves_the_target(name, law):
    assert departure(name, TARGETS[law], 1.0) < CRITICAL


@pytest.mark.parametrize("law", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_one_step_shows_a_kernel_aimed_ten_percent_off(name, law):
    assert departure(name, TARGETS[law], 1.1) > CRITICAL


def test_double_well():
    """2 (x^2 - 1)^2 + x / 2, where the reference's MALA gives a mean of -0.273."""
    potential = lambda x: 2 * (x**2 - 1) ** 2 + x / 2  # noqa: E731
    z, mean, above = (
        integrate.quad(lambda x: f(x) * math.exp(-potential(x)), -4, 4)[0]
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
