import math

import numpy as np
import pytest
import torch

from gebm.errors import InputError
from gebm.latent import value_and_grad
from gebm.metrics.partition import (
    LogPartition,
    annealed_importance_sampling,
    base_energies,
    energies,
    evaluate_kale,
    importance_sampling,
    path,
    sequential_monte_carlo,
)
from gebm.model import GEBM, Architecture
from gebm.samplers import HMC, MALA, SMC, KineticLangevin, Langevin, UnfinishedError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def test_evaluate_kale_direct():
    e_real, e_fake, c = normal(50), normal(70, seed=1) + 2, -1.3
    result = evaluate_kale(e_real, e_fake, c)
    real, w = e_real.numpy(), np.exp(-e_fake.numpy())
    assert result.fenchel == pytest.approx(-real.mean() - c - (w * np.exp(-c)).mean() + 1)
    assert result.donsker_varadhan == pytest.approx(-real.mean() - np.log(w.mean()))
    assert result.log_partition == pytest.approx(np.log(w.mean()))
    assert result.log_partition_se == pytest.approx(w.std(ddof=1) / w.mean() / np.sqrt(70))
    assert result.relative_ess == pytest.approx(w.sum() ** 2 / (70 * (w**2).sum()))
    assert (result.c, result.n_real, result.n_fake) == (c, 50, 70)
    partition = importance_sampling(-e_fake)
    assert (result.pareto_k, result.warning) == (partition.pareto_k, partition.warning)
    assert result.donsker_varadhan >= result.fenchel


def test_standard_error_is_that_of_repetitions():
    repeats, n = 500, 400
    results = [evaluate_kale(torch.zeros(1), 0.7 * normal(n, seed=seed), 0.0) for seed in range(repeats)]
    spread = np.std([r.log_partition for r in results], ddof=1)
    stated = np.mean([r.log_partition_se for r in results])
    assert abs(spread / stated - 1) < 4 / math.sqrt(2 * repeats)


# log Z of a Gaussian far from the prior, U = 2 |z - 1/2|^2, in closed form.

TARGET = value_and_grad(lambda z: 2 * (z - 0.5).square().sum(1))


def exact(d: int) -> float:
    return d / 2 * math.log(math.pi / 2)


def anneal(d: int, n: int, places: int, kernel, reverse: bool, seed: int) -> LogPartition:
    """From draws of the prior, in reverse of the target."""
    start = normal(n, d, seed=seed)
    start = 0.5 + start / 2 if reverse else start
    return annealed_importance_sampling(
        TARGET, kernel, start, path(places), reverse=reverse, generator=seeded(seed + 1000)
    )


def assert_calibrated(estimates: list[LogPartition], truth: float, largest_se: float):
    """The mean is within 3 standard errors of the truth, and these are small enough to tell."""
    mean = np.mean([e.value for e in estimates])
    se = np.sqrt(np.sum([e.se**2 for e in estimates])) / len(estimates)
    assert se < largest_se and abs(mean - truth) < 3 * se


@pytest.mark.parametrize("d, n, repeats, largest_se", [(2, 1000, 4, 0.02), (20, 2000, 2, 0.06), (100, 2000, 1, 0.2)])
def test_sequential_monte_carlo(d, n, repeats, largest_se):
    estimates = [
        sequential_monte_carlo(TARGET, normal(n, d, seed=seed), generator=seeded(1000 + seed))
        for seed in range(repeats)
    ]
    assert_calibrated(estimates, exact(d), largest_se)
    assert {e.n for e in estimates} == {n}
    # Relative ESS and error are of the same weights, however many resamplings ago they were equal.
    assert estimates[0].relative_ess == pytest.approx(1 / (1 + (n - 1) * estimates[0].se ** 2))
    assert not any(e.warning for e in estimates)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    "d, n, places, kernel, repeats, largest_se",
    [
        (2, 500, 50, MALA(0.2), 4, 0.02),
        (2, 500, 30, HMC(0.4, leapfrog=3), 4, 0.02),
        (20, 500, 150, MALA(0.12), 4, 0.06),
        (100, 300, 1000, MALA(0.08), 1, 0.25),
    ],
)
def test_annealed_importance_sampling(d, n, places, kernel, repeats, largest_se, reverse):
    estimates = [anneal(d, n, places, kernel, reverse, seed) for seed in range(repeats)]
    assert_calibrated(estimates, exact(d), largest_se)
    assert sum(e.warning != "" for e in estimates) <= 1  # k-hat itself has an error, of 0.2 at 500 weights


def test_forward_and_reverse_annealing_bracket_the_truth():
    """Too few places and particles: on average one is below, the other above (Jensen), and their ESS warn of it."""
    repeats = 40
    below, above = ([anneal(20, 30, 15, MALA(0.12), way, seed) for seed in range(repeats)] for way in (False, True))
    for estimates, sign in ((below, -1), (above, 1)):
        off = sign * (np.array([e.value for e in estimates]) - exact(20))
        assert off.mean() > 3 * off.std(ddof=1) / math.sqrt(repeats)
        assert np.mean([e.relative_ess for e in estimates]) < 0.2
        assert np.mean([e.warning != "" for e in estimates]) > 0.7


def test_annealing_between_two_places_is_importance_sampling():
    start = normal(100, 3)
    estimate = annealed_importance_sampling(TARGET, MALA(0.1), start, [0.0, 1.0], generator=seeded(0))
    prior = 0.5 * start.square().sum(1) + 1.5 * math.log(2 * math.pi)
    assert estimate == pytest.approx(importance_sampling(prior - TARGET.potential(start)))


def test_path():
    assert path(4) == [0, 1 / 16, 1 / 4, 9 / 16, 1]


def test_sequential_monte_carlo_needs_steps():
    with pytest.raises(UnfinishedError, match="of the way"):
        sequential_monte_carlo(TARGET, normal(100, 50), max_steps=10, generator=seeded(0))


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


@pytest.mark.parametrize("kernel", [Langevin(0.1), KineticLangevin(0.1), SMC(0.1)])
def test_annealing_takes_exact_kernels_alone(kernel):
    target = value_and_grad(lambda z: 2 * z.square().sum(1))
    with pytest.raises(InputError, match="every step is exact"):
        annealed_importance_sampling(target, kernel, torch.zeros(10, 2), path(3))
