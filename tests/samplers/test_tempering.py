"""The path from the prior to the target: kernels aimed at a point of it, and what their states remember."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from gebm.latent import GaussianPrior, LatentPosterior, prior_potential, value_and_grad
from gebm.samplers import (
    HMC,
    MALA,
    SIR,
    GradientDescent,
    IndependentMetropolis,
    KineticLangevin,
    Langevin,
    RandomWalk,
    SphereLangevin,
    TruncatedLangevin,
    ramp,
    run,
)  # fmt: skip
from gebm.samplers.tempering import Tempered, excess

DRAWS = 40_000
CRITICAL = 1.95  # Kolmogorov-Smirnov at level 0.001, times sqrt(nm / (n + m))

EXACT = {"mala": MALA(0.2), "hmc": HMC(0.5, leapfrog=3), "mh": RandomWalk(0.2), "imh": IndependentMetropolis()}
OTHERS = {
    "langevin": Langevin(0.1),
    "aboba": KineticLangevin(0.5, friction=1.0),
    "baoab": KineticLangevin(0.5, friction=1.0, splitting="BAOAB"),
    "descent": GradientDescent(0.1),
    "sphere": SphereLangevin(0.1),
    "truncated": TruncatedLangevin(0.1),
}
every_kernel = pytest.mark.parametrize("kernel", {**EXACT, **OTHERS}.values(), ids=[*EXACT, *OTHERS])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Gaussian:
    """U = (z - m)' P (z - m) / 2, with which every point of the path is a Gaussian too."""

    precision = torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.5]], dtype=torch.float64)
    mean = torch.tensor([1.5, -1.0, 0.5], dtype=torch.float64)

    def potential(self, z):
        return 0.5 * ((z - self.mean) @ self.precision * (z - self.mean)).sum(1)

    def draw(self, t: float, generator: torch.Generator):
        """From exp(-U_t): precision t P + (1 - t) I, mean its inverse times t P m."""
        precision = t * self.precision + (1 - t) * torch.eye(3, dtype=torch.float64)
        mean = torch.linalg.solve(precision, t * self.precision @ self.mean)
        noise = torch.randn(DRAWS, 3, generator=generator, dtype=torch.float64)
        return mean + noise @ torch.linalg.cholesky(torch.linalg.inv(precision)).T


class Counted:
    """A target that is no Gaussian, and counts its evaluations."""

    def __init__(self):
        self.calls = 0
        self.target = value_and_grad(lambda z: 3 * (z.square().sum(1) + 1).sqrt() + 2 * z.sin().sum(1))

    def __call__(self, z):
        self.calls += 1
        return self.target(z)

    def potential(self, z):
        self.calls += 1
        return self.target.potential(z)


def start(n: int = 200) -> torch.Tensor:
    return torch.randn(n, 3, generator=seeded(0), dtype=torch.float64)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", EXACT)
def test_exact_kernels_leave_their_place_on_the_path(name, t):
    """Exact draws, one step, and they are exact draws still; but not for a kernel aimed a little further."""
    law = Gaussian()
    target = value_and_grad(law.potential)
    draws, fresh = law.draw(t, seeded(1)), law.draw(t, seeded(2))

    def departure(place: float, steps: int) -> float:
        state = EXACT[name].init(draws, target)
        for step in range(steps):
            state, _ = Tempered(EXACT[name], place).step(state, target, seeded(3 + step))
        views = [*zip(state.position.T, fresh.T), (law.potential(state.position), law.potential(fresh))]
        return max(stats.ks_2samp(a.numpy(), b.numpy()).statistic for a, b in views) * math.sqrt(DRAWS / 2)

    assert departure(t, 1) < CRITICAL
    assert departure(t + 0.3, 5) > CRITICAL


