"""Sampling from Python."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gebm
from gebm.errors import InputError
from gebm.samplers import SAMPLERS, Kernel, Langevin
from gebm.samples import Setting, kernel_of, sample


class Quadratic(nn.Module):
    """E(x) = |x - 1|^2 / 2 on the identity, so that the model is N(1/2, 1/2) in each coordinate."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 1).square().sum(1) / 2


def gaussian() -> gebm.GEBM:
    return gebm.GEBM(nn.Identity(), Quadratic(), gebm.GaussianPrior(2))


def of_images() -> gebm.GEBM:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(3, 36), nn.BatchNorm1d(36), nn.Sigmoid(), nn.Unflatten(1, (1, 6, 6)))
    energy = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
    return gebm.GEBM(base, energy, gebm.GaussianPrior(3))


def test_the_default_draws_from_the_model_itself():
    draws = sample(gaussian(), 4000, seed=1)
    assert draws.are_draws and draws.setting == Setting() and draws.kernel.step_size != 0.1
    for moment, wanted, sd in ((draws.samples.mean(0), 0.5, 0.5**0.5), (draws.samples.var(0), 0.5, 0.5 * 2**0.5)):
        assert (moment - wanted).abs().max() < 4 * sd / 1000**0.5  # as if a quarter of the draws were independent
    assert torch.equal(draws.energies, Quadratic()(draws.samples)) and draws.base_samples.var() > 0.8


def test_samples_are_as_the_base_makes_them_and_the_networks_stay_in_their_modes():
    model = of_images().train()
    norm = {name: value.clone() for name, value in model.base.named_buffers()}
    draws = sample(model, 50, sampler="langevin", steps=3)
    assert draws.samples.shape == (50, 1, 6, 6) and draws.samples.dtype == torch.float32
    assert draws.samples.min() > 0 and draws.samples.max() < 1  # a sigmoid's, not rounded and not rescaled
    assert model.base[1].training and model.energy[1].training
    assert all(torch.equal(value, norm[name]) for name, value in model.base.named_buffers())
    assert draws.images().dtype == np.uint8 and np.array_equal(draws.images(), draws.images(levels=(0.0, 1.0)))
    expected = (draws.samples * 255).round().to(torch.uint8).numpy()
    assert np.abs(draws.images(levels=(0, 1)).astype(int) - expected).max() <= 1


def test_a_seed_says_all_and_chunks_do_not_change_it():
    model = gaussian()
    one, two = (sample(model, 30, seed=3, steps=5, warm_up=4, chunk=30) for _ in range(2))
    assert torch.equal(one.samples, two.samples) and not torch.equal(sample(model, 30, steps=5).samples, one.samples)
    whole = sample(model, 50, seed=3, steps=5, warm_up=4, chunk=30)
    assert torch.equal(whole.samples[:30], one.samples)


@dataclass(frozen=True)
class Lazy(Kernel):
    """Somebody's own kernel, with a hyperparameter of its own."""

    laziness: float = 0.5

    def step(self, state, target, generator=None):
        return Langevin(self.step_size * (1 - self.laziness)).step(state, target, generator)


@pytest.mark.parametrize(
    "sampler, options",
    [(name, {}) for name in SAMPLERS]
    + [
        (Langevin(0.02), {}),
        (f"{__name__}:Lazy", {"laziness": 0.2}),
        (Lazy(0.1), {"laziness": 0.9}),
        ("hmc", {"leapfrog": 3}),
        ("lmc", {"friction": 0.5}),
    ],
)
def test_every_sampler_by_name_by_path_and_as_it_is(sampler, options):
    sys.modules.setdefault(__name__, sys.modules[Lazy.__module__])
    steps = 60 if sampler == "smc" else 4
    draws = sample(gaussian(), 40, sampler=sampler, steps=steps, **options)
    assert len(draws) == 40 and draws.samples.isfinite().all()
    for name, value in options.items():
        assert getattr(draws.kernel, name) == value


