"""The population on its way from the prior to the target: its steps, its weights, its genealogy."""

import math

import pytest
import torch
from scipy import stats

from gebm.errors import InputError
from gebm.latent import prior_potential, value_and_grad
from gebm.samplers import MALA, SMC, State, UnfinishedError, ramp, run
from gebm.samplers.smc import _systematic, log_partition_of


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


def gaussian(a: float = 4.0, m: float = 0.5):
    """U = a |z - m|^2 / 2."""
    return value_and_grad(lambda z: a / 2 * (z - m).square().sum(1))


def finish(kernel: SMC, target, n: int, d: int, seed: int) -> list[State]:
    """All states of a population until it is at the target."""
    generator = seeded(1000 + seed)
    states = [kernel.init(normal(n, d, seed), target)]
    while float(states[-1].extra["t"]) < 1:
        states.append(kernel.step(states[-1], target, generator)[0])
    return states


class Mixture:
    """0.7 N((2.5, 0), 0.3^2) + 0.3 N((-1.5, 0), 0.3^2): most draws of the prior are nearer to the light mode."""

    centres = torch.tensor([[2.5, 0.0], [-1.5, 0.0]], dtype=torch.float64)
    log_weights = torch.tensor([0.7, 0.3], dtype=torch.float64).log()
    log_z = math.log(2 * math.pi * 0.09)

    def __init__(self):
        self.target = value_and_grad(self.potential)

    def potential(self, z):
        return -torch.logsumexp(self.log_weights - (z[:, None] - self.centres).square().sum(2) / 0.18, 1)

    def heavy(self, z) -> float:
        """The fraction of positions in the basin of the heavy mode."""
        return float((torch.cdist(z, self.centres).argmin(1) == 0).double().mean())


def test_recovers_the_weights_of_a_mixture_that_traps_mala():
    mixture, repeats, n = Mixture(), 20, 500
    paths = [finish(SMC(0.1), mixture.target, n, 2, seed) for seed in range(repeats)]
    heavy = torch.tensor([mixture.heavy(states[-1].position) for states in paths])
    se = float(heavy.std()) / math.sqrt(repeats)
    assert se < 0.01 and abs(float(heavy.mean()) - 0.7) < 3 * se

    log_z, errors = torch.tensor([log_partition_of(states[-1]) for states in paths]).T
    assert abs(float(log_z.mean()) - mixture.log_z) < 3 * float(errors.mean()) / math.sqrt(repeats)

    trapped = run(MALA(0.02), mixture.target, normal(2000, 2, 0), len(paths[0]) - 1, generator=seeded(0))
    assert trapped.acceptance.mean() > 0.9 and mixture.heavy(trapped.state.position) < 0.4


@pytest.mark.parametrize("d, ess", [(3, 0.9), (10, 0.95)])
def test_stated_standard_error_is_that_of_repetitions(d, ess):
    """Also where the population was resampled on the way, so that its last weights alone say too little."""
    repeats, n = 40, 300
    ends = [finish(SMC(0.1, ess), gaussian(), n, d, seed)[-1] for seed in range(repeats)]
    log_z, se = torch.tensor([log_partition_of(state) for state in ends]).T
    chi_square = (repeats - 1) * float(log_z.var()) / float(se.square().mean())
    low, high = stats.chi2.ppf([0.0005, 0.9995], repeats - 1)
    assert 0.9 * low < chi_square < high  # systematic resampling makes the spread a little smaller than stated


def test_without_resampling_the_standard_error_is_that_of_the_weights():
    """One step to the end, as importance sampling: the usual delta-method error of a mean of independent weights."""
    target = gaussian(1.2, 0.1)
    state = SMC(0.1, ess=0.5).init(normal(300, 2, 0), target)
    moved, _ = SMC(0.1, ess=0.5).step(state, target, seeded(1))
    w = torch.exp(prior_potential(state.position) - state.potential)
    log_z, se = log_partition_of(moved)
    assert float(moved.extra["t"]) == 1
    assert float(log_z) == pytest.approx(math.log(w.mean()))
    assert float(se) == pytest.approx(float(w.std() / w.mean()) / math.sqrt(300))


def test_steps_keep_the_conditional_effective_sample_size():
    states = finish(SMC(0.1, ess=0.9), gaussian(), 400, 5, 0)
    assert len(states) > 5
    log_z = 0.0
    for before, after in zip(states, states[1:]):
        weights = before.extra["weights"]
        w = torch.exp(-(after.extra["t"] - before.extra["t"]) * (before.potential - prior_potential(before.position)))
        assert weights.sum() == pytest.approx(1)
        conditional = float((weights * w).sum() ** 2 / (weights * w**2).sum())
        if after is states[-1]:
            assert conditional >= 0.9  # the end of the path was nearer
        else:
            assert conditional == pytest.approx(0.9, abs=1e-5)
        log_z += math.log((weights * w).sum())
        size = float(1 / (weights * w / (weights * w).sum()).square().sum())
        resampled = size < 200 or after is states[-1]
        assert torch.equal(after.extra["ancestor"], before.extra["ancestor"]) or resampled
        assert (after.extra["weights"].std() < 1e-12) == resampled
        assert float(after.extra["log_z"]) == pytest.approx(log_z)
    assert float(states[-1].extra["t"]) == 1


