"""Kernel distances against direct sums and torchmetrics; error and false alarms against simulation."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from gebm.errors import InputError
from gebm.metrics import mmd
from gebm.metrics.mmd import kernel_distance, three_sample_test


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direct(x, y) -> float:
    """The unbiased MMD^2 as two loops over the rows."""

    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    x, y = x.numpy(), y.numpy()
    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize("rows", [7, 1000], ids=["in pieces", "whole"])
def test_a_block_is_the_double_sum(monkeypatch, rows):
    monkeypatch.setattr(mmd, "ROWS", rows)
    x, y = normal(31, 5), 1.2 * normal(24, 5, seed=1) + 0.3
    found = kernel_distance(x, y, block_size=6)
    assert len(found.blocks) == 10
    generator = torch.Generator().manual_seed(0)
    cut = [t[torch.randperm(len(t), generator=generator)].tensor_split(10) for t in (x, y)]
    expected = [direct(a, b) for a, b in zip(*cut)]
    np.testing.assert_allclose(found.blocks.numpy(), expected, rtol=1e-12)
    assert found.value == pytest.approx(np.mean(expected), rel=1e-12)
    assert found.se == pytest.approx(np.std(expected, ddof=1) / math.sqrt(10), rel=1e-12)


def test_block_sizes():
    x, y = normal(1300, 2), normal(600, 2, seed=1)
    assert [len(kernel_distance(x, y, block_size=b).blocks) for b in (20, 60, 1000)] == [30, 10, 10]
    assert len(kernel_distance(x[:4], y).blocks) == 2


def test_single_precision_features_are_compared_in_double():
    x, y = normal(40, 5).float() + 100, normal(40, 5, seed=1).float() + 100  # kernels of 10^12
    assert kernel_distance(x, y).value == kernel_distance(x.double(), y.double()).value


def test_the_distance_is_unbiased_and_its_error_calibrated():
    d, n, trials = 4, 40, 1000
    # E k(a, b) between Gaussians N(m, I) and N(l, I): from the moments of a.b / d, of which cumulants are known
    shift = 0.5 * torch.ones(d, dtype=torch.float64)

    def mean_kernel(m, l):  # noqa: E741
        mu = float(m @ l) / d
        var = (d + float(m @ m) + float(l @ l)) / d**2
        third = 6 * float(m @ l) / d**3  # cumulant
        t = mu + 1
        return t**3 + 3 * t * var + third

    zero = torch.zeros_like(shift)
    truth = mean_kernel(zero, zero) + mean_kernel(shift, shift) - 2 * mean_kernel(zero, shift)
    found = [kernel_distance(normal(n, d, seed=2 * s), normal(n, d, seed=2 * s + 1) + shift) for s in range(trials)]
    values, errors = (np.array([f[i] for f in found]) for i in (0, 1))
    standard = values.std() / math.sqrt(trials)
    assert abs(values.mean() - truth) < 3 * standard
    assert 20 * standard < truth  # a bias of a sixth of the distance would be seen
    # the mean square of the stated errors against the variance of the estimates, in errors of that ratio
    ratio, of_ratio = (errors**2).mean() / values.var(), (errors**2).std() / math.sqrt(trials) / values.var()
    kurtosis = ((values - values.mean()) ** 4).mean() / values.var() ** 2
    assert abs(ratio - 1) < 3 * math.hypot(of_ratio, math.sqrt((kurtosis - 1) / trials))


def test_blocks_pair_the_gain_of_one_sample_over_another():
    real, base = normal(2000, 8), 1.5 * normal(2000, 8, seed=1)
    a, b = kernel_distance(real, base), kernel_distance(real, 0.95 * base)
    gain = a.blocks - b.blocks
    assert gain.mean() == pytest.approx(a.value - b.value)
    assert 2 * gain.std() / math.sqrt(len(gain)) < math.hypot(a.se, b.se)
    assert torch.equal(kernel_distance(real, base).blocks, a.blocks)
    assert not torch.equal(kernel_distance(real, base, seed=1).blocks, a.blocks)


def test_rows_in_an_order_are_mixed():
    x = normal(1000, 3)
    x = x[x[:, 0].argsort()]
    assert kernel_distance(x, normal(1000, 3, seed=1)).se < 0.1 < kernel_distance(x, x + 1).value


def test_the_distance_is_that_of_torchmetrics():
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.kid import KernelInceptionDistance

    class Flat(nn.Module):
        num_features = 12

        def forward(self, images):
            return images.flatten(1)

    x, y = normal(600, 12) + 0.5, 1.1 * normal(600, 12, seed=1) + 0.7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = KernelInceptionDistance(Flat(), subsets=1, subset_size=600)
        subsets = KernelInceptionDistance(Flat(), subsets=100, subset_size=200)
    for metric in (whole, subsets):
        metric.set_dtype(torch.float64)
        metric.update(x, real=True)
        metric.update(y, real=False)
    ours = kernel_distance(x, y)
    assert float(mmd._mmd2(x, y)) == pytest.approx(float(whole.compute()[0]), rel=1e-6)
    assert abs(ours.value - float(subsets.compute()[0])) < 2 * ours.se < ours.value


# the three-sample test


def difference(x, y, z) -> float:
    """MMD^2 of x and y less that of x and z, without the pairs of one row."""
    n, total = len(x), 0.0
    for sample, sign in ((y, 1), (z, -1)):
        within, across = mmd._kernel(sample, sample), mmd._kernel(x, sample)
        total += sign * float(within.sum() - within.trace() - 2 * (across.sum() - across.trace()))
    return total / (n * (n - 1))


@pytest.mark.parametrize("rows", [7, 1000], ids=["in pieces", "whole"])
def test_difference_and_p_value(monkeypatch, rows):
    monkeypatch.setattr(mmd, "ROWS", rows)
    x, y, z = normal(30, 4), normal(30, 4, seed=1) + 0.2, normal(30, 4, seed=2) - 0.4
    found = three_sample_test(x, y, z)
    assert found.difference == pytest.approx(difference(x, y, z), rel=1e-10)
    assert found.p_value == pytest.approx(0.5 * math.erfc(-found.difference / found.se / math.sqrt(2)))
    back = three_sample_test(x, z, y)
    assert (back.difference, back.se) == pytest.approx((-found.difference, found.se), rel=1e-9)
    assert back.p_value == pytest.approx(1 - found.p_value)


def test_the_variance_is_that_of_the_sums_over_distinct_rows():
    x, y, z = normal(9, 3), normal(9, 3, seed=1) + 1, normal(9, 3, seed=2) - 1
    k, n = mmd._kernel, 9
    h = k(y, y) - k(z, z) - k(x, y) - k(y, x) + k(x, z) + k(z, x)

    def mean(values):
        return float(torch.stack(values).mean())

    among = range(n)
    pairs = [h[i, j] for i in among for j in among if i != j]
    triples = [h[i, j] * h[i, m] for i in among for j in among for m in among if len({i, j, m}) == 3]
    apart = mean(
        [
            h[i, j] * h[m, o]
            for i in among for j in among for m in among for o in among if len({i, j, m, o}) == 4
        ]
    )  # fmt: skip
    zeta_1, zeta_2 = mean(triples) - apart, mean([v**2 for v in pairs]) - apart
    assert zeta_1 > 0 and zeta_2 > 0
    expected = (4 * (n - 2) * zeta_1 + 2 * zeta_2) / (n * (n - 1))
    assert three_sample_test(x, y, z).se ** 2 == pytest.approx(expected, rel=1e-9)


def test_the_variance_is_at_least_that_over_all_swaps_of_current_and_previous():
    x, y, z = normal(3, 8, 4, seed=3)
    swapped = []
    for signs in itertools.product([False, True], repeat=8):
        mask = torch.tensor(signs)[:, None]
        swapped.append(difference(x, torch.where(mask, z, y), torch.where(mask, y, z)))
    assert np.mean(swapped) == pytest.approx(0, abs=1e-12)
    assert three_sample_test(x, y, z).se == pytest.approx(np.std(swapped), rel=1e-9)


def rates(make, trials=800) -> tuple[np.ndarray, np.ndarray]:
    """How often the p-value is below 0.05 and 0.1, and three standard errors of that at these levels."""
    generator = torch.Generator().manual_seed(0)
    p = np.array([three_sample_test(*make(generator)).p_value for _ in range(trials)])
    levels = np.array([0.05, 0.1])
    return (p[:, None] < levels).mean(0), 3 * np.sqrt(levels * (1 - levels) / trials)


def draws(n=100, d=64, current=0.0, previous=0.0, shared=0.0):
    """Makes data N(0, I) and two samples shifted in directions of their own, with a part of their noise shared."""
    shifts = torch.zeros(3, 1, d, dtype=torch.float64)
    shifts[1, 0, 0], shifts[2, 0, 1] = current, previous

    def make(generator):
        noise = torch.randn(4, n, d, generator=generator, dtype=torch.float64)
        noise[1:3] = math.sqrt(1 - shared) * noise[1:3] + math.sqrt(shared) * noise[3]
        return noise[:3] + shifts

    return make


@pytest.mark.parametrize(
    "case",
    [{"n": 80, "d": 128}, {"n": 80, "d": 128, "shared": 0.5}, {"current": 2, "previous": 2},
     {"d": 8, "current": 1, "previous": 1, "shared": 0.8}],
    ids=["equal", "equal from shared noise", "as far", "as far with shared noise"],
)  # fmt: skip
def test_false_alarms_are_at_their_level(case):
    found, bound = rates(draws(**case))
    assert (abs(found - [0.05, 0.1]) < bound).all(), found


def test_false_alarms_are_not_above_their_level_where_few_directions_carry_the_kernel():
    scale = torch.arange(1, 33, dtype=torch.float64).reciprocal()
    make = draws(d=32)
    found, bound = rates(lambda generator: make(generator) * scale)
    assert (found < [0.05, 0.1] + bound).all(), found


def test_the_power_rises_with_the_gap():
    found = [rates(draws(previous=gap), trials=200)[0][0] for gap in (0.0, 0.6, 0.8, 1.5)]
    assert found[0] < 0.1 < 0.2 < found[1] < found[2] < 0.9 < 0.95 < found[3]
    assert rates(draws(current=0.8), trials=200)[0][1] < 0.02  # nor does it alarm when things get worse


def test_shared_noise_gives_power():
    apart, shared = (rates(draws(previous=0.6, shared=s), trials=200)[0][1] for s in (0.0, 0.9))
    assert shared > apart + 0.1


def test_the_same_sample_twice_is_no_evidence():
    assert three_sample_test(normal(20, 3), normal(20, 3, seed=1), normal(20, 3, seed=1)) == (0.5, 0.0, 0.0)


NAN = torch.tensor([[float("nan"), 0.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: kernel_distance(normal(9, 3), normal(9, 4)),
        lambda: kernel_distance(normal(9, 3), normal(3, 3)),
        lambda: kernel_distance(normal(9, 3), normal(9)),
        lambda: kernel_distance(normal(9, 3), torch.cat([normal(9, 3), NAN])),
        lambda: three_sample_test(normal(9, 3), normal(9, 3), normal(8, 3)),
        lambda: three_sample_test(normal(3, 3), normal(3, 3), normal(3, 3)),
        lambda: three_sample_test(normal(9, 3), normal(9, 3), normal(9, 2)),
    ],
)
def test_wrong_features_are_one_line(wrong):
    with pytest.raises(InputError) as error:
        wrong()
    assert "\n" not in str(error.value)
