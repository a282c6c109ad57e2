import numpy as np
import pytest
import torch
from torch import Tensor

from gebm.errors import InputError
from gebm.metrics import neighbours
from gebm.metrics.neighbours import Neighbours


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def metrics(real: Tensor, samples: Tensor) -> list[float]:
    """Precision, recall, density, coverage."""
    return [float(values.mean()) for values in Neighbours(real).pseudo_values(samples)]


def directly(real: Tensor, samples: Tensor) -> list[float]:
    """The same from the definitions."""

    def distances(x: Tensor, y: Tensor) -> np.ndarray:
        return np.linalg.norm(x.numpy()[:, None] - y.numpy()[None], axis=2)

    real_radii, radii = (np.sort(distances(x, x), 1) for x in (real, samples))  # the first is to itself
    apart = distances(real, samples)
    manifold, dense = apart <= real_radii[:, 3, None], apart <= real_radii[:, 5, None]
    recalled = apart <= radii[None, :, 3]
    return [manifold.any(0).mean(), recalled.any(1).mean(), dense.sum() / 5 / len(samples), dense.any(1).mean()]


@pytest.mark.parametrize("chunk", [1, 2500, 10**6])
@pytest.mark.parametrize("scale, shift", [(1.0, 0), (0.6, 0.5), (1.5, 1e3)])
def test_against_the_definitions(chunk, scale, shift, monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    real, samples = normal(120, 4) + shift, scale * normal(120, 4, seed=1) + shift + 0.3
    expected = directly(real, samples)
    assert min(expected) > 0.1 and max(expected[0], expected[1], expected[3]) < 1
    assert metrics(real, samples) == pytest.approx(expected, rel=1e-12)


def test_identical_sets():
    x = normal(200, 8)
    shuffled = x[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert metrics(x, shuffled) == pytest.approx([1, 1, 6 / 5, 1])  # a ball holds its centre and five others


def test_repeated_images_have_balls_of_no_radius():
    x = normal(20, 3).repeat_interleave(10, 0) + 1e4
    assert metrics(x, x) == pytest.approx([1, 1, 2, 1])


def test_disjoint_sets():
    assert metrics(normal(50, 3), normal(50, 3, seed=1) + 100) == [0, 0, 0, 0]


def test_a_subset_is_precise_and_recalls_what_it_covers():
    grid = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0)).double()
    real = torch.cat([grid + 1000 * cluster for cluster in range(4)])
    offsets = torch.tensor([[0, 0], [0.2, 0], [0, 0.2], [0.2, 0.2]], dtype=torch.float64)
    samples = (grid[:, None] + offsets).flatten(0, 1)  # a quarter of the real rows and points between them
    precision, recall, density, coverage = metrics(real, samples)
    assert [precision, recall, coverage] == pytest.approx([1, 0.25, 0.25]) and density > 1
    assert metrics(samples, real)[:2] == pytest.approx([0.25, 1])  # the quarter is right, and finds all


def test_as_many_real_rows_as_samples():
    real, samples = normal(300, 5), normal(100, 5, seed=1)
    assert metrics(real, samples) == metrics(real[:100], samples)
    few = metrics(samples, real)  # 100 of the 300, always the same
    assert few == metrics(samples, real) and few != metrics(samples, real[:100])


def test_pseudo_values_are_means_and_influences():
    """The influence of a sample on coverage: what is lost without it, the real balls as they are."""
    real, samples = normal(80, 3), 0.8 * normal(80, 3, seed=1)
    values = Neighbours(real).pseudo_values(samples)
    order = np.random.RandomState(0).permutation(80)
    apart = torch.cdist(real, samples[order])
    dense = apart <= torch.cdist(real, real).sort(1).values[:, 5, None]
    without = torch.stack([dense[:, torch.arange(80) != j].any(1).double().mean() for j in range(80)])
    loss = dense.any(1).double().mean() - without
    assert loss.max() > 0
    torch.testing.assert_close(values.coverage, values.coverage.mean() + 80 * (loss - loss.mean()))
    torch.testing.assert_close(values.density, dense.double().sum(0) / 5)


def test_intervals_cover_the_expected_value():
    """95 % intervals over samples for a fixed reference."""
    n, trials = 150, 60
    of_real = Neighbours(normal(n, 8))
    values = [of_real.pseudo_values(1.1 * normal(n, 8, seed) + 0.1) for seed in range(1, trials + 1)]
    for results in zip(*values):
        means = torch.stack([v.mean() for v in results])
        errors = torch.stack([v.std() / n**0.5 for v in results])
        # a true coverage of 0.95 falls below 0.86 in 0.2 % of such trials
        assert ((means - means.mean()).abs() <= 1.96 * errors).double().mean() >= 0.86
        assert errors.mean() < 2 * means.std()


def test_few_images():
    with pytest.raises(InputError, match="at least 6 images of each set, got 5"):
        metrics(normal(9, 2), normal(5, 2))
