import numpy as np
import pytest
import scipy.linalg
import torch

from gebm.errors import InputError
from gebm.metrics import Frechet, Moments, Reference, frechet_distance
from gebm.metrics.frechet import frechet_pseudo_values


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(mean, variances):
    """Moments of a Gaussian with a diagonal covariance."""
    return Moments(10**6, torch.as_tensor(mean), torch.diag(torch.as_tensor(variances)) * (10**6 - 1))


def test_moments_of_a_stream_are_those_of_the_whole():
    x = normal(1000, 5) @ normal(5, 5, seed=1) + 1e6  # a naive sum of squares loses 12 digits here
    stream = Moments.empty(5)
    for batch in x.split([1, 0, 300, 699]):
        stream.update(batch.float() if len(batch) == 0 else batch)
    assert stream.n == 1000
    torch.testing.assert_close(stream.mean, torch.from_numpy(x.numpy().mean(0)), rtol=1e-12, atol=0)
    torch.testing.assert_close(stream.cov, torch.from_numpy(np.cov(x.numpy().T)), rtol=1e-7, atol=1e-7)


def test_distance_between_gaussians_in_closed_form():
    a, b = exact([0.0, 1.0, 2.0], [1.0, 4.0, 9.0]), exact([1.0, 1.0, 0.0], [4.0, 4.0, 1.0])
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2, rel=1e-12)


def test_distance_is_that_of_the_matrix_square_root():
    a, b = (Moments.of(normal(40, 6, s) @ normal(6, 6, s + 2)) for s in (0, 1))
    root = scipy.linalg.sqrtm(a.cov.numpy() @ b.cov.numpy()).real
    oracle = float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()) - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(oracle, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(oracle, rel=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_distance_is_that_of_torchmetrics():
    image = pytest.importorskip("torchmetrics.image.fid", reason="no torchmetrics: pip install 'gebm[test]'")

    class Given(torch.nn.Module):
        num_features = 6

        def forward(self, x):
            return x

    for n in (30, 500):
        a, b = normal(n, 6) @ normal(6, 6, seed=2) + 1, normal(400, 6, seed=1)
        theirs = image.FrechetInceptionDistance(Given(), normalize=False).set_dtype(torch.float64)
        theirs.update(b, real=True)
        theirs.update(a, real=False)
        assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_distance_of_singular_covariances():
    x = normal(8, 20)  # rank 7
    assert frechet_distance(Moments.of(x), Moments.of(x)) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(Moments.of(x + 2), Moments.of(x)) == pytest.approx(80, rel=1e-6)
    assert frechet_distance(Moments.of(3 * x - 2 * x.mean(0)), Moments.of(x)) == pytest.approx(
        4 * float(Moments.of(x).cov.trace()), rel=1e-6
    )


def test_a_kept_square_root_is_dropped_by_an_update():
    moments = Moments.of(normal(20, 3))
    frechet_distance(moments, moments)
    moments.update(5 * normal(20, 3, seed=1))
    torch.testing.assert_close(moments.sqrt_cov @ moments.sqrt_cov, moments.cov)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: frechet_distance(Moments.of(normal(1, 3)), Moments.of(normal(9, 3))),
        lambda: frechet_distance(Moments.of(normal(9, 4)), Moments.of(normal(9, 3))),
        lambda: Moments.of(torch.tensor([[1.0], [float("nan")]])),
    ],
)
def test_wrong_features_are_one_line(wrong):
    with pytest.raises(InputError) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_pseudo_values_are_the_distance_and_its_derivatives():
    """Those in the weights of the rows, by finite differences."""
    n, weight, more = 500, 400, 4  # copies of all rows, and of one more
    reference, x = Moments.of(normal(300, 4, seed=1)), 1.3 * normal(n, 4) + 0.2
    values = frechet_pseudo_values(x, reference).samples
    level = frechet_distance(Moments.of(x), reference)
    assert float(values.mean()) == pytest.approx(level, rel=1e-12)
    copies = x.repeat(weight, 1)
    before = frechet_distance(Moments.of(copies), reference)
    for row in range(10):
        moments = Moments.of(copies).update(x[row].expand(more, -1))
        derivative = (frechet_distance(moments, reference) - before) / (more / (n * weight))
        assert float(values[row]) - level == pytest.approx(derivative, rel=0.01, abs=0.01)


