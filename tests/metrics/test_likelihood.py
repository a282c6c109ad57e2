"""Likelihoods of pairs against densities in closed form."""

import math

import pytest
import torch

from gebm.data import Batches
from gebm.metrics.likelihood import base_log_prob, log_partition, model_log_prob, nll
from gebm.model import GEBM, Architecture
from gebm.objectives import KALE
from gebm.training.trainer import Trainer

MEAN, STD = torch.tensor([0.6, -0.4]), torch.tensor([0.7, 1.1])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truth(x: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Normal(MEAN, STD).log_prob(x).sum(1)


@pytest.fixture(scope="module")
def trained() -> GEBM:
    """A standard Gaussian base, which the data are not of, and an energy fitted on top of it with the base frozen."""
    torch.manual_seed(0)
    model = GEBM.build(Architecture("gaussian", "mlp", shape=(2,), latent_dim=2, blocks=1, width=0.5))
    rows = MEAN + STD * torch.randn(20_000, 2, generator=generator(1))
    objective = KALE(model.energy, model.log_partition, "none")
    trainer = Trainer(
        model, Batches(rows, 500, generator=generator(2)), objective, torch.optim.Adam(objective.parameters(), 3e-3),
        torch.optim.Adam(model.base.parameters()), generator=generator(3),
    )  # fmt: skip
    trainer.start("refine")
    for step in range(800):
        trainer.scale_lr(1 - step / 800)
        trainer.energy_step()
    return model


def test_an_energy_on_a_wrong_gaussian_recovers_the_data_s_likelihood(trained):
    x = MEAN + STD * torch.randn(50_000, 2, generator=generator(4))
    base = nll(base_log_prob(trained, x)).value
    partition = log_partition(trained, 100_000, generator(5))
    gap = nll(model_log_prob(trained, x, partition.value) - truth(x))  # minus the mean of log q/p: KL(p, q)
    assert base - nll(truth(x)).value > 0.3, "the base is to be wrong"
    assert abs(gap.value) < 0.02 and gap.value > -4 * gap.se - 4 * partition.se
    # c is the log-partition too, and what KALE converges to is known: log E_G[p/g] = 0 at E = -log p/g.
    assert trained.log_partition.item() == pytest.approx(partition.value, abs=0.02)


def test_a_partition_is_exact_where_it_is_known_and_estimated_where_not():
    torch.manual_seed(0)
    model = GEBM.build(Architecture("gaussian", "gaussian", shape=(2,), latent_dim=2))
    model.energy.offset.fill_(1.5)
    assert log_partition(model, 10)[:4] == (-1.5, 0.0, 1.0, 0)
    x = torch.randn(100, 2, generator=generator(0))
    exact = -0.5 * x.square().sum(1).double() - math.log(2 * math.pi)
    torch.testing.assert_close(model_log_prob(model, x, -1.5), exact, atol=1e-5, rtol=0)
    with torch.no_grad():  # of another energy it is a mean over base samples: E = a x has log E[exp(-a x)] = a^2/2
        model.energy = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
        model.energy[0].weight.copy_(torch.tensor([[0.5, 0.0]]))
        model.energy[0].bias.zero_()
    found = log_partition(model, 200_000, generator(1))
    assert abs(found.value - 0.125) < 4 * found.se and found.n == 200_000
    assert found.relative_ess == pytest.approx(math.exp(-0.25), rel=0.02)


def test_with_a_moving_average_the_sampled_model_is_still_normalised():
    """A flow's energy is relative to a base: to the average where the average is what is sampled."""
    torch.manual_seed(0)
    model = GEBM.build(Architecture("nvp", "nvp", shape=(2,), latent_dim=2, blocks=2, width=0.2))
    objective = KALE(model.energy, model.log_partition, "none")
    trainer = Trainer(
        model, Batches(torch.randn(200, 2, generator=generator(1)), 50, generator=generator(2)), objective,
        torch.optim.Adam(objective.parameters(), 1e-2), torch.optim.Adam(model.base.parameters(), 1e-2), ema=0.99,
        generator=generator(3),
    )  # fmt: skip
    for _ in range(20):
        trainer.likelihood_step()
    x = torch.randn(100, 2, generator=generator(4))
    raw, average = (base_log_prob(m, x) for m in (model, trainer.sampled_model))
    assert (raw - average).abs().max() > 0.01, "the average is to be another base"
    exact = model.energy.log_density(x).double()
    for sampled in (model, trainer.sampled_model):
        torch.testing.assert_close(model_log_prob(sampled, x, 0.0), exact, rtol=0, atol=1e-4)
    before = exact.clone()
    trainer.sampled_model.energy.flow.load_state_dict(trainer.average.module.state_dict())  # the weights are shared
    assert (model.energy.log_density(x).double() - before).abs().max() > 0.01
