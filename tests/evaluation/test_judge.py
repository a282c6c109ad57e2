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
    assert gebm.evaluate(pair(-1.0), data()).verdict.startswith("Worse than its base by FD(values) and KD(values).")
    flat = gebm.GEBM(nn.Identity(), lambda x: 0 * x.sum(1), gebm.GaussianPrior(2))
    assert gebm.evaluate(flat, data()).verdict.startswith("It cannot be told from its base")


@pytest.mark.parametrize(
    "gains, says",
    [
        ({"FD(a)": (0.1, 1), "FD(b)": (0.1, 1)}, "Better than its base on a and b."),
        ({"FD(a)": (0.1, 1), "FD(b)": (-1, 1)}, "Better than its base on a, undecided on b."),
        (
            {"FD(a)": (0.1, 1), "FD(b)": (-1, -0.1)},
            "Better than its base on a, worse by FD(b): no gain can be claimed.",
        ),
        (
            {"FD(a)": (0.1, 1), "KD(a)": (-1, -0.1)},
            "Better than its base on a, worse by KD(a): no gain can be claimed.",
        ),
        ({"FD(a)": (0.1, 1), "recall(a)": (-1, -0.1)}, "Better than its base on a, but worse in recall(a)."),
        ({"FD(a)": (-1, -0.1)}, "Worse than its base by FD(a)."),
        ({"FID": (0.1, 1)}, "Better than its base on inception."),
        ({"FD(a)": (-1, 0.1)}, "It cannot be told from its base by any Fréchet distance."),
    ],
)
def test_a_gain_counts_where_no_distance_shows_a_loss(gains, says):
    draws = gebm.sample(pair(), 500)
    assert judge._verdict(gains, draws) == says


def test_refined_samples_are_called_so():
    draws = gebm.sample(pair(), 500, sampler="langevin", steps=3, step_size=0.001)
    assert "Refined samples, not draws from the model: too few steps" in gebm.evaluate(pair(), data(), draws).verdict
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
    """Bytes with a base in [-1, 1], and the same images in [0, 1] with a base that makes the same: tanh and sigmoid."""
    images = torch.randint(256, (300, 1, 10, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ours, theirs = of_images("-1"), of_images("01")
    with torch.no_grad():
        for double, plain in zip(theirs.base[0].parameters(), ours.base[0].parameters()):
            double.copy_(2 * plain)  # sigmoid(2x) = (tanh(x) + 1) / 2
    figures = [
        gebm.evaluate(ours, images, gebm.sample(ours, 300, steps=0)),
        gebm.evaluate(theirs, images.double() / 255, gebm.sample(theirs, 300, steps=0)),
    ]
    names = {"FD(pixels-8x8)", "KD(pixels-8x8)", "FD(random-conv)", "recall(random-conv)"}
    for name in names:
        one, two = (found.metrics[name].base.value for found in figures)
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    assert not figures[0].notes[1:] and "samples of the base" in figures[0].verdict.lower()
    mixed = gebm.evaluate(theirs, images, gebm.sample(theirs, 300, steps=0))
    assert any("if it ends with a sigmoid" in note for note in mixed.notes)
    only = gebm.evaluate(ours, images, gebm.sample(ours, 300, steps=0), features="pixels")
    assert {name.split("(")[1] for name in only.metrics} == {"pixels)"}
    assert features_of(images, Pixels(4))[0].name == "pixels-4x4"


def test_a_data_set_by_name_is_judged_on_its_test_split():
    model = gebm.GEBM.build("dcgan", shape=(1, 8, 8), latent_dim=3, width=0.1)
    draws = gebm.sample(model, 120, steps=0)
    assert gebm.evaluate(model, "digits", draws, features="pixels").n_real == 400
    with pytest.raises(InputError, match="samples: must be what gebm.sample returns, not a Tensor"):
        gebm.evaluate(pair(), data(), data())


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
        (torch.randn(50, 3), r"data: of shape \(3,\), the base makes \(2,\)"),
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
    model = gebm.GEBM(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)),
                      gebm.GaussianPrior(2)).train()  # fmt: skip
    gebm.tune(model, target, betas=[1.0], step_sizes=[0.05], n=50, max_steps=2)
    assert all(module.training for module in model.modules())
    with pytest.raises(InputError, match=r"data: of shape \(3,\), the base makes \(2,\)"):
        gebm.tune(pair(), torch.randn(50, 3))
    with pytest.raises(InputError, match="betas and step_sizes: must hold at least one value"):
        gebm.tune(pair(), target, betas=[])


def test_what_tuning_saw_is_not_what_is_judged():
    """Another stream of latents: the samples that chose a setting are not those that the same seed draws."""
    setting = gebm.Setting(sampler="langevin", beta=10.0, step_size=0.05, steps=5, warm_up=0)
    seen = []
    model = pair()
    model.energy = lambda x: seen.append(x.detach()) or (x - 1).square().sum(1) / 2
    gebm.tune(model, data(), betas=[10.0], step_sizes=[0.05], n=50, max_steps=5)
    drawn = gebm.sample(pair(), 50, setting).base_samples
    assert seen and not any(x.shape == drawn.shape and torch.equal(x, drawn) for x in seen)
