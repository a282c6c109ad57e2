"""A pair beside its base, from Python."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gebm
from gebm.errors import InputError
from gebm.evaluation import judge
from gebm.evaluation.features import features_of
from gebm.metrics.features import Pixels
from gebm.metrics.random_conv import RandomConv


def pair(shift: float = 1.0) -> gebm.GEBM:
    """N(shift / 2, 1/2) in each coordinate."""
    return gebm.GEBM(nn.Identity(), lambda x: (x - shift).square().sum(1) / 2, gebm.GaussianPrior(2))


def data(n: int = 1500, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) / 2**0.5 + 0.5


def test_a_better_pair_is_said_to_be_better():
    figures = gebm.evaluate(pair(), data())
    assert figures.verdict == "Better than its base on values."
    comparison = figures.metrics["FD(values)"]
    # |m|^2 + (1 - sqrt(1/2))^2 in each of two coordinates
    assert comparison.base.ci[0] < 2 * (0.25 + (1 - 0.5**0.5) ** 2) < comparison.base.ci[1]
    assert comparison.model.value < 0.02 < comparison.gain_ci[0]
    # KL(N(1/2, 1/2) | N(0, 1)) of two coordinates, which the energy reaches
    kl = 0.25 + 2 * 0.5 * (0.5 - 1 - np.log(0.5))
    assert abs(figures.kale.donsker_varadhan - kl) < 5 * (1 / 1500) ** 0.5
    assert "KALE" in repr(figures) and figures.verdict in repr(figures)
    assert json.loads(json.dumps(figures.to_dict()))["metrics"]["FD(values)"]["better"] == "lower"


def test_a_worse_pair_is_said_to_be_worse_and_one_without_energy_cannot_be_told():
    assert gebm.evaluate(pair(-1.0), data()).verdict.startswith("Worse than its base on values.")
    flat = gebm.GEBM(nn.Identity(), lambda x: 0 * x.sum(1), gebm.GaussianPrior(2))
    assert gebm.evaluate(flat, data()).verdict.startswith("It cannot be told from its base")


@pytest.mark.parametrize(
    "gains, says",
    [
        ({"a": (0.1, 1), "b": (0.1, 1)}, "Better than its base on a and b."),
        ({"a": (0.1, 1), "b": (-1, 1)}, "Better than its base on a, undecided on b."),
        ({"a": (0.1, 1), "b": (-1, -0.1)}, "Better than its base on a, worse on b: no gain can be claimed."),
        ({"a": (-1, -0.1)}, "Worse than its base on a."),
        ({"a": (-1, 0.1), "b": (0, 1)}, "It cannot be told from its base: every interval of a gain holds zero."),
    ],
)
def test_a_gain_counts_where_no_feature_set_shows_a_loss(gains, says):
    draws = gebm.sample(pair(), 200)
    assert judge._verdict(gains, draws).startswith(says)


def test_refined_samples_are_called_so():
    draws = gebm.sample(pair(), 500, sampler="langevin", steps=3, step_size=0.001)
    assert "refined samples, not draws from the model: too few steps" in gebm.evaluate(pair(), data(), draws).verdict
    draws = gebm.sample(pair(), 500, sampler="langevin", steps=30, step_size=0.001)
    assert "draws from the model: the chains have not mixed" in gebm.evaluate(pair(), data(), draws).verdict
    draws = gebm.sample(pair(), 500, beta=2.0)
    assert gebm.evaluate(pair(), data(), draws).verdict.endswith("At beta 2; the model itself is beta 1.")


def of_images(levels: str) -> gebm.GEBM:
    torch.manual_seed(0)
    last = nn.Sigmoid() if levels == "01" else nn.Tanh()
    base = nn.Sequential(nn.Linear(3, 100), last, nn.Unflatten(1, (1, 10, 10)))
    return gebm.GEBM(base, nn.Sequential(nn.Flatten(), nn.Linear(100, 1), nn.Flatten(0)), gebm.GaussianPrior(3))


def test_images_are_judged_on_several_features_whatever_their_levels():
    """The same images, as bytes and in [0, 1], with bases that make the same images."""
    images = torch.randint(256, (300, 1, 10, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    figures = [
        gebm.evaluate(of_images("01"), images.double() / 255, gebm.sample(of_images("01"), 300, steps=0)),
        gebm.evaluate(of_images("-1"), images, gebm.sample(of_images("-1"), 300, steps=0)),
    ]
    for found in figures:
        assert {"FD(pixels-8x8)", "KD(pixels-8x8)", "FD(random-conv)", "recall(random-conv)"} <= found.metrics.keys()
        assert found.metrics["FD(random-conv)"].gain == pytest.approx(0, abs=1e-9)
    # tanh(x) and sigmoid(x) are other images; real ones are the same, so the references agree
    only = gebm.evaluate(of_images("-1"), images, gebm.sample(of_images("-1"), 300, steps=0), features="pixels")
    assert {name.split("(")[1] for name in only.metrics} == {"pixels)"}
    assert features_of(images, Pixels(4))[0].name == "pixels-4x4"


def test_features_of_other_data():
    many = torch.randn(50, 20, 20)
    (projected,) = features_of(many)
    assert projected.name == "64 random projections" and projected.of(many).shape == (50, 64)
    (plain,) = features_of(torch.randn(50, 3))
    assert torch.equal(plain.of(torch.ones(2, 3)), torch.ones(2, 3).double())
    with pytest.raises(InputError, match="features: are of images"):
        features_of(many, "pixels")


def test_random_features_are_always_the_same():
    x = torch.arange(2 * 3 * 16 * 16).remainder(256).to(torch.uint8).reshape(2, 3, 16, 16)
    one, two = RandomConv(), RandomConv()
    assert one.key == two.key and torch.equal(one(x), two(x)) and one(x).shape == (2, 64)
    assert torch.equal(one(x[:, :1]), one(x[:, :1].expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    "given, says",
    [
        (torch.randn(50, 3), r"data: of shape \(3,\), the samples of \(2,\)"),
        (torch.randn(1, 2), "at least 2 samples"),
        (np.zeros((50, 2), int), "of int64; uint8 images or floats"),
    ],
)
def test_other_data_are_refused(given, says):
    with pytest.raises(InputError, match=says):
        gebm.evaluate(pair(), given)


def test_a_setting_is_chosen_on_training_data():
    target = 0.9 + 0.3 * torch.randn(800, 2, generator=torch.Generator().manual_seed(0))  # narrower, further out
    setting = gebm.tune(pair(), target, betas=[1.0, 10.0], step_sizes=[0.05], n=300)
    assert setting.beta == 10.0 and setting.steps > 0 and setting.tuning_steps == 0
    draws = gebm.sample(pair(), 300, setting)
    assert (draws.samples.mean() - 0.9).abs() < 0.2
    with pytest.raises(InputError, match="sampler 'langevinn'"):
        gebm.tune(pair(), target, sampler="langevinn")
    still = gebm.tune(pair(), torch.randn(800, 2), betas=[10.0], step_sizes=[0.05], n=300)
    assert still.steps == 0  # the base itself is nearest
