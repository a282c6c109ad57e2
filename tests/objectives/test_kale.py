"""KALE in both forms between Gaussians, where every optimum is known."""

import copy
import math

import pytest
import torch
from torch import nn

from gebm.errors import InputError
from gebm.metrics.partition import evaluate_kale
from gebm.networks import ENERGIES
from gebm.objectives import KALE, OBJECTIVES, DonskerVaradhan, Fenchel, log_mean_exp
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


def parameter(c: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(c, dtype=torch.float32))


def fenchel(energy: nn.Module, c: float = 0.0, penalty_type: str = "none", penalty_lambda: float = 0.1) -> Fenchel:
    return Fenchel(energy, parameter(c), penalty_type, penalty_lambda)


def kale(energy: nn.Module, penalty_type: str = "none", penalty_lambda: float = 0.1, **options) -> KALE:
    return KALE(energy, parameter(0.0), penalty_type, penalty_lambda, **options)


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
    _, stats = fenchel(energy, c)(real, fake)
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
    _, stats = fenchel(Quadratic(), c)(real, fake)
    d = stats["c_batch"] - c
    torch.testing.assert_close(stats["kale_dv"] - stats["kale"], torch.exp(d) - 1 - d, rtol=1e-4, atol=1e-5)
    assert stats["kale_dv"] >= stats["kale"]
    _, best = fenchel(Quadratic(), float(stats["c_batch"]))(real, fake)
    torch.testing.assert_close(best["kale"], best["kale_dv"])


@pytest.mark.parametrize("c", [-60.0, -3.0, 0.4, 2.0])
def test_gradient_of_c_is_bounded_and_adds_no_value(c):
    objective = fenchel(Quadratic(), c)
    loss, stats = objective(*data(100))
    loss.backward()
    torch.testing.assert_close(objective.log_partition.grad, 1 - torch.exp((stats["c_batch"] - c).clamp(max=2)))
    torch.testing.assert_close(loss.detach(), -stats["kale"], rtol=1e-5, atol=1e-5)
    assert not any(value.requires_grad for value in stats.values())


def test_c_and_the_level_of_the_energy_have_one_gradient_in_fenchel_form():
    """Only E + c matters: were their gradients zero at different places, both would drift without end."""
    energy = Quadratic()
    energy.shift = nn.Parameter(torch.tensor(0.2))
    objective = fenchel(energy, -0.7)
    objective(*data(100))[0].backward()
    torch.testing.assert_close(objective.log_partition.grad, energy.shift.grad)


def test_c_settles_at_the_log_partition_and_not_at_the_mean_of_the_batches():
    """On batches of five the mean of log-mean-exp(-E) is Var / 10 below log Z; exp(c) has the mean Z."""
    n, steps, memory = 5, 20_000, 20
    generator = torch.Generator().manual_seed(0)
    objective = kale(Quadratic(a=-0.8, b=0.1), memory=memory)
    log_z = 0.8**2 / (2 * 1.2) - 0.5 * math.log(1.2)
    trace, batches = torch.empty(steps), torch.empty(steps)
    for i in range(steps):
        energies = objective.energy(torch.randn(n, 1, generator=generator)).detach()
        objective.follow(energies)
        trace[i], batches[i] = objective.log_partition, log_mean_exp(-energies)
    z = torch.exp(trace[1000:] - log_z)
    weights = torch.exp(-objective.energy(data(100_000)[1]) - log_z).detach()
    se = float(weights.std()) / math.sqrt(n * len(z))
    bias = float(weights.var()) / (2 * n)
    assert abs(z.mean() - 1) < 4 * se + 0.1 * bias  # the noise of the level, by which earlier batches are carried
    assert batches.mean() - log_z < -0.5 * bias  # which the bounds tell from that
    assert 4 * se + 0.1 * bias < 0.35 * bias


