import numpy as np
import pytest
import scipy.linalg
import torch

from gebm.errors import InputError
from gebm.metrics import Frechet, Moments, frechet_distance
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
    values = frechet_pseudo_values(x, reference)
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
        values = frechet_pseudo_values(x, Moments.of(flat))
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