def test_pseudo_values_of_singular_covariances():
    """Fewer rows than features, and a reference that is flat in one: finite, and the distance is their mean."""
    flat = normal(50, 12, seed=1) * torch.tensor([1.0] * 11 + [0.0])
    for x in (normal(8, 12), normal(8, 12) * torch.tensor([1.0] * 10 + [0.0] * 2)):
        values = frechet_pseudo_values(x, Moments.of(flat)).samples
        assert float(values.mean()) == pytest.approx(frechet_distance(Moments.of(x), Moments.of(flat)), rel=1e-6)
        assert values.isfinite().all() and values.std() < 10 * values.mean()


@pytest.mark.parametrize("base, model", [((1.3, 0.2), (1.1, 0.1)), ((1.05, 0.02), (1.0, 0.0))], ids=["far", "floor"])
@pytest.mark.parametrize("n", [40, 200])
def test_intervals_cover_the_expected_figures(n, base, model):
    d, trials = 8, 300
    reference = exact(torch.zeros(d, dtype=torch.float64), torch.linspace(1, 0.1, d, dtype=torch.float64))
    metric, figures, intervals = Frechet(reference), [], []
    for seed in range(trials):
        start = normal(n, d, seed) * reference.sqrt_cov.diag()
        result = metric.compare(*(scale * start + shift for scale, shift in (base, model)))
        figures.append([result.base.value, result.model.value, result.gain])
        intervals.append([result.base.ci, result.model.ci, result.gain_ci])
    figures, (low, high) = np.array(figures), np.array(intervals).transpose(2, 0, 1)
    covered = ((low <= figures.mean(0)) & (figures.mean(0) <= high)).mean(0)
    assert (covered > 0.95 - 4 * (0.95 * 0.05 / trials) ** 0.5).all()
    # At the floor an interval is of twice the variance, nowhere of much more.
    assert ((high - low).mean(0) < 1.7 * 2 * 1.96 * figures.std(0)).all()


def test_influences_of_the_reference_are_derivatives():
    """Those in the weights of the reference's rows, by finite differences."""
    n, weight, more = 500, 400, 4  # copies of all rows, and of one more
    real, x = normal(n, 4, seed=1), Moments.of(1.3 * normal(300, 4) + 0.2)
    values = frechet_pseudo_values(1.3 * normal(300, 4) + 0.2, Moments.of(real), real).reference
    assert abs(float(values.mean())) < 1e-12
    copies = real.repeat(weight, 1)
    before = frechet_distance(x, Moments.of(copies))
    for row in range(10):
        moments = Moments.of(copies).update(real[row].expand(more, -1))
        derivative = (frechet_distance(x, moments) - before) / (more / (n * weight))
        assert float(values[row]) == pytest.approx(derivative, rel=0.01, abs=0.01)


def test_influences_of_a_part_of_the_reference_stand_for_all():
    """Their variance over their number is that of all rows, also where most rows are gone."""
    real, x = normal(4000, 4, seed=1), 1.3 * normal(300, 4) + 0.2
    moments = Moments.of(real)
    whole, part = (frechet_pseudo_values(x, moments, rows).reference for rows in (real, real[:1000]))
    se = 0.04  # of the relative variance of 1000 rows, about
    assert float(part.var() / 1000) == pytest.approx(float(whole.var() / 4000), rel=4 * se)


@pytest.mark.parametrize("n, m", [(8, 50), (50, 8), (8, 8)])
def test_influences_of_a_singular_reference(n, m):
    real = normal(m, 12, seed=1)
    values = frechet_pseudo_values(normal(n, 12) + 0.1, Moments.of(real), real).reference
    assert values.isfinite().all() and values.std() < 100


