"""KALE in both forms between Gaussians, where every optimum is known."""

import copy
import math

import pytest
import torch
from torch import nn

from gebm.metrics.partition import evaluate_kale
from gebm.networks import ENERGIES
from gebm.objectives import KALE, OBJECTIVES, DonskerVaradhan, log_mean_exp
from gebm.penalties import gradient_penalty, l2_penalty

# Data P = N(M, S^2) and base G = N(0, 1): every optimum is known.
M, S = 0.5, 0.8
KL = -math.log(S) + (S**2 + M**2 - 1) / 2


class Quadratic(nn.Module):
    """E(x) = a x + b x^2 + shift; with the default a and b it is -log dP/dG up to a constant."""

    def __init__(self, a: float = -M / S**2, b: float = (1 / S**2 - 1) / 2, shift: float = 0.0):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))
        self.shift = shift
        self.batches = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        return (self.a * x + self.b * x.square()).flatten(1).sum(1) + self.shift


C_STAR = math.log(S) + M**2 / (2 * S**2)  # log E_G exp(-E) of the default energy


def data(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return M + S * torch.randn(n, 1, generator=generator), torch.randn(n, 1, generator=generator)


def kale(energy: nn.Module, c: float = 0.0, penalty_type: str = "none", penalty_lambda: float = 0.1) -> KALE:
    return KALE(energy, nn.Parameter(torch.tensor(c, dtype=torch.float32)), penalty_type, penalty_lambda)


def no_data() -> torch.Tensor:
    raise AssertionError("a base step asked for data")


def test_log_mean_exp():
    a = torch.tensor([0.3, -2.0, 1.5], dtype=torch.float64)
    torch.testing.assert_close(log_mean_exp(a), a.exp().mean().log())
    torch.testing.assert_close(log_mean_exp(a - 5000), log_mean_exp(a) - 5000)


@pytest.mark.parametrize("shift", [-2.0, 0.0, 30.0])
def test_optimum_between_gaussians(shift):
    """At E = -log dP/dG + shift the optimal c is log E_G exp(-E), and the value is KL(P || G), in both forms."""
    n = 50_000
    real, fake = data(n)
    c = C_STAR - shift
    energy = Quadratic(shift=shift)
    _, stats = kale(energy, c)(real, fake)
    with torch.no_grad():
        e_real, weights = energy(real), torch.exp(-(energy(fake) + c))
    se_c = weights.std() / math.sqrt(n)
    se = math.hypot(e_real.std() / math.sqrt(n), se_c)
    assert abs(stats["kale"] - KL) < 4 * se
    assert abs(stats["kale_dv"] - KL) < 4 * se
    assert abs(stats["c_batch"] - c) < 4 * se_c
    assert 4 * se < 0.03 * KL + 0.01  # the bounds say something
    objective = DonskerVaradhan(energy, nn.Parameter(torch.tensor(5.0)), "none")  # c has no part in its value
    loss, stats = objective(real, fake)
    assert abs(-loss - KL) < 4 * se
    torch.testing.assert_close(stats["kale_dv"], -loss.detach())


@pytest.mark.parametrize("c", [-3.0, -0.5, 0.0, 0.7, 4.0])
def test_fenchel_is_below_donsker_varadhan(c):
    """The gap is exp(c~ - c) - 1 - (c~ - c), zero where c is the log-partition of the batch."""
    real, fake = data(100)
    _, stats = kale(Quadratic(), c)(real, fake)
    d = stats["c_batch"] - c
    torch.testing.assert_close(stats["kale_dv"] - stats["kale"], torch.exp(d) - 1 - d, rtol=1e-4, atol=1e-5)
    assert stats["kale_dv"] >= stats["kale"]
    _, best = kale(Quadratic(), float(stats["c_batch"]))(real, fake)
    torch.testing.assert_close(best["kale"], best["kale_dv"])


@pytest.mark.parametrize("c", [-60.0, -3.0, 0.4, 2.0])
def test_gradient_of_c_is_bounded_and_adds_no_value(c):
    objective = kale(Quadratic(), c)
    loss, stats = objective(*data(100))
    loss.backward()
    torch.testing.assert_close(objective.log_partition.grad, 1 - torch.exp((stats["c_batch"] - c).clamp(max=2)))
    torch.testing.assert_close(loss.detach(), -stats["kale"], rtol=1e-5, atol=1e-5)
    assert not any(value.requires_grad for value in stats.values())


def test_c_and_the_level_of_the_energy_have_one_gradient():
    """Only E + c matters: were their gradients zero at different places, both would drift without end."""
    energy = Quadratic()
    energy.shift = nn.Parameter(torch.tensor(0.2))
    objective = kale(energy, -0.7)
    objective(*data(100))[0].backward()
    torch.testing.assert_close(objective.log_partition.grad, energy.shift.grad)


def test_c_settles_at_the_log_partition_and_not_at_the_mean_of_the_batches():
    """On batches of five the mean of log-mean-exp(-E) is Var / 10 below log Z and a harmonic mean twice that."""
    n, steps = 5, 20_000
    generator = torch.Generator().manual_seed(0)
    objective = kale(Quadratic(a=-0.8, b=0.1), 0.0)
    log_z = 0.8**2 / (2 * 1.2) - 0.5 * math.log(1.2)
    trace = torch.empty(steps)
    for i in range(steps):
        c_batch = log_mean_exp(-objective.energy(torch.randn(n, 1, generator=generator))).detach()
        with torch.no_grad():
            objective.log_partition -= 0.02 * objective.slope(c_batch)
        trace[i] = objective.log_partition.detach()
    weights = torch.exp(-objective.energy(data(100_000)[1]) - log_z).detach()
    settled = trace[1000:]
    se = float(weights.std()) / math.sqrt(n * len(settled))
    assert abs(settled.mean() - log_z) < 0.01 * weights.var() / n + 4 * se  # the step size adds the former
    assert 4 * se < 0.2 * weights.var() / (2 * n)


def test_energy_gradient_is_that_of_the_fenchel_form():
    """Only c's is bounded: the energy's gradient is E_P[dE] - E_G[exp(-(E + c)) dE]."""
    (real, fake), c = data(100), 0.3
    energy = Quadratic()
    kale(energy, c)(real, fake)[0].backward()
    weights = torch.exp(-(energy(fake) + c)).detach()
    torch.testing.assert_close(energy.a.grad, real.mean() - (weights * fake[:, 0]).mean())
    torch.testing.assert_close(energy.b.grad, real.square().mean() - (weights * fake[:, 0].square()).mean())


@pytest.mark.parametrize("c", [-3.0, 0.4])
def test_energy_gradient_of_the_donsker_varadhan_form(c):
    """E_P[dE] - E_w[dE], w = softmax(-E) over the batch, whatever c is; c has the derivative it has in KALE."""
    real, fake = data(100)
    objective = DonskerVaradhan(Quadratic(), nn.Parameter(torch.tensor(c)), "none")
    loss, stats = objective(real, fake)
    loss.backward()
    energy, weights = objective.energy, torch.softmax(-objective.energy(fake), 0).detach()
    torch.testing.assert_close(energy.a.grad, real.mean() - weights @ fake[:, 0])
    torch.testing.assert_close(energy.b.grad, real.square().mean() - weights @ fake[:, 0].square())
    torch.testing.assert_close(objective.log_partition.grad, 1 - torch.exp((stats["c_batch"] - c).clamp(max=2)))


@pytest.mark.parametrize("name", ["kale", "donsker", "wasserstein"])
@pytest.mark.parametrize("start", [-12.0, 6.0])
def test_c_converges_to_the_true_log_partition(name, start):
    """From far below and far above, on fresh batches under the optimiser of the documented training."""
    n, steps = 400, 500
    objective = OBJECTIVES[name](Quadratic(shift=3.0), nn.Parameter(torch.tensor(start)), "none")
    optimizer = torch.optim.Adam([objective.log_partition], 0.05, (0.5, 0.9))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, 4 * (1 - step / steps)) ** 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        fake = torch.randn(n, 1, generator=generator)
        objective(fake, fake)[0].backward()
        optimizer.step()
        schedule.step()
    weights = torch.exp(-objective.energy(data(10_000)[1]) - C_STAR + 3.0).detach()
    se = weights.std() / math.sqrt(n)
    assert abs(objective.log_partition.item() - (C_STAR - 3.0)) < se  # that of one batch: c remembers many


