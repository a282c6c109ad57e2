"""What the energy is contrasted with: samples of the base, of a pool, of persistent chains."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from gebm.errors import InputError
from gebm.latent import GaussianPrior
from gebm.model import GEBM
from gebm.objectives import ContrastiveDivergence
from gebm.samplers import HMC, MALA, SIR, SMC, KineticLangevin, Langevin, RandomWalk
from gebm.samplers.base import always_accepted
from gebm.training.negatives import Fresh, Pool, Replay


class Quadratic(nn.Module):
    r"""E(x) = x' A x / 2 - b' x: on the base N(0, I) the model is N((I + A)^-1 b, (I + A)^-1)."""

    def __init__(self, a: float = 0.0, b: float = 0.0, d: int = 2):
        super().__init__()
        self.a, self.b = nn.Parameter(a * torch.eye(d)), nn.Parameter(torch.full((d,), b))

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.a) * x).sum(1) / 2 - x @ self.b


class Counted(nn.Identity):
    """A base that is the identity and remembers how many samples it was asked for."""

    def forward(self, z: Tensor) -> Tensor:
        self.asked = [*getattr(self, "asked", []), len(z)]
        return z


def model(a: float = 1.0, b: float = 1.0, base: nn.Module | None = None) -> GEBM:
    return GEBM(base or nn.Identity(), Quadratic(a, b), GaussianPrior(2))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("negatives", [Fresh(), Pool(16), Replay(size=16)], ids=lambda n: type(n).__name__)
def test_samples_without_a_graph_and_networks_as_they_were(negatives):
    torch.manual_seed(0)
    pair = model(base=nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))).double().train()
    x = negatives(pair, 7, seeded())
    assert x.shape == (7, 2) and x.dtype == torch.float64 and not x.requires_grad
    assert all(p.grad is None and p.requires_grad for p in [*pair.base.parameters(), *pair.energy.parameters()])
    assert all(module.training for module in pair.modules())


def test_fresh_samples_are_the_bases():
    pair = model(base=nn.Linear(2, 2))
    assert torch.equal(Fresh()(pair, 5, seeded()), pair.generate(5, seeded()).detach())


def test_a_pool_is_drawn_once_until_it_is_used_up_or_the_base_changes():
    pair, pool, generator = model(base=Counted()), Pool(50, refresh=2), seeded()
    batches = [pool(pair, 30, generator) for _ in range(4)]  # the fourth begins below 2 * 50
    assert pair.base.asked == [50]
    rows = {tuple(row) for row in pool.samples.tolist()}
    drawn = [tuple(row) for batch in batches for row in batch.tolist()]
    assert rows.issuperset(drawn) and len(set(drawn)) > 35
    pool(pair, 30, generator)
    assert pair.base.asked == [50, 50]
    assert rows.isdisjoint(map(tuple, pool.samples.tolist()))
    pool.base_changed()
    pool(pair, 80, generator)  # more than there are
    assert pair.base.asked == [50, 50, 50]


@pytest.mark.parametrize("make", [lambda: Pool(20, 2), lambda: Replay(MALA(0.3), 2, size=20)], ids=["pool", "replay"])
def test_state_goes_on_where_it_was_taken(make):
    pair, first, other, generator = model(), make(), make(), seeded()
    first(pair, 10, generator)
    state, random = first.state_dict(), generator.get_state()
    other.load_state_dict(state)
    expected = [first(pair, 10, generator) for _ in range(5)]
    generator.set_state(random)
    assert all(torch.equal(x, other(pair, 10, generator)) for x in expected)
    other.load_state_dict({})  # of another source: afresh
    assert other(pair, 10, generator).shape == (10, 2)


@dataclass(frozen=True)
class Shift(Langevin):
    """Moves every coordinate by one."""

    def step(self, state, target, generator=None):
        return state._replace(position=state.position + 1), always_accepted(state.position)


def test_replay_moves_a_part_of_its_chains_and_keeps_them():
    pair, replay = model(), Replay(Shift(1.0), 10, size=1000, restart=0.0)
    x = replay(pair, 100, seeded())
    assert (replay.positions.mean(1) > 5).sum() == 100
    in_buffer = {tuple(row) for row in replay.positions.tolist()}
    assert in_buffer.issuperset(map(tuple, x.tolist())) and len(set(map(tuple, x.tolist()))) == 100
    generator = seeded(1)
    for _ in range(100):
        replay(pair, 100, generator)
    assert (replay.positions > 5).all() and replay.positions.mean() == pytest.approx(101, abs=0.2)


def test_replay_starts_a_share_again():
    pair, replay = model(), Replay(Shift(1.0), 100, restart=0.2)
    replay(pair, 10_000, seeded())
    replay.positions += 1000
    replay(pair, 10_000, seeded(1))
    share = float((replay.positions[:, 0] < 500).float().mean())
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 10_000)


@pytest.mark.parametrize(
    "kernel, steps",
    [(MALA(0.3), 4), (HMC(0.4, 3), 2), (RandomWalk(0.8), 15), (KineticLangevin(0.3, 0.1), 5), (Langevin(0.02), 50)],
    ids=lambda k: type(k).__name__ if not isinstance(k, int) else "",
)
def test_replay_draws_from_the_model(kernel, steps):
    """A = b = 1: N(1/2, 1/2) in each coordinate, after a few draws, under any kernel."""
    pair, replay, n = model(), Replay(kernel, steps, size=2000, restart=0.0), 2000
    generator = seeded()
    for _ in range(6):
        x = replay(pair, n, generator)
    assert abs(x.mean() - 0.5) < 4 * math.sqrt(0.5 / (2 * n))
    assert abs(x.var(0).mean() - 0.5) < 4 * 0.5 * math.sqrt(2 / (2 * n)) + 0.01  # Langevin at h = 0.02: 1 % too wide


def test_the_base_of_a_chain_is_in_evaluation_mode():
    norm = nn.BatchNorm1d(2)
    pair = model(base=norm).train()
    Replay(size=8)(pair, 8, seeded())
    assert norm.training and norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Pool(0), "Pool: size 0"),
        (lambda: Pool(10, 0), "refresh 0"),
        (lambda: Replay(size=0), "size 0"),
        (lambda: Replay(steps=0), "steps 0"),
        (lambda: Replay(restart=1.5), "restart 1.5"),
        (lambda: Replay(SMC(0.1)), "chains of SMC cannot go on"),
        (lambda: Replay(SIR()), "chains of SIR cannot go on"),
        (lambda: Replay(size=10)(model(), 11), "11 samples of 10 chains; give more chains or a smaller batch"),
    ],
)
def test_bad_numbers(make, says):
    with pytest.raises(InputError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_contrastive_divergence_finds_the_gaussian_of_the_data():
    """Rows of known mean and covariance, a quadratic energy on N(0, I): the model takes them on."""
    n, steps, kept = 500, 500, 250
    mean, scale = torch.tensor([0.6, -0.4]), torch.tensor([[0.8, 0.0], [0.2, 0.7]])
    z = torch.randn(n, 2, generator=seeded())
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T, correction=0))).T
    real, covariance = mean + z @ scale.T, scale @ scale.T
    pair = model(0.0, 0.0)
    objective = ContrastiveDivergence(pair.energy, pair.log_partition, "none")
    replay, generator = Replay(MALA(0.4), 4, size=n), seeded()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.5)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        objective(real, replay(pair, n, generator))[0].backward()
        optimizer.step()
        found.append((pair.energy.a.detach() + torch.eye(2), pair.energy.b.detach().clone()))
    precision, b = (torch.stack(values[-kept:]).mean(0) for values in zip(*found))
    precision = (precision + precision.T) / 2
    # Averaged over the last draws, whose chains forget within about three of them.
    se = math.sqrt(3 / (n * kept))
    assert ((torch.linalg.solve(precision, b) - mean).abs() / covariance.diagonal().sqrt()).max() < 4 * se
    ratio = torch.linalg.inv(torch.linalg.cholesky(covariance))
    assert (ratio @ torch.linalg.inv(precision) @ ratio.T - torch.eye(2)).abs().max() < 4 * math.sqrt(2) * se
    assert pair.log_partition.item() == 0