@every_kernel
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, torch.tensor(0.3, dtype=torch.float64)])
def test_moves_as_the_kernel_itself_on_the_tempered_target(kernel, t):
    """The same positions as on U_t written out; and what is remembered is U itself, at no cost of its own."""
    counted = Counted()
    mixed = value_and_grad(lambda z: t * counted.target.potential(z) + (1 - t) * prior_potential(z))
    state, plain = kernel.init(start(), counted), kernel.init(start(), mixed)
    counted.calls = 0
    taken = torch.zeros(len(start()))
    for step in range(6):
        state, info = Tempered(kernel, t).step(state, counted, seeded(step))
        plain, expected = kernel.step(plain, mixed, seeded(step))
        taken += info.accepted
        torch.testing.assert_close(state.position, plain.position)
        torch.testing.assert_close(info, expected)
    assert counted.calls == 6 * kernel.cost
    assert taken.max() > 0 and (not kernel.exact or t == 0 or taken.min() < 6)  # both ends of the accept step seen

    at = state.extra.get("evaluated_at", state.position)
    potential, gradient = counted.target(at)
    torch.testing.assert_close(state.potential, potential)
    if state.gradient is not None:
        torch.testing.assert_close(state.gradient, gradient)
    torch.testing.assert_close(excess(state), potential - prior_potential(at))
    assert (state.velocity is None) == (plain.velocity is None)
    assert "evaluated_at" in state.extra or torch.equal(at, state.position)


def test_aboba_remembers_its_midpoint():
    kernel, target = OTHERS["aboba"], Counted()
    state, _ = Tempered(kernel, 0.5).step(kernel.init(start(), target), target, seeded(0))
    assert not torch.equal(state.extra["evaluated_at"], state.position)


def test_excess_of_a_latent_posterior():
    """beta E(G(z)), whatever the prior's constant."""

    class Energy(nn.Module):
        def forward(self, x):
            return x.pow(3).sum(1)

    target = LatentPosterior(GaussianPrior(3), nn.Linear(3, 3).double(), Energy(), beta=4.0)
    z = start()
    for kernel in (MALA(0.1), RandomWalk(0.1), SIR()):
        torch.testing.assert_close(excess(kernel.init(z, target)), 4 * target.energies(z).to(z.dtype))


@every_kernel
def test_run_with_a_schedule_of_beta(kernel):
    """Step by step the kernel at that place of the path, and the kernel itself once the factor is one."""
    target, seen = Counted(), []
    schedule = ramp(10, levels=4)
    options = {"beta_schedule": schedule, "callback": lambda _, state: seen.append(state)}
    run(kernel, target, start(20), 14, **options, generator=seeded(1))
    generator, state = seeded(1), kernel.init(start(20), target)
    for step in range(14):
        current = Tempered(kernel, schedule(step)) if step < 10 else kernel
        state, _ = current.step(state, target, generator)
        assert torch.equal(state.position, seen[step].position)
        torch.testing.assert_close(state.potential, seen[step].potential)


def test_a_schedule_of_beta_acts_at_its_steps():
    """A run that goes on at step 10 finds the beta of step 10."""
    options = {"beta_schedule": ramp(20), "thin": 1}
    generator = seeded(0)
    whole = run(MALA(0.1), Counted(), start(20), 25, **options, generator=generator)
    generator = seeded(0)
    first = run(MALA(0.1), Counted(), start(20), 10, **options, generator=generator)
    second = run(MALA(0.1), Counted(), first.state, 15, **options, first_step=10, generator=generator)
    assert torch.equal(whole.positions, torch.cat([first.positions, second.positions]))


def test_a_ramp_starts_near_the_prior():
    """At a factor of nearly nothing MALA keeps draws of the prior where they are, however steep the target."""
    target = value_and_grad(lambda z: 1e4 * z.square().sum(1))
    near = run(MALA(0.1), target, start(2000), 20, beta_schedule=lambda _: 1e-9, generator=seeded(1))
    assert near.acceptance.mean() > 0.9
    z = near.state.position
    assert (z.var(0) - 1).abs().max() < 4 * math.sqrt(2 / 2000) and z.mean(0).abs().max() < 4 / math.sqrt(2000)
    assert torch.allclose(near.state.potential, 1e4 * z.square().sum(1))


def test_ramp():
    stairs = [ramp(100)(step) for step in range(120)]
    assert stairs == pytest.approx([(1 + step // 5) / 21 for step in range(100)] + [1.0] * 20)
    assert [ramp(4, levels=2)(step) for step in range(6)] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert ramp(0)(0) == 1
    for steps in (1, 3, 7, 19, 50):  # fewer steps than levels, or no multiple of them
        values = [ramp(steps)(step) for step in range(steps + 1)]
        assert values[-1] == 1 and all(0 < a <= b <= 1 for a, b in zip(values, values[1:]))