@pytest.mark.parametrize("start", [-40.0, -1.0, 2.0])
def test_c_converges_by_itself(start):
    objective = kale(Quadratic(), start)
    optimizer = torch.optim.SGD([objective.log_partition], lr=0.5)
    batch = data(100)
    for _ in range(120):
        optimizer.zero_grad()
        loss, stats = objective(*batch)
        loss.backward()
        optimizer.step()
    assert objective.log_partition.item() == pytest.approx(stats["c_batch"].item(), abs=1e-4)


def test_base_gradient_is_weighted_by_the_posterior():
    energy = Quadratic()
    fake = data(50)[1].requires_grad_()
    loss, c_batch = kale(energy, c=-7.0).base_loss(nn.Identity(), fake, no_data)
    (gradient,) = torch.autograd.grad(loss, fake)
    weights = torch.softmax(-energy(fake), 0).detach()
    slope = energy.a + 2 * energy.b * fake
    torch.testing.assert_close(gradient, (weights[:, None] * slope).detach())
    torch.testing.assert_close(loss, -log_mean_exp(-energy(fake)))
    assert torch.equal(c_batch, -loss.detach()) and not c_batch.requires_grad


@pytest.mark.parametrize("penalty_type, forwards", [("none", 1), ("l2", 1), ("gradient", 2), ("gradient_l2", 2)])
def test_one_forward_of_real_and_fake_and_one_of_the_penalty(penalty_type, forwards):
    energy = Quadratic()
    real, fake = data(30)
    loss, stats = kale(energy, 0.0, penalty_type, penalty_lambda=0.7)(real[:20], fake, torch.Generator().manual_seed(0))
    assert energy.batches == [50, 20][:forwards]
    expected = 0.0
    if "gradient" in penalty_type:
        expected += gradient_penalty(energy, real[:20], fake, torch.Generator().manual_seed(0))
    if "l2" in penalty_type:
        expected += l2_penalty(energy)
    assert float(stats["penalty"]) == pytest.approx(float(torch.as_tensor(expected).detach()))
    torch.testing.assert_close(loss.detach(), -stats["kale"] + 0.7 * stats["penalty"])


