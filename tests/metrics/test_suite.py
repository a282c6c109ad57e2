import json

import numpy as np
import pytest
import torch
from scipy import stats

from gebm.errors import InputError
from gebm.metrics import Estimate, Frechet, Metric, Moments, Reference, sample_metrics
from gebm.metrics.mmd import kernel_distance
from gebm.metrics.suite import Neighbourhood


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Plain:
    """Features without a class head."""

    name = key = "plain"

    def __call__(self, images):
        return images.flatten(1)


class Classifier(Plain):
    name = key = "classifier"

    def classify(self, features):
        return 3 * features[:, :4].float()


REAL = normal(400, 6, seed=100)
REFERENCE = Reference(Moments.of(REAL), REAL)
METRICS = sample_metrics(REFERENCE, Classifier())
each = pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name.partition("(")[0])


def test_all_that_apply():
    names = ["FD", "KD", "precision", "recall", "density", "coverage", "classifier score"]
    assert [m.name for m in METRICS] == [f"{name}(classifier)" for name in names]
    assert [m.name for m in sample_metrics(REFERENCE, Plain())] == [f"{name}(plain)" for name in names[:-1]]
    assert [m.name for m in sample_metrics(REFERENCE, Plain(), n=5)] == ["FD(plain)"]
    few_real = Reference(REFERENCE.moments, REAL[:99])
    assert [m.name for m in sample_metrics(few_real, Plain())] == ["FD(plain)", "KD(plain)"]
    assert {m.better for m in METRICS[:2]} == {"lower"} and {m.better for m in METRICS[2:]} == {"higher"}


@each
def test_an_estimate_is_that_of_the_comparison(metric):
    base, model = 1.5 * normal(200, 6) + 0.5, 1.1 * normal(200, 6) + 0.1
    found = metric.compare(base, model)
    assert (found.base, found.model) == (metric.estimate(base), metric.estimate(model))
    assert all(low <= value <= high for value, (low, high) in (found.base, found.model, found[2:]))
    assert metric.compare(model, base).gain == -found.gain
    assert metric.compare(model, base).gain_ci == pytest.approx((-found.gain_ci[1], -found.gain_ci[0]))
    assert json.dumps(found)


@each
def test_a_gain_is_positive_where_the_model_is_better(metric):
    real = normal(300, 6, seed=1)
    worse = {"recall": 0.2 * real, "classifier score": 0.2 * real}.get(metric.name.partition("(")[0], real + 2)
    found = metric.compare(worse, real)
    assert found.gain == abs(found.model.value - found.base.value) > 0 and found.gain_ci[0] > 0


@each
def test_pairing_narrows_the_gain(metric):
    base = 1.3 * normal(400, 6)
    model = base * 0.97
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    paired, shuffled = metric.compare(base, model), metric.compare(base, model[order])
    if metric.name.startswith("KD"):  # blocks share their real rows, and so the larger part, either way
        assert np.diff(paired.gain_ci) < np.diff(shuffled.gain_ci)
    else:
        assert paired.gain == pytest.approx(shuffled.gain)
        assert 1.5 * np.diff(paired.gain_ci) < np.diff(shuffled.gain_ci)


@each
def test_of_itself_the_gain_is_nothing(metric):
    found = metric.compare(REAL[:200], REAL[:200])
    assert found.gain == 0 and found.gain_ci == pytest.approx((-found.gain_ci[1], found.gain_ci[1]))
    assert (found.gain_ci == (0, 0)) != isinstance(metric, Neighbourhood)  # proportions keep a width


@each
def test_float32_and_read_only(metric):
    x = normal(100, 6)
    kept = x.clone()
    assert metric.estimate(x.float()).value == pytest.approx(metric.estimate(x).value, rel=1e-4, abs=1e-6)
    assert torch.equal(x, kept)


@each
@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: m.estimate(normal(1, 6)),
        lambda m: m.estimate(normal(50, 6) / torch.zeros(6)),
        lambda m: m.compare(normal(50, 6), normal(60, 6)),
    ],
    ids=["too few", "not finite", "not paired"],
)
def test_wrong_features_are_one_line(metric, wrong):
    with pytest.raises(InputError) as error:
        wrong(metric)
    assert "\n" not in str(error.value)


def test_kernel_distance_is_by_blocks():
    x = normal(150, 6) + 0.2
    value, se, blocks = kernel_distance(x, REAL)
    found = METRICS[1].estimate(x)
    half = stats.t.ppf(0.975, len(blocks) - 1) * se
    assert found.value == pytest.approx(value)
    assert found.ci == pytest.approx((value - half, value + half), abs=2e-4 * half)


def test_proportions_without_failures_have_an_interval():
    """That of Agresti and Coull: two rows of each kind more."""
    precision = METRICS[2]
    value, (low, high) = precision.estimate(REAL)
    assert (value, high) == (1, 1) and low == pytest.approx(402 / 404 - 1.96 * (402 * 2) ** 0.5 / 404**1.5, abs=1e-4)
    assert precision.estimate(REAL + 100).ci == pytest.approx((0, 1 - low), abs=1e-12)


def test_a_mean_has_the_usual_interval_and_covers():
    class Mean(Metric):
        name = "mean"

        def pseudo_values(self, features):
            return features[:, 0]

    trials = [Mean().compare(normal(12, 1, seed), normal(12, 1, 9999 - seed)) for seed in range(600)]
    for find in (lambda c: c.base.ci, lambda c: c.gain_ci):
        covered = np.mean([low <= 0 <= high for low, high in map(find, trials)])
        assert abs(covered - 0.95) < 4 * (0.95 * 0.05 / 600) ** 0.5
    x = normal(12, 1)
    low, high = stats.ttest_1samp(x[:, 0].numpy(), 0).confidence_interval()
    assert Mean().estimate(x) == Estimate(float(x.mean()), pytest.approx((low, high), rel=1e-3))


def test_a_distance_of_nothing_is_not_below_zero():
    value, (low, high) = Frechet(REFERENCE).estimate(REAL)
    assert (value, low, high) == pytest.approx((0, 0, 0), abs=1e-9) and low >= 0
