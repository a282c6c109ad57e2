import math

import numpy as np
import pytest
import torch

from gebm.metrics.partition import base_energies, energies, evaluate_kale, relative_ess
from gebm.model import GEBM, Architecture


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "weights, expected",
    [([1, 1, 1, 1], 1), ([1, 0, 0, 0], 1 / 4), ([1, 1, 0, 0], 1 / 2), ([3, 1], 16 / 20), ([2.0], 1)],
)
def test_relative_ess_known(weights, expected):
    log_weights = torch.tensor(weights, dtype=torch.float32).log()
    for shift in (0.0, -3000.0, 3000.0):
        assert relative_ess(log_weights + shift) == pytest.approx(expected, rel=1e-3)


def test_relative_ess_of_a_shifted_gaussian():
    """Weights dN(m, 1) / dN(0, 1) have 1 / E[w^2] = exp(-m^2)."""
    m, n = 0.5, 200_000
    x = normal(n)
    w = torch.exp(m * x - m**2 / 2)
    se = math.exp(-m * m) * float(w.square().std()) / float(w.square().mean()) / math.sqrt(n)
    assert abs(relative_ess(m * x) - math.exp(-m * m)) < 4 * se


def test_evaluate_kale_direct():
    e_real, e_fake, c = normal(50, 0), normal(70, 1) + 2, -1.3
    result = evaluate_kale(e_real, e_fake, c)
    real, w = e_real.numpy(), np.exp(-e_fake.numpy())
    assert result.fenchel == pytest.approx(-real.mean() - c - (w * np.exp(-c)).mean() + 1)
    assert result.donsker_varadhan == pytest.approx(-real.mean() - np.log(w.mean()))
    assert result.log_partition == pytest.approx(np.log(w.mean()))
    assert result.log_partition_se == pytest.approx(w.std(ddof=1) / w.mean() / np.sqrt(70))
    assert result.relative_ess == pytest.approx(w.sum() ** 2 / (70 * (w**2).sum()))
    assert (result.c, result.n_real, result.n_fake) == (c, 50, 70)
    assert result.donsker_varadhan >= result.fenchel


def test_standard_error_is_that_of_repetitions():
    repeats, n = 500, 400
    results = [evaluate_kale(torch.zeros(1), 0.7 * normal(n, seed), 0.0) for seed in range(repeats)]
    spread = np.std([r.log_partition for r in results], ddof=1)
    stated = np.mean([r.log_partition_se for r in results])
    assert abs(spread / stated - 1) < 4 / math.sqrt(2 * repeats)


@pytest.fixture(scope="module")
def model() -> GEBM:
    torch.manual_seed(0)
    return GEBM.build(Architecture("dcgan", "sngan", (1, 8, 8), latent_dim=4, width=0.1)).train()


def test_energies_in_batches(model):
    x = torch.randn(7, 1, 8, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    e = energies(model.energy, x, batch_size=3)
    assert e.shape == (7,) and e.dtype == torch.float64 and not e.requires_grad
    torch.testing.assert_close(e, energies(model.energy, x))
    base_energies(model, 5, torch.Generator().manual_seed(0))
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # nothing was trained by looking


def test_base_energies(model):
    e = base_energies(model, 7, torch.Generator().manual_seed(0))
    x = model.eval().generate(7, torch.Generator().manual_seed(0)).detach()
    torch.testing.assert_close(e, energies(model.energy, x))
    model.train()
    parts = base_energies(model, 7, torch.Generator().manual_seed(0), batch_size=4)
    assert parts.shape == (7,) and not parts.requires_grad