def equally_far(d: int, kind: str):
    """Scale and shift of two models that are equally far from N(0, I)."""
    one, zero, first = torch.ones(d), torch.zeros(d), (torch.arange(d) < d / 2).float()
    if kind == "shifts":
        return (one, 0.3 * first), (one, 0.3 * (1 - first))
    if kind == "scales":
        return (one + 0.3 * first, zero), (one + 0.3 * (1 - first), zero)
    return (1.1 * one, zero), (one, 0.1 * one)


@pytest.mark.parametrize("kind", ["shifts", "scales", "a scale and a shift"])
def test_models_equally_far_are_seldom_told_apart(kind):
    """At 2,000 samples and 400 real rows in 64 dimensions; with the reference as fixed it was 45, 42 and 98 %."""
    d, trials, alarms = 64, 300, 0
    for seed in range(trials):
        real, start = normal(400, d, 2 * seed), normal(2000, d, 2 * seed + 1)
        metric = Frechet(Reference.of(real))
        low, high = metric.compare(*(scale * start + shift for scale, shift in equally_far(d, kind))).gain_ci
        alarms += not low <= 0 <= high
    assert alarms / trials <= 0.07 + 0.015  # its standard error at 7 %


@pytest.mark.parametrize("n, m", [(200, 40), (40, 200), (2000, 200)])
def test_intervals_cover_over_samples_and_reference(n, m):
    d, trials = 8, 300
    figures, intervals = [], []
    for seed in range(trials):
        real, start = normal(m, d, 2 * seed), normal(n, d, 2 * seed + 1)
        result = Frechet(Reference.of(real)).compare(1.3 * start + 0.2, start + 0.4)
        figures.append([result.base.value, result.model.value, result.gain])
        intervals.append([result.base.ci, result.model.ci, result.gain_ci])
    figures, (low, high) = np.array(figures), np.array(intervals).transpose(2, 0, 1)
    covered = ((low <= figures.mean(0)) & (figures.mean(0) <= high)).mean(0)
    assert (covered > 0.95 - 4 * (0.95 * 0.05 / trials) ** 0.5).all(), covered
    assert ((high - low).mean(0)[:2] < 1.7 * 2 * 1.96 * figures.std(0)[:2]).all()


def test_the_bias_is_that_of_repetitions():
    """Of the distances, and of the gain, which the numbers of rows alone make."""
    d, n, m, trials = 16, 500, 200, 200
    models = (1.3, 0.0), (1.0, 0.3)
    exactly = [d * (scale - 1) ** 2 + d * shift**2 for scale, shift in models]
    found = []
    for seed in range(trials):
        real, start = normal(m, d, 2 * seed), normal(n, d, 2 * seed + 1)
        moments = Moments.of(real)
        values = [frechet_pseudo_values(scale * start + shift, moments) for scale, shift in models]
        found.append([[float(v.samples.mean()) - exact, v.bias] for v, exact in zip(values, exactly)])
    found = np.array(found)
    se = found[..., 0].std(0, ddof=1) / trials**0.5
    assert (abs(found[..., 0].mean(0) - found[..., 1].mean(0)) < 4 * se + 0.1 * found[..., 1].mean(0)).all()
    assert (found[..., 1].mean(0) > 8 * se).all()


def test_moments_alone_count_as_known():
    real, x = normal(300, 4, seed=1), 1.3 * normal(200, 4)
    fixed, sampled = (Frechet(r).estimate(x) for r in (Moments.of(real), Reference.of(real)))
    assert fixed.value == sampled.value and np.diff(fixed.ci) < np.diff(sampled.ci)


def test_fewer_rows_than_features_are_told():
    metric = Frechet(Reference.of(normal(50, 64)), "FD(pixels)")
    assert metric.caution(100) == (
        "50 real images are fewer than the 64 features: FD(pixels) is mostly bias, compare it at these numbers only"
    )
    assert metric.caution(60).startswith("60 samples and 50 real images are fewer")
    assert not Frechet(Reference.of(normal(64, 64))).caution(64)
