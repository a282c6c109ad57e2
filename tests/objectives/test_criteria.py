"""What every criterion does, and what each one alone does."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebm.data import Batches
from gebm.errors import InputError
from gebm.latent import GaussianPrior
from gebm.metrics.partition import energies
from gebm.model import GEBM
from gebm.networks import ENERGIES
from gebm.objectives import OBJECTIVES, Hinge, Logistic, MaximumLikelihood, Wasserstein
from gebm.samplers import MALA
from gebm.training.negatives import Fresh, Replay
from gebm.training.trainer import Trainer


class Affine(nn.Module):
    """The flow x = mean + exp(log_scale) z of d coordinates."""

    def __init__(self, d: int, mean: float = 0.0, log_scale: float = 0.0):
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(torch.full((d,), mean)), nn.Parameter(torch.full((d,), log_scale))

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + self.log_scale.exp() * z

    def log_prob(self, x: Tensor) -> Tensor:
        z = (x - self.mean) * torch.exp(-self.log_scale)
        return (-z.square() / 2 - self.log_scale - math.log(2 * math.pi) / 2).sum(1)


class Ratio(nn.Module):
    """E = log g - log p + offset, so that exp(-E) g is exp(-offset) p."""

    def __init__(self, flow: Affine, base: Affine, offset: float):
        super().__init__()
        self.flow, self.offset = flow, nn.Parameter(torch.tensor(offset))
        self._base = (base,)  # no submodule

    @property
    def known_log_partition(self) -> Tensor:
        return -self.offset

    def log_density(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def forward(self, x: Tensor) -> Tensor:
        return self._base[0].log_prob(x).detach() - self.flow.log_prob(x) + self.offset


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def of(name: str, energy: nn.Module, penalty: str = "none", c: float = 0.0):
    return OBJECTIVES[name](energy, nn.Parameter(torch.tensor(c)), penalty, 0.1)


@pytest.mark.parametrize("penalty", ["none", "gradient_l2"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_reach_all_that_is_trained(name, penalty):
    torch.manual_seed(0)
    objective, base = of(name, ENERGIES["sngan"]((1, 8, 8), width=0.1), penalty), nn.Linear(3, 64)
    base_on_images = nn.Sequential(base, nn.Unflatten(1, (1, 8, 8)))
    loss, stats = objective(torch.randn(4, 1, 8, 8), torch.randn(6, 1, 8, 8))
    loss.backward()
    trained = dict(objective.named_parameters())
    if name != "fenchel":
        assert trained.pop("log_partition").grad is None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    expected = {"energy_real", "energy_fake", "c", "penalty"}
    expected |= set() if name == "cd" else {"kale", "kale_dv", "c_batch", "relative_ess"}
    assert stats.keys() == expected
    assert all(value.ndim == 0 and not value.requires_grad and value.isfinite() for value in stats.values())
    if name == "ml":
        with pytest.raises(InputError, match="--criterion ml: .*log_prob.* take a flow"):
            objective.base_loss(base_on_images, torch.randn(5, 3), None)
        return
    loss, e_fake = objective.base_loss(base_on_images, torch.randn(5, 3), None)
    loss.backward()
    assert base.weight.grad.isfinite().all() and base.weight.grad.abs().max() > 0
    assert e_fake.shape == (5,) and e_fake.isfinite().all() and not e_fake.requires_grad


@pytest.mark.parametrize("name", OBJECTIVES)
def test_alternating_training_moves_a_shifted_base_onto_the_data(name):
    """Data N(2, 1), base N(0, 1) with a mean to learn."""
    torch.manual_seed(0)
    base = Affine(1)
    base.log_scale.requires_grad_(False)
    energy = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 1), nn.Flatten(0))
    model = GEBM(base, energy, GaussianPrior(1))
    objective = OBJECTIVES[name](energy, model.log_partition, "gradient", 0.1)
    negatives = {"base": Fresh(), "model": Replay(MALA(0.5), 3, size=256)}[objective.fake_from]
    generator = torch.Generator().manual_seed(0)
    optimizers = torch.optim.Adam(objective.parameters(), 0.02, (0.5, 0.9)), torch.optim.Adam([base.mean], 0.05)

    def real() -> Tensor:
        return 2 + torch.randn(128, 1, generator=generator)

    means = []
    for step in range(400):
        loss, _ = objective(real(), negatives(model, 128, generator), generator)
        if step % 4 == 3:
            loss, _ = objective.base_loss(base, model.prior.sample(128, generator), real)
        optimizer = optimizers[step % 4 == 3]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        means.append(base.mean.item())
    assert sum(means[300:]) / 100 == pytest.approx(2, abs=0.5)


def test_a_known_partition_needs_no_samples_and_has_the_gradient_of_the_flow_itself():
    base, flow = Affine(2, 0.3, -0.2), Affine(2, -0.4, 0.1)
    energy, real = Ratio(flow, base, offset=1.7), normal(50, 2)
    objective = of("ml", energy, c=9.0)
    assert not objective.uses_samples and of("ml", flow).uses_samples
    loss, stats = objective(real)
    loss.backward()
    ours = [p.grad.clone() for p in flow.parameters()]
    flow.zero_grad()
    (-flow.log_prob(real).mean()).backward()
    torch.testing.assert_close(ours, [p.grad for p in flow.parameters()])
    assert energy.offset.grad is None  # the level of E is no matter
    torch.testing.assert_close(loss, -flow.log_prob(real).mean())
    assert stats.keys() == {"c", "c_batch", "penalty"} and stats["c_batch"].item() == pytest.approx(-1.7)
    assert not any(value.requires_grad for value in stats.values())
    # It is the general criterion but for the base's part, which has no parameters of the energy.
    bare = nn.Sequential(energy)  # which knows no density
    bare.known_log_partition = energy.known_log_partition
    general, stats = of("ml", bare)(real)
    torch.testing.assert_close(general - base.log_prob(real).mean(), loss)
    torch.testing.assert_close(list(torch.autograd.grad(general, list(flow.parameters()))), ours)
    torch.testing.assert_close(stats["kale_dv"], -general.detach())
    # Base samples agree: the partition is what it is said to be.
    y = base(normal(100_000, 2)).detach()
    _, sampled = of("kale", energy)(real, y)
    weights = torch.exp(-energy(y) - 1.7).detach() * math.exp(2 * 1.7)
    assert abs(sampled["c_batch"] + 1.7) < 4 * weights.std() / math.sqrt(len(y))


@pytest.mark.parametrize("start", [-8.0, 5.0])
def test_c_is_a_known_partition(start):
    objective = of("ml", Ratio(Affine(2), Affine(2), offset=-2.0), c=start)
    _, stats = objective(normal(4, 2))
    assert objective.log_partition.item() == stats["c"].item() == 2.0
    assert objective.c_is_known and not of("ml", Affine(2)).c_is_known


def test_an_unknown_partition_makes_maximum_likelihood_donsker_varadhan():
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 1), nn.Flatten(0))
    (a, of_a), (b, of_b) = (of(name, energy)(normal(20, 2), normal(30, 2, 1)) for name in ("ml", "donsker"))
    assert a.item() == b.item() and of_a.keys() == of_b.keys()


def test_the_base_of_maximum_likelihood_follows_its_own_likelihood():
    base, real = Affine(2, 0.5, 0.2), normal(50, 2)
    objective = MaximumLikelihood(nn.Linear(2, 1), nn.Parameter(torch.zeros(())))
    loss, e_fake = objective.base_loss(base, normal(3, 2), lambda: real)
    torch.testing.assert_close(loss, -base.log_prob(real).mean())
    assert len(e_fake) == 0


def test_the_gradient_penalty_without_samples_is_taken_at_the_data():
    flow, base, real = Affine(2, -0.4, 0.1), Affine(2), normal(50, 2)
    _, stats = of("ml", Ratio(flow, base, 0.0), "gradient")(real, None, torch.Generator().manual_seed(0))
    slope = (real - flow.mean) * torch.exp(-2 * flow.log_scale)
    torch.testing.assert_close(stats["penalty"], slope.square().sum(1).mean().detach())


class Column(nn.Module):
    """The energy that is the sample itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