@pytest.mark.parametrize("name", ["sngan", "resnet-sn"])
@pytest.mark.parametrize("penalty_type", ["none", "gradient_l2"])
def test_one_power_iteration_a_step(name, penalty_type):
    torch.manual_seed(0)
    energy = ENERGIES[name]((1, 8, 8), width=0.1)
    once = copy.deepcopy(energy)
    x = torch.randn(6, 1, 8, 8)
    kale(energy, 0.0, penalty_type)(x, -x)[0].backward()
    with torch.no_grad():
        once(x)
    after, before = energy.state_dict(), once.state_dict()
    vectors = [key for key in before if key.endswith("_u")]
    assert vectors and all(torch.equal(after[key], before[key]) for key in vectors)


def test_training_reaches_the_closed_form():
    """A quadratic energy and c trained on fresh batches: KALE, the energy and c arrive at their known values."""
    n, steps = 1000, 800
    energy = Quadratic(a=0.0, b=0.0)
    objective = kale(energy)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.03, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.03 ** (1 / steps))
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        real, fake = M + S * torch.randn(n, 1, generator=generator), torch.randn(n, 1, generator=generator)
        objective(real, fake)[0].backward()
        optimizer.step()
        schedule.step()
    real, fake = data(100_000, seed=1)
    with torch.no_grad():
        e_real, e_fake = energy(real).double(), energy(fake).double()
    result = evaluate_kale(e_real, e_fake, objective.log_partition.item())
    se = math.hypot(e_real.std() / math.sqrt(len(real)), result.log_partition_se)
    assert abs(result.fenchel - KL) < 4 * se and abs(result.donsker_varadhan - KL) < 4 * se
    # c remembers many batches: far nearer to the log-partition than the estimate of one batch.
    se_c = math.hypot(result.log_partition_se, result.log_partition_se * math.sqrt(len(real) / n) / 4)
    assert abs(result.c - result.log_partition) < 4 * se_c
    best = Quadratic()
    assert energy.a.item() == pytest.approx(best.a.item(), abs=0.05)
    assert energy.b.item() == pytest.approx(best.b.item(), abs=0.05)