def test_c_is_the_log_partition_of_the_last_batches_together():
    objective = kale(Quadratic(), memory=3)
    batches = [torch.randn(7, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    batches = [b - b.median() for b in batches]  # one level
    for i, batch in enumerate(batches):
        objective.follow(batch)
        torch.testing.assert_close(
            objective.log_partition.data, log_mean_exp(-torch.cat(batches[max(0, i - 2) : i + 1]))
        )


@pytest.mark.parametrize("drift", [-3.0, 0.5, 10.0])
def test_c_keeps_up_with_energies_that_all_rise_or_fall(drift):
    """A ramp of the level leaves c no farther from the log-partition than the noise of its batches."""
    generator, memory = torch.Generator().manual_seed(0), 20
    objective = kale(Quadratic(), memory=memory)
    error = []
    for step in range(300):
        objective.follow(torch.randn(64, generator=generator) + drift * step)
        error.append(float(objective.log_partition) - (0.5 - drift * step))  # log E exp(-N(0, 1)) = 1/2
    late = torch.tensor(error[100:])
    se_batch = math.sqrt((math.e - 1) / 64)  # of exp(-E) relative to its mean
    assert late.abs().max() < 4 * se_batch / math.sqrt(memory) + 0.25
    assert late.abs().mean() < se_batch  # that of one batch alone


def test_what_c_was_set_to_counts_as_many_batches():
    objective = kale(Quadratic(), memory=4)
    objective.remember(torch.full((10,), 2.0))
    assert objective.log_partition.item() == -2.0
    objective.follow(torch.tensor([1.0, 2.0, 3.0]))  # the same level
    z = (3 * math.exp(-2) + (math.exp(-1) + math.exp(-2) + math.exp(-3)) / 3) / 4
    assert objective.log_partition.item() == pytest.approx(math.log(z))
    objective.eval()
    objective(*data(100))
    assert objective.log_partition.item() == pytest.approx(math.log(z))  # nothing is taken in while it is evaluated
    objective.train().forget()
    objective.follow(torch.full((5,), 7.0))
    assert objective.log_partition.item() == pytest.approx(-7.0)


@pytest.mark.parametrize("outlier, share", [(500.0, 0.01), (2000.0, 0.002), (math.inf, 0.02)])
def test_samples_that_weigh_nothing_do_not_move_c(outlier, share):
    """Energies far above the others have no part in the partition; their mean would carry what c remembers."""
    generator = torch.Generator().manual_seed(0)
    objective, error = kale(Quadratic()), []
    for _ in range(300):
        energies = torch.randn(64, generator=generator)
        energies[torch.rand(64, generator=generator) < share] = outlier
        objective.follow(energies)
        error.append(float(objective.log_partition) - 0.5 - math.log(1 - share))
    late = torch.tensor(error[50:])
    se = math.sqrt((math.e - 1) / 64 / 20)
    assert late.abs().max() < 5 * se + 0.15  # the level's own noise
    assert abs(late.mean()) < 0.05


def test_a_memory_without_batches_is_refused():
    with pytest.raises(InputError, match="memory 0: c remembers at least 1 batch"):
        kale(Quadratic(), memory=0)


def gradient(objective, real, fake) -> torch.Tensor:
    objective.energy.zero_grad()
    objective(real, fake)[0].backward()
    return torch.stack([objective.energy.a.grad, objective.energy.b.grad])


def test_the_mean_step_of_kale_is_that_of_its_fenchel_form_at_the_log_partition():
    """Where single batches of Donsker-Varadhan are biased: small ones, with uneven weights."""
    n, batches = 8, 6000
    generator = torch.Generator().manual_seed(0)
    a, b = -0.7, 0.05
    log_z = a**2 / (2 * (1 + 2 * b)) - 0.5 * math.log(1 + 2 * b)
    found = {"kale": [], "donsker": []}
    for name in found:
        objective = OBJECTIVES[name](Quadratic(a, b), parameter(0.0), "none", memory=200)
        for _ in range(200):
            objective.follow(objective.energy(torch.randn(n, 1, generator=generator)).detach())
        for _ in range(batches):
            real, fake = M + S * torch.randn(n, 1, generator=generator), torch.randn(n, 1, generator=generator)
            found[name].append(gradient(objective, real, fake))
    # In closed form: E_P[dE] - E_w[dE], w the normal law of precision 1 + 2 b.
    mean, variance = -a / (1 + 2 * b), 1 / (1 + 2 * b)
    exact = torch.tensor([M - mean, M**2 + S**2 - mean**2 - variance])
    kale_error = torch.stack(found["kale"]).mean(0) - exact
    donsker_error = torch.stack(found["donsker"]).mean(0) - exact
    se = torch.stack(found["kale"]).std(0) / math.sqrt(batches)
    weights = torch.exp(-Quadratic(a, b)(data(100_000)[1]) - log_z).detach()
    clipped = 2 * float(weights.std()) / math.sqrt(200 * n)  # c's own noise
    assert (kale_error.abs() < 4 * se + clipped).all()
    assert donsker_error.abs().max() > 2 * kale_error.abs().max()


@pytest.mark.parametrize("name", ["kale", "donsker"])
def test_energies_are_kept_off_their_floor(name):
    """Where nothing holds the level, a push that takes it down ends on the floor, and there is no way back."""
    real, fake = data(200)
    slope = {}
    for floor in (None, -10.0):
        for level in (0.0, -9.0):
            energy = Quadratic()
            energy.shift, energy.floor = nn.Parameter(torch.tensor(level)), floor
            objective = OBJECTIVES[name](energy, parameter(0.0), "none")
            objective.remember(energy(fake).detach())
            objective(real, fake)[0].backward()
            slope[floor, level] = float(energy.shift.grad)
    assert abs(slope[None, 0.0]) < 1e-5 and abs(slope[None, -9.0]) < 1e-5 and abs(slope[-10.0, 0.0]) < 1e-5
    assert slope[-10.0, -9.0] == pytest.approx(-(9.0 + C_STAR - 2.0), abs=0.2)  # descent takes the level up


@pytest.mark.parametrize("shift, weight", [(-30.0, 1.0), (-0.6, 1 / 0.549), (0.6, 0.549), (0.8, 1.0), (30.0, 1.0)])
def test_a_batch_counts_by_its_partition_up_to_a_factor_of_two(shift, weight):
    """The step is `weight` times that of Donsker-Varadhan, however far c is from the log-partition of the batch."""
    real, fake = data(100)
    objective = kale(Quadratic(), memory=50)
    energies = objective.energy(fake).detach()
    objective.remember(energies - shift)
    objective.level.copy_(energies.median())  # c is off, and the energies have not moved
    objective.recent.copy_(objective.log_partition + objective.level)
    donsker = gradient(DonskerVaradhan(Quadratic(), parameter(0.0), "none"), real, fake)
    ratio = gradient(objective, real, fake) / donsker
    torch.testing.assert_close(ratio, torch.full((2,), weight), rtol=0.04, atol=0)


def test_energy_gradient_of_the_fenchel_form():
    """Only c's is bounded: the energy's gradient is E_P[dE] - E_G[exp(-(E + c)) dE]."""
    (real, fake), c = data(100), 0.3
    energy = Quadratic()
    fenchel(energy, c)(real, fake)[0].backward()
    weights = torch.exp(-(energy(fake) + c)).detach()
    torch.testing.assert_close(energy.a.grad, real.mean() - (weights * fake[:, 0]).mean())
    torch.testing.assert_close(energy.b.grad, real.square().mean() - (weights * fake[:, 0].square()).mean())


@pytest.mark.parametrize("c", [-3.0, 0.4])
def test_energy_gradient_of_the_donsker_varadhan_form(c):
    """E_P[dE] - E_w[dE], w = softmax(-E) over the batch, whatever c is."""
    real, fake = data(100)
    objective = DonskerVaradhan(Quadratic(), nn.Parameter(torch.tensor(c)), "none")
    loss, stats = objective(real, fake)
    loss.backward()
    energy, weights = objective.energy, torch.softmax(-objective.energy(fake), 0).detach()
    torch.testing.assert_close(energy.a.grad, real.mean() - weights @ fake[:, 0])
    torch.testing.assert_close(energy.b.grad, real.square().mean() - weights @ fake[:, 0].square())
    assert objective.log_partition.grad is None


@pytest.mark.parametrize("name", ["kale", "donsker", "wasserstein"])
@pytest.mark.parametrize("start", [-12.0, 6.0])
def test_c_comes_to_the_true_log_partition_whatever_the_learning_rate(name, start):
    """From far below and far above, within its memory: no optimiser takes part."""
    n, memory = 400, 20
    objective = OBJECTIVES[name](Quadratic(shift=3.0), parameter(start), "none", memory=memory)
    objective.remember(torch.full((10,), -start))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2 * memory):
        fake = torch.randn(n, 1, generator=generator)
        objective(fake, fake)
    weights = torch.exp(-objective.energy(data(10_000)[1]) - C_STAR + 3.0).detach()
    se = weights.std() / math.sqrt(n * memory)
    assert abs(objective.log_partition.item() - (C_STAR - 3.0)) < 4 * se + 0.05


@pytest.mark.parametrize("start", [-40.0, -1.0, 2.0])
def test_c_converges_by_itself(start):
    objective = fenchel(Quadratic(), start)
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
    loss, e_fake = fenchel(energy, c=-7.0).base_loss(nn.Identity(), fake, no_data)
    (gradient,) = torch.autograd.grad(loss, fake)
    weights = torch.softmax(-energy(fake), 0).detach()
    slope = energy.a + 2 * energy.b * fake
    torch.testing.assert_close(gradient, (weights[:, None] * slope).detach())
    torch.testing.assert_close(loss, -log_mean_exp(-energy(fake)))
    assert torch.equal(e_fake, energy(fake)) and not e_fake.requires_grad


@pytest.mark.parametrize("penalty_type, forwards", [("none", 1), ("l2", 1), ("gradient", 2), ("gradient_l2", 2)])
def test_one_forward_of_real_and_fake_and_one_of_the_penalty(penalty_type, forwards):
    energy = Quadratic()
    real, fake = data(30)
    loss, stats = fenchel(energy, 0.0, penalty_type, penalty_lambda=0.7)(
        real[:20], fake, torch.Generator().manual_seed(0)
    )
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
    kale(energy, penalty_type)(x, -x)[0].backward()
    with torch.no_grad():
        once(x)
    after, before = energy.state_dict(), once.state_dict()
    vectors = [key for key in before if key.endswith("_u")]
    assert vectors and all(torch.equal(after[key], before[key]) for key in vectors)


@pytest.mark.parametrize("form", [kale, fenchel])
def test_training_reaches_the_closed_form(form):
    """A quadratic energy and c trained on fresh batches: KALE, the energy and c arrive at their known values."""
    n, steps = 1000, 800
    energy = Quadratic(a=0.0, b=0.0)
    objective = form(energy)
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