@pytest.mark.parametrize(
    "kind, energy_loss, base_loss",
    [
        (Wasserstein, lambda r, f: r.mean() - f.mean(), lambda f: f.mean()),
        (Hinge, lambda r, f: F.relu(1 + r).mean() + F.relu(1 - f).mean(), lambda f: f.mean()),
        (Logistic, lambda r, f: -F.logsigmoid(-r).mean() - F.logsigmoid(f).mean(), lambda f: -F.logsigmoid(-f).mean()),
    ],
)
def test_adversarial_values(kind, energy_loss, base_loss):
    """With -E as the critic's logit: real where E is low."""
    objective = kind(Column(), nn.Parameter(torch.zeros(())), "none")
    real, fake = normal(20, 1), normal(30, 1, 1)
    torch.testing.assert_close(objective(real, fake)[0].detach(), energy_loss(real[:, 0], fake[:, 0]))
    torch.testing.assert_close(objective.base_loss(nn.Identity(), fake, None)[0], base_loss(fake[:, 0]))


def test_logistic_is_stationary_at_the_log_ratio():
    """Between N(1, 1) and N(0, 1), E = 1/2 - x: the gradient in both coefficients vanishes, and c = 0."""
    n, energy = 100_000, nn.Sequential(nn.Linear(1, 1), nn.Flatten(0))
    nn.init.constant_(energy[0].weight, -1.0)
    nn.init.constant_(energy[0].bias, 0.5)
    real, fake = 1 + normal(n, 1), normal(n, 1, 1)
    loss, stats = of("logistic", energy)(real, fake)
    loss.backward()
    for p, feature in ((energy[0].bias, torch.ones_like), (energy[0].weight, torch.clone)):
        up, down = torch.sigmoid(energy(real)) * feature(real)[:, 0], torch.sigmoid(-energy(fake)) * feature(fake)[:, 0]
        assert abs(p.grad.item()) < 4 * ((up.var() + down.var()) / n).sqrt()
    assert abs(stats["c_batch"]) < 4 * torch.exp(-energy(fake)).std() / math.sqrt(n)


