"""Descent, transport, and Langevin on a sphere and in a box, against closed forms."""

import math

import pytest
import torch
from scipy import stats

from gebm.latent import value_and_grad
from gebm.samplers import GradientDescent, OptimalTransport, SphereLangevin, TruncatedLangevin, run

CHAINS = 50_000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_descent_halves_the_distance_of_a_quadratic():
    target = value_and_grad(lambda z: 0.5 * z.square().sum(1))
    start = torch.randn(5, 3, generator=seeded(0), dtype=torch.float64)
    chain = run(GradientDescent.from_gamma(1.0), target, start, 10)
    torch.testing.assert_close(chain.state.position, start / 2**10)


def mean_cosine(h: float, concentration: float) -> tuple[float, float]:
    """Mean of mu . z / |z| in three dimensions under exp(concentration mu . z / |z|), and its standard error."""
    slope = concentration / math.sqrt(3)
    target = value_and_grad(lambda z: -slope * z[:, 0])
    start = torch.randn(CHAINS, 3, generator=seeded(0), dtype=torch.float64)
    z = run(SphereLangevin(h), target, start, round(12 / h), generator=seeded(1)).state.position
    torch.testing.assert_close(z.square().sum(1), torch.full((CHAINS,), 3.0, dtype=torch.float64))
    cosine = z[:, 0] / math.sqrt(3)
    return float(cosine.mean()), float(cosine.std()) / math.sqrt(CHAINS)


def test_sphere_converges_to_von_mises_fisher_at_first_order():
    exact = 1 / math.tanh(2.0) - 1 / 2.0
    coarse, fine = (mean_cosine(h, 2.0) for h in (0.4, 0.2))
    errors, se = (coarse[0] - exact, fine[0] - exact), math.hypot(coarse[1], 2 * fine[1])
    assert abs(errors[0]) > 4 * coarse[1], "the coarse step must show its bias"
    assert abs(errors[0] - 2 * errors[1]) < 4 * se + 0.35 * abs(errors[0])
    tiny = mean_cosine(0.05, 2.0)
    assert abs(tiny[0] - exact) < 4 * tiny[1] + abs(errors[1]) / 2


def box_moments(h: float, bound: float) -> torch.Tensor:
    """Squares (N,) of chains of N(0.5, 1) in [-bound, bound]."""
    target = value_and_grad(lambda z: 0.5 * (z - 0.5).square().sum(1))
    start = torch.randn(CHAINS, 1, generator=seeded(0), dtype=torch.float64)
    z = run(TruncatedLangevin(h, bound), target, start, round(4 / h), generator=seeded(1)).state.position
    assert z.abs().max() <= bound
    return z[:, 0]


def test_box_converges_to_the_truncated_gaussian_at_first_order():
    exact = stats.truncnorm(-1.5, 0.5, loc=0.5).mean()
    values = [box_moments(h, 1.0) for h in (0.2, 0.1, 0.01)]
    errors = [float(z.mean()) - exact for z in values]
    se = [float(z.std()) / math.sqrt(CHAINS) for z in values]
    assert abs(errors[0]) > 4 * se[0], "the coarse step must show its bias"
    assert abs(errors[0] - 2 * errors[1]) < 4 * math.hypot(se[0], 2 * se[1]) + 0.35 * abs(errors[0])
    assert abs(errors[2]) < 4 * se[2] + abs(errors[1]) / 5


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (1.25, 0.75), (-1.5, -0.5), (3.5, -0.5), (5.0, 1.0)])
def test_reflection(start, end):
    kernel = TruncatedLangevin(0.1, 1.0)
    state = kernel.init(torch.tensor([[start]]), value_and_grad(lambda z: z.sum(1)))
    assert state.position.item() == pytest.approx(end)


def test_transport_solves_its_problem():
    """phi = 3 (z_1 - 2)^2 / 2 in two dimensions, where K over pairs is nearly the true constant: nothing is worth its
    way. With a third of it, some go and some stay, all in local minima on the circle through their start.
    """
    target = value_and_grad(lambda z: 0.5 * z.square().sum(1) + 1.5 * (z[:, 0] - 2).square())
    starts = torch.randn(40, 2, generator=seeded(0), dtype=torch.float64)
    kernel = OptimalTransport(0.01)
    state = kernel.init(starts, target)

    def phi(z):
        return 1.5 * (z[:, 0] - 2).square()

    points = torch.cat([starts, -starts])
    slopes = (phi(points)[:, None] - phi(points)).abs() / (points[:, None] - points).norm(dim=2)
    k = float(slopes[slopes.isfinite()].max())
    assert state.extra["lipschitz"].unique().item() == pytest.approx(k)
    assert torch.equal(run(kernel, target, state, 100).state.position, starts)

    state = state._replace(extra={**state.extra, "lipschitz": state.extra["lipschitz"] / 3})
    end = run(kernel, target, state, 3000).state.position
    torch.testing.assert_close(end.norm(dim=1), starts.norm(dim=1))
    cost = lambda z: (z - starts).norm(dim=1) + 3 * phi(z) / k  # noqa: E731
    for angle in (-0.1, -0.03, 0.03, 0.1):
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
        assert (cost(end @ turn) >= cost(end) - 1e-6).all()
    stayed = (end == starts).all(1)
    assert 0.1 < stayed.double().mean() < 0.9 and (cost(end) <= cost(starts) + 1e-9).all()


def test_transport_does_not_see_beta():
    def target(beta: float):
        return value_and_grad(lambda z: 0.5 * z.square().sum(1) + beta * z.sin().sum(1))

    start = torch.randn(20, 3, generator=seeded(0), dtype=torch.float64)
    one, ten = (run(OptimalTransport(0.02), target(beta), start, 50).state.position for beta in (1.0, 10.0))
    torch.testing.assert_close(one, ten)
    assert not torch.equal(one, start)
