import json
import math

import pytest
import torch

from gebm.importance import LogPartition, importance_sampling, pareto_k, relative_ess, reliable_below


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def test_importance_sampling_of_log_normal_weights():
    """log E[exp(s x)] = s^2 / 2, with variance (exp(s^2) - 1) / n of the mean over its square."""
    s, n = 0.8, 100_000
    for shift in (0.0, 1e5):
        estimate = importance_sampling(s * normal(n) + shift)
        assert estimate.se == pytest.approx(math.sqrt((math.exp(s * s) - 1) / n), rel=0.05)
        assert abs(estimate.value - shift - s * s / 2) < 3 * estimate.se
        assert estimate.relative_ess == pytest.approx(math.exp(-s * s), rel=0.05) and estimate.n == n


@pytest.mark.parametrize("n", [25, 225, 226, 1000, 20_000])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_pareto_k_is_that_of_arviz(n, scale):
    array_stats = pytest.importorskip("arviz_stats.base").array_stats
    for log_weights in (scale * normal(n), -scale * uniform(n).log() - 1e4):
        _, theirs = array_stats.psislw(-log_weights.numpy())  # which takes the logs of one over the weights
        assert pareto_k(log_weights) == pytest.approx(float(theirs), abs=1e-9)


@pytest.mark.parametrize("k", [-0.5, 0.3, 0.7, 1.2])
def test_pareto_k_of_pareto_weights(k):
    """w = (u^-k - 1) / k has a generalized Pareto tail; the error of M excesses is (1 + k) / sqrt(M)."""
    n = 100_000
    w = (uniform(n).pow(-k) - 1) / k
    m = 3 * n**0.5
    pulled = (m * k + 5) / (m + 10)
    assert abs(pareto_k(w.log()) - pulled) < 4 * max(1 + k, 0.5) / m**0.5


def test_pareto_k_without_a_tail():
    assert pareto_k(torch.full((1000,), -7.0)) == -math.inf  # all equal
    floored = torch.cat([normal(500), torch.full((500,), 10.0)])  # as energies on their floor
    assert pareto_k(floored) == -math.inf
    assert pareto_k(normal(24)) == math.inf  # too few draws
    assert pareto_k(torch.tensor([0.0, 0.0] + [-math.inf] * 998)) == math.inf  # two that count
    assert math.isnan(pareto_k(torch.full((1000,), -math.inf))) and math.isnan(pareto_k(torch.full((1000,), math.nan)))


def test_what_can_be_relied_on():
    assert [reliable_below(n) for n in (2, 100, 10_000, 10**9)] == [0.0, 0.5, 0.7, 0.7]


def test_estimates_that_cannot_be_trusted_say_so():
    good = importance_sampling(normal(1000))
    assert good.warning == "" and good.summary() == {**good._asdict(), "warning": ""}
    bad = importance_sampling(3.5 * normal(1000))
    assert bad.warning.startswith("a few of the 1,000 weights decide this log-partition (Pareto k-hat 1.")
    assert "reliable to 0.67" in bad.warning and "\n" not in bad.warning and json.dumps(bad.summary())
    few = importance_sampling(normal(20))
    assert "of the 20 weights" in few.warning and "not known" in few.warning
    assert importance_sampling(torch.full((1000,), math.nan)).warning
    assert LogPartition(1.0, 0.0, 1.0, 0).warning == ""  # known exactly


def test_warnings_come_where_errors_are_too_small():
    """Log-normal weights of relative ESS 0.37 and 0.001: 2 standard errors hold the truth in 95 and in some 85 %."""
    n, runs = 10_000, 100
    covered, warned = {}, {}
    for s in (1.0, 2.63):
        found = [importance_sampling(s * normal(n, seed=seed)) for seed in range(runs)]
        covered[s] = sum(abs(e.value - s * s / 2) < 2 * e.se for e in found) / runs
        warned[s] = sum(e.warning != "" for e in found) / runs
    assert covered[1.0] > 0.954 - 4 * (0.954 * 0.046 / runs) ** 0.5 and warned[1.0] == 0
    assert covered[2.63] < 0.954 - 2 * (0.954 * 0.046 / runs) ** 0.5 and warned[2.63] > 0.8