class Critic(nn.Module):
    """Energies of shape (N, 1), as a critic often gives them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("penalty", ["none", "gradient_l2"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_energies_of_another_shape_are_refused_at_the_first_step(name, penalty):
    objective, line = (
        of(name, Critic(), penalty),
        r"the energy gives \(\d+, 1\) for (\d+) rows, not \(\1,\): squeeze it",
    )
    with pytest.raises(InputError, match=line):
        objective(normal(4, 2), normal(4, 2, 1) if objective.uses_samples else None)
    with pytest.raises(InputError, match=line):
        objective.energies(normal(4, 2))
    model = GEBM(nn.Linear(2, 2), Critic(), GaussianPrior(2))
    optimizers = torch.optim.SGD(objective.parameters(), 0.1), torch.optim.SGD(model.base.parameters(), 0.1)
    negatives = Replay(size=8) if objective.fake_from == "model" else Fresh()
    own = OBJECTIVES[name](model.energy, model.log_partition)
    trainer = Trainer(model, Batches(normal(8, 2), 4), own, *optimizers, negatives=negatives)
    for act in (trainer.energy_step, trainer.initialize_log_partition):
        with pytest.raises(InputError, match=line):
            act()
    for act in (model.log_ratio, lambda x: energies(model.energy, x), lambda z: model.posterior().energies(z)):
        with pytest.raises(InputError, match=line):
            act(normal(4, 2))
