import math

import pytest
import torch
from scipy import stats
from torch import nn

from gebm.errors import InputError
from gebm.latent import PRIORS, GaussianPrior, LatentPosterior, UniformPrior, value_and_grad

DIM = 3


class Quadratic(nn.Module):
    """E(x) = a.x + |x|^2 / 2, with one parameter."""

    def __init__(self, dim: int):
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 2, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a + 0.5 * x.square().sum(1)


def posterior(prior: str = "gaussian", beta: float = 1.0, dtype: torch.dtype = torch.float64) -> LatentPosterior:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(DIM, 4), nn.Tanh(), nn.Linear(4, 2))
    return LatentPosterior(PRIORS[prior](DIM), base.to(dtype), Quadratic(2).to(dtype), beta)


def positions(n: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("prior", PRIORS)
def test_gradient_against_finite_differences(prior):
    target, u, step = posterior(prior, beta=3.0), positions(), 1e-5
    value, gradient = target(u)
    for i in range(DIM):
        e = torch.zeros(DIM, dtype=u.dtype)
        e[i] = step
        slope = (target(u + e)[0] - target(u - e)[0]) / (2 * step)
        torch.testing.assert_close(gradient[:, i], slope, rtol=1e-7, atol=1e-7)
    assert not value.requires_grad and not gradient.requires_grad


@pytest.mark.parametrize("prior", PRIORS)
def test_potential_is_prior_plus_beta_times_energy(prior):
    u = positions()
    flat, one, hot = (posterior(prior, beta)(u)[0] for beta in (0.0, 1.0, 100.0))
    normal = torch.tensor(stats.multivariate_normal([0] * DIM).logpdf(u.numpy()))
    torch.testing.assert_close(flat, -normal)
    e = posterior(prior).energies(u)
    torch.testing.assert_close(one - flat, e)
    torch.testing.assert_close(hot - flat, 100 * e)
    torch.testing.assert_close(posterior(prior).at(100.0)(u)[0], hot)


def test_energies_are_those_of_the_decoded_samples():
    target, u = posterior("uniform"), positions()
    x = target.decode(u)
    torch.testing.assert_close(x, target.base(torch.erf(u / 2**0.5)))
    torch.testing.assert_close(target.energies(u), target.energy(x))
    assert not x.requires_grad and not target.energies(u).requires_grad


def test_parameters_get_no_gradient_and_no_grad_is_no_obstacle():
    target = posterior()
    with torch.no_grad():
        value, gradient = target(positions())
    assert value.shape == (5,) and gradient.shape == (5, DIM) and gradient.abs().min() > 0
    assert all(p.grad is None for network in (target.base, target.energy) for p in network.parameters())


def test_value_and_grad_of_any_potential():
    precision = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    target = value_and_grad(lambda z: 0.5 * torch.einsum("ni,ij,nj->n", z, precision, z))
    z = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], requires_grad=True)
    value, gradient = target(z)
    torch.testing.assert_close(value, torch.tensor([4.0, 0.875]))
    torch.testing.assert_close(gradient, z.detach() @ precision)
    assert not value.requires_grad and not gradient.requires_grad and z.grad is None and z.is_leaf


def test_start_has_the_networks_dtype_and_the_seed_decides():
    for dtype in (torch.float32, torch.float64):
        target = posterior(dtype=dtype)
        start = target.start(4, torch.Generator().manual_seed(2))
        assert start.shape == (4, DIM) and start.dtype == dtype
        assert torch.equal(start, target.start(4, torch.Generator().manual_seed(2)))


# Priors


@pytest.mark.parametrize("prior", PRIORS)
def test_log_prob_is_summed_and_matches_scipy(prior):
    z = torch.linspace(-0.9, 0.9, 4 * DIM, dtype=torch.float64).reshape(4, DIM)
    exact = {"gaussian": stats.norm(), "uniform": stats.uniform(-1, 2)}[prior].logpdf(z.numpy()).sum(1)
    torch.testing.assert_close(PRIORS[prior](DIM).log_prob(z), torch.tensor(exact), rtol=1e-14, atol=0)
    assert PRIORS[prior](DIM).log_prob(z.float()).dtype == torch.float32


def test_uniform_is_nothing_outside():
    z = torch.tensor([[0.0, 1.0], [0.0, 1.0001], [-2.0, 2.0]])
    assert UniformPrior(2).log_prob(z).tolist() == [pytest.approx(-2 * math.log(2)), -math.inf, -math.inf]


@pytest.mark.parametrize("prior, law", [("gaussian", stats.norm()), ("uniform", stats.uniform(-1, 2))])
def test_push_forward(prior, law):
    """Samples, and Gaussian coordinates mapped by T, follow the prior, coordinate by coordinate."""
    p = PRIORS[prior](2)
    generator = torch.Generator().manual_seed(3)
    u = torch.randn(20_000, 2, generator=generator)
    for z in (p.sample(20_000, generator), p.from_gaussian(u)):
        assert all(stats.kstest(column, law.cdf).pvalue > 1e-3 for column in z.T.numpy())
        assert abs(stats.pearsonr(*z.T.numpy()).statistic) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("prior", PRIORS)
def test_density_transforms(prior):
    """log eta(T(u)) + log |det dT/du| is the standard Gaussian density: so U is the right potential in u."""
    p, u = PRIORS[prior](DIM), positions().requires_grad_()
    slope = torch.autograd.grad(p.from_gaussian(u).sum(), u)[0]
    transformed = p.log_prob(p.from_gaussian(u)) + slope.log().sum(1)
    torch.testing.assert_close(transformed, GaussianPrior(DIM).log_prob(u))


@pytest.mark.parametrize("prior", PRIORS)
def test_sample_takes_dtype_and_seed(prior):
    like = torch.empty(0, dtype=torch.float64)
    a, b = (PRIORS[prior](DIM).sample(4, torch.Generator().manual_seed(1), like) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.float64 and a.shape == (4, DIM)


def test_plain_functions_will_do():
    """A base and an energy that are no modules: E(G(z)) = |2z|^2 / 2 at beta 3 has the potential 13 |z|^2 / 2."""
    posterior = LatentPosterior(GaussianPrior(2), lambda z: 2 * z, lambda x: x.square().sum(1) / 2, beta=3.0).frozen()
    z = posterior.start(5, torch.Generator().manual_seed(0))
    value, gradient = posterior(z)
    torch.testing.assert_close(value, 6.5 * z.square().sum(1) + math.log(2 * math.pi))
    torch.testing.assert_close(gradient, 13 * z)
    assert posterior.exact and posterior.decode(z).equal(2 * z)


def test_tf32_is_off_while_potentials_are_computed():
    """And what the user had set comes back."""
    seen = []
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn

    def energy(x):
        seen.append([backend.fp32_precision for backend in backends])
        return x.sum(1)

    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32"
        LatentPosterior(GaussianPrior(2), lambda z: z, energy)(torch.zeros(1, 2))
        assert seen == [["ieee"] * 3] and [backend.fp32_precision for backend in backends] == ["tf32"] * 3
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


def test_energies_of_another_shape_are_refused():
    """(N, 1), as a critic often gives, would be broadcast to (N, N) and count the prior N times."""
    posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: x[:, :1])
    for target in (posterior, value_and_grad(lambda z: z[:, :1])):
        with pytest.raises(InputError, match=r"gives \(3, 1\) for 3 rows, not \(3,\): squeeze it"):
            target(torch.zeros(3, 2))
    with pytest.raises(InputError, match="not to plain functions"):
        posterior.frozen(torch.bfloat16)
