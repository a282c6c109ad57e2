import math

import numpy as np
import pytest
import torch
from scipy import stats

from gebm.data import TOYS, load_table
from gebm.data.toy import flower_energy, flower_surface
from gebm.seeds import stream

LEVEL = 1e-3  # of every test below; the seeds are fixed
WITH_DENSITY = [name for name, toy in TOYS.items() if toy.log_density]


def draw(name, n, seed=0):
    return TOYS[name].sample(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TOYS)
def test_samples(name):
    toy = TOYS[name]
    x = draw(name, 1000)
    assert toy.name == name and x.shape == (1000, toy.dim) and x.dtype == torch.float32
    assert draw(name, 1000).equal(x) and not draw(name, 1000, seed=1).equal(x)
    low, high = torch.tensor(toy.bounds).T
    assert len(toy.bounds) == toy.dim and ((x > low) & (x < high)).all(1).float().mean() > 0.99


def cells(name, n=40, fine=8):
    """Probabilities of the n x n cells of the plot by midpoints, their edges, and the mass in all."""
    (a, b), (c, d) = TOYS[name].bounds
    k = n * fine
    x, y = (low + (torch.arange(k, dtype=torch.float64) + 0.5) * (high - low) / k for low, high in ((a, b), (c, d)))
    log_density = torch.cat([TOYS[name].log_density(part) for part in torch.cartesian_prod(x, y).split(20_000)])
    mass = (log_density.exp() * (b - a) * (d - c) / k**2).reshape(n, fine, n, fine).sum((1, 3)).numpy()
    return mass, [np.linspace(a, b, n + 1), np.linspace(c, d, n + 1)]


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_samples_follow_the_density(name):
    mass, edges = cells(name)
    assert 0.99 < mass.sum() < 1 + 1e-6
    n = 50_000
    counts, _, _ = np.histogram2d(*draw(name, n).double().numpy().T, bins=edges)
    often = n * mass > 10
    observed = np.append(counts[often], n - counts[often].sum())
    expected = np.append(n * mass[often], n - n * mass[often].sum())
    assert stats.chisquare(observed, expected).pvalue > LEVEL
    # The same test sees points 5 % too far out.
    counts, _, _ = np.histogram2d(*(1.05 * draw(name, n)).double().numpy().T, bins=edges)
    observed = np.append(counts[often], n - counts[often].sum())
    assert stats.chisquare(observed, expected).pvalue < 1e-6


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_log_density_is_differentiable_and_keeps_precision(name):
    x = draw(name, 100).requires_grad_()
    (gradient,) = torch.autograd.grad(TOYS[name].log_density(x).sum(), x)
    assert gradient.isfinite().all()
    exact = TOYS[name].log_density(x.detach().double())
    assert (TOYS[name].log_density(x).detach() - exact).abs().max() < 1e-3
    assert TOYS[name].log_density(torch.full((1, 2), 50.0)).item() < -1000  # far away, and finite
    assert TOYS[name].log_density(torch.full((1, 2), 50.0)).isfinite().all()


def test_line():
    x = draw("line", 200_000).double()
    t = (x[:, 0] + 2) / 4
    torch.testing.assert_close(x[:, 1], torch.sin(2 * math.pi * t), atol=1e-5, rtol=0)
    assert stats.kstest(t.numpy(), lambda t: np.clip(t, 0, 1) ** 3).pvalue > LEVEL


def on_the_sphere(n=400):
    """Directions (n^2, 3) and weights that average over the sphere: Gauss-Legendre in height, equal steps in angle."""
    height, weight = np.polynomial.legendre.leggauss(n)
    angle = (np.arange(n) + 0.5) * 2 * np.pi / n
    height, angle = (a.ravel() for a in np.meshgrid(height, angle, indexing="ij"))
    side = np.sqrt(1 - height**2)
    directions = np.stack([side * np.cos(angle), side * np.sin(angle), height], 1)
    return torch.from_numpy(directions), torch.from_numpy(np.repeat(weight / 2 / n, n))


def test_flower():
    u, weight = on_the_sphere()
    weight = weight * torch.exp(-flower_energy(flower_surface(u)))
    weight = weight / weight.sum()
    n = 50_000
    x = draw("flower", n).double()
    radius = x.norm(dim=1)
    drawn = x / radius[:, None]
    torch.testing.assert_close(flower_surface(drawn), x, atol=1e-4, rtol=0)  # all on the surface

    def statistics(u):
        x = flower_surface(u)
        return torch.cat([x, x.square(), u, u.square()[:, :2], flower_energy(x)[:, None], x.norm(dim=1)[:, None]], 1)

    found, exact = statistics(drawn), (weight[:, None] * statistics(u)).sum(0)
    z = (found.mean(0) - exact) / (found.std(0) / math.sqrt(n))
    assert z.abs().max() < stats.norm.isf(LEVEL / 2 / len(z))
    # The mass is uneven: uniform directions are far from it, by the same statistics.
    uniform = torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(0)).double())
    assert ((statistics(uniform).mean(0) - exact) / (found.std(0) / math.sqrt(n))).abs().max() > 50


def test_flower_has_the_stated_radius():
    axes = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(flower_surface(axes), 4 * axes)
    torch.testing.assert_close(flower_surface(-axes), 0 * axes)


@pytest.mark.parametrize("name", TOYS)
def test_as_a_table(name):
    data = load_table(f"toy:{name}", seed=7)
    assert data.shape == (TOYS[name].dim,) and data.name == f"toy:{name}" and data.log_det == 0
    assert [len(split) for split in (data.train, data.valid, data.test)] == [4050, 450, 500]
    assert np.array_equal(data.unwhiten(data.test), data.test)  # as they are
    assert np.array_equal(load_table(f"toy:{name}", seed=7).test, data.test)
    assert not np.array_equal(load_table(f"toy:{name}", seed=8).test, data.test)
    rows = np.concatenate([data.train, data.valid, data.test])
    samples = draw(name, 5000, seed=stream(7, "toy")).numpy()
    assert np.array_equal(np.sort(rows, axis=0), np.sort(samples, axis=0))