@pytest.mark.parametrize(
    "options, says",
    [
        ({"sampler": "langevinn"}, "sampler 'langevinn': choose .*did you mean langevin"),
        ({"sampler": 3}, "sampler: must be a name, a dotted path or a gebm.samplers.Kernel, not 3"),
        ({"sampler": "torch.nn:ReLU"}, "must be a name, a dotted path or a gebm.samplers.Kernel"),
        ({"sampler": "hmc", "leapfrogs": 3}, "HMC: has no leapfrogs; did you mean leapfrog"),
        ({"leapfrog": 3}, "MALA: has no leapfrog; choose step_size"),
        ({"sampler": "langevin", "warm_up": 5}, "warm_up=5: Langevin has no acceptance to tune to"),
        ({"beta": -1}, "beta must be a finite number of 0 or more"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"step_size": -1.0}, "step_size -1.0 must be a number above 0"),
        ({"n": 0}, "n must be a whole number of 1 or more"),
        ({"chunk": 0}, "chunk must be a whole number of 1 or more"),
    ],
)
def test_bad_arguments_are_named_and_no_flag_is(options, says):
    with pytest.raises(InputError, match=says) as error:
        sample(gaussian(), **{"n": 10, **options})
    assert "--" not in str(error.value)


def test_a_setting_is_taken_and_changed():
    setting = Setting(sampler="langevin", beta=3.0, steps=4, step_size=0.02, warm_up=0)
    draws = sample(gaussian(), 20, setting, steps=2)
    assert draws.setting == Setting(sampler="langevin", beta=3.0, steps=2, step_size=0.02, warm_up=0)
    other = sample(gaussian(), 20, setting, sampler="hmc", steps=2)
    assert other.setting.step_size is None and other.setting.beta == 3.0
    assert "refined samples, not draws" in repr(draws) and "beta 3" in repr(draws)
    assert sample(gaussian(), 20, "langevin", steps=2).setting.sampler == "langevin"
    with pytest.raises(InputError, match="setting: must be a gebm.Setting or a sampler, not a dict"):
        sample(gaussian(), 20, {"beta": 1})
    with pytest.raises(InputError, match="images: samples of shape"):
        draws.images()


def test_samples_of_a_kernel_that_its_step_size_biases_are_no_draws():
    draws = sample(gaussian(), 500, sampler="langevin", step_size=0.8, steps=200)
    assert draws.diagnostics.mixed and not draws.are_draws and draws.samples.var() > 1
    assert "this sampler has no accept step, so its step size biases it" in repr(draws)
    assert kernel_of("hmc", leapfrog=5).leapfrog == 5 and Setting().tuning_steps == 100
    assert Setting(step_size=0.1).tuning_steps == 0 == Setting(sampler="lmc").tuning_steps


def test_what_is_saved_is_read_again(tmp_path):
    draws = sample(gaussian(), 20, steps=2)
    draws.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as stored:
        assert {*stored} == {"samples", "base_samples", "latents", "energies", "base_energies"}
        assert np.array_equal(stored["samples"], draws.samples.numpy())


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 1, 1, 1)])
def test_a_critic_is_an_energy(shape):
    energy = gebm.critic(lambda x: x.sum(1).reshape(shape))
    x = torch.randn(5, 2)
    assert torch.equal(energy(x), -x.sum(1))
    with pytest.raises(InputError, match=r"critic: gives \(5, 2\) for 5 samples"):
        gebm.critic(lambda x: x)(x)


def test_nothing_is_trained_and_the_density_of_the_data_is_drawn_from():
    """The logit of N(1/2, 1/2) against N(0, 1), the best discriminator there is, as a critic."""
    ratio = torch.distributions.Normal(0.5, 0.5**0.5), torch.distributions.Normal(0.0, 1.0)
    critic = gebm.critic(lambda x: (ratio[0].log_prob(x) - ratio[1].log_prob(x)).sum(1, keepdim=True))
    draws = gebm.sample(gebm.GEBM(nn.Identity(), critic, gebm.GaussianPrior(2)), 4000)
    assert (draws.samples.mean(0) - 0.5).abs().max() < 4 * 0.5**0.5 / 1000**0.5
    assert (draws.samples.var(0) - 0.5).abs().max() < 4 * 0.5 * 2**0.5 / 1000**0.5


def test_all_that_the_root_names_is_there():
    assert set(gebm.__all__) <= set(dir(gebm)) and "__version__" in dir(gebm) and gebm.__version__
    for name in gebm.__all__:
        assert getattr(gebm, name).__module__.startswith("gebm.")
    code = "import gebm.samplers, sys; print(*(int(m in sys.modules) for m in ('gebm.training.loop', 'matplotlib')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["0", "0"]  # chains alone need neither