def test_ancestors_are_the_starts_of_the_particles():
    """With steps of nearly no length each particle stays where its ancestor was."""
    states = finish(SMC(1e-16, ess=0.8), gaussian(3.0), 200, 2, 0)
    start, end = states[0].position, states[-1]
    torch.testing.assert_close(end.position, start[end.extra["ancestor"]], rtol=0, atol=1e-5)
    assert len(end.extra["ancestor"].unique()) < 150


def test_at_the_target_a_step_is_one_of_mala():
    """The weights are equal, log Z and its error are final, and potentials are those of the target."""
    target, kernel = gaussian(), SMC(0.1, 0.9)
    state = finish(kernel, target, 300, 2, 0)[-1]
    assert torch.equal(state.extra["weights"], torch.full((300,), 1 / 300, dtype=torch.float64))
    after, info = kernel.step(state, target, seeded(1))
    generator = seeded(1)
    torch.rand((), generator=generator, dtype=torch.float64)  # the shift of a resampling, drawn whether needed or not
    mala, expected = MALA(0.1 * state.extra["log_h"].exp()).step(state, target, generator)
    torch.testing.assert_close(after.position, mala.position)
    torch.testing.assert_close(info.acceptance, expected.acceptance)
    torch.testing.assert_close(after.extra["log_z"], state.extra["log_z"])
    assert torch.equal(after.extra["families"], state.extra["families"])
    potential, gradient = target(after.position)
    torch.testing.assert_close((after.potential, after.gradient), (potential, gradient))
    kernel.finished(after)


def test_step_size_follows_the_acceptance():
    for first in (1e-3, 10.0):
        target, kernel = gaussian(20.0, 0.0), SMC(first)
        state = finish(kernel, target, 500, 10, 0)[-1]
        chain = run(kernel, target, state, 30, generator=seeded(1))
        assert abs(float(chain.acceptance.mean()) - MALA.goal) < 0.05


@pytest.mark.parametrize("weights", [[0.25] * 4, [0.5, 0.5, 0, 0], [0.37, 0.0, 0.63], [1.0], [0, 0, 1.0]])
def test_systematic_resampling(weights):
    """Each is kept floor(N w) or ceil(N w) times, and N w times on average."""
    weights = torch.tensor(weights, dtype=torch.float64)
    n, repeats = len(weights), 2000
    generator = seeded(0)
    counts = torch.stack([torch.bincount(_systematic(weights, generator), minlength=n) for _ in range(repeats)])
    expected = n * weights
    assert ((counts >= expected.floor()) & (counts <= expected.ceil())).all()
    part = expected - expected.floor()
    se = (part * (1 - part) / repeats).sqrt()
    assert ((counts.double().mean(0) - expected).abs() <= 4 * se + 1e-12).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_starts_that_are_not_finite_weigh_nothing(bad):
    """A target cut to z_0 < 1: the particles outside are dropped, and log Z is of what is left."""
    target = value_and_grad(lambda z: torch.where(z[:, 0] > 1, bad, 2 * z.square().sum(1)))
    log_z, n = math.log(math.pi / 2 * stats.norm.cdf(2)), 1000
    state = run(SMC(0.1), target, normal(n, 2, 0), 60, generator=seeded(1)).state  # `run` stops at values not finite
    estimate, se = log_partition_of(state)
    assert state.extra["t"] == 1 and (state.position[:, 0] <= 1).all()
    assert float(se) < 0.1 and abs(float(estimate) - log_z) < 3 * float(se)


def test_energies_of_any_scale():
    """The first step along the path is as short as one over the spread of the energies."""
    target = value_and_grad(lambda z: 1e9 * z[:, 0] + 0.5 * z.square().sum(1))
    kernel = SMC(0.1, 0.9)
    states = [kernel.init(normal(300, 2, 0), target)]
    for step in range(5):
        states.append(kernel.step(states[-1], target, seeded(step))[0])
    t = [float(state.extra["t"]) for state in states]
    assert all(0 < later - earlier < 1e-8 for earlier, later in zip(t, t[1:]))


def test_too_few_steps():
    target, kernel = gaussian(50.0), SMC(0.1)
    state = run(kernel, target, normal(100, 5, 0), 3, generator=seeded(0)).state
    with pytest.raises(UnfinishedError, match=r"smc: came only \d+\.\d% of the way.*more steps") as error:
        kernel.finished(state)
    assert "\n" not in str(error.value)


def test_has_its_own_schedule_of_beta():
    with pytest.raises(InputError, match="leave beta_schedule out"):
        run(SMC(0.1), gaussian(), normal(100, 2, 0), 3, beta_schedule=ramp(2), generator=seeded(0))


def test_a_population_of_another_version_is_refused_in_a_line():
    kernel, target = SMC(0.1), gaussian()
    state = kernel.init(torch.zeros(10, 2), target)
    del state.extra["families"]
    with pytest.raises(InputError, match="lacks its families: .* start it anew"):
        kernel.step(state, target)
