"""What is recorded of running chains, and the word on whether they have mixed."""

import math

import pytest
import torch

from gebm.latent import value_and_grad
from gebm.samplers import HMC, MALA, SAMPLERS, KineticLangevin, State, run
from gebm.samplers.diagnostics import ess, rhat
from gebm.samplers.tempering import excess
from gebm.samplers.trace import Diagnostics, Recorder, left_start

NAN = float("nan")
GAUSSIAN = value_and_grad(lambda z: 2 * z.square().sum(1))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


def watch(kernel, target, start, steps: int, **options) -> tuple[Recorder, dict[int, State]]:
    """A recorder of a run, and all its states."""
    recorder, states = Recorder(start, steps, **options), {}

    def callback(step: int, state: State) -> None:
        recorder.add(step, state)
        states[step] = state

    run(kernel, target, start, steps, callback=callback, generator=seeded(1))
    return recorder, states


def feed(positions: torch.Tensor) -> Recorder:
    """A recorder of given positions (chains, draws, d)."""
    recorder = Recorder(positions[:, 0], positions.shape[1])
    for step in range(positions.shape[1]):
        recorder.add(step + 1, State(positions[:, step], 2 * positions[:, step].square().sum(1)))
    return recorder


@pytest.mark.parametrize("kernel", [MALA(0.1), KineticLangevin(0.3, friction=1.0)], ids=["mala", "lmc"])
@pytest.mark.parametrize("steps, draws, every", [(40, 50, 1), (40, 40, 1), (41, 40, 2), (100, 30, 4)])
def test_arrays(kernel, steps, draws, every):
    """(chain, draw, ...): beta E and unit projections of every so many-th state, of the first chains."""
    recorder, states = watch(kernel, GAUSSIAN, normal(9, 5), steps, chains=6, draws=draws, projections=3, seed=4)
    kept = [states[step] for step in range(every, steps + 1, every)]
    assert len(kept) <= draws
    arrays = recorder.arrays()
    torch.testing.assert_close(arrays["energy"], torch.stack([excess(s)[:6] for s in kept], 1), rtol=0, atol=0)
    assert recorder.directions.shape == (5, 3)
    torch.testing.assert_close(recorder.directions.norm(dim=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    projection = torch.stack([s.position[:6] @ recorder.directions for s in kept], 1)
    torch.testing.assert_close(arrays["projection"], projection)
    assert arrays["projection"].shape == (6, steps // every, 3)
    again, other = (Recorder(normal(9, 5), steps, projections=3, seed=seed) for seed in (4, 5))
    assert torch.equal(again.directions, recorder.directions) and not torch.equal(other.directions, again.directions)


def test_nothing_recorded():
    recorder = Recorder(normal(4, 2), 0)
    recorder.add(0, MALA(0.1).init(normal(4, 2), GAUSSIAN))
    assert recorder.arrays() == {}
    diagnostics = recorder.diagnose(MALA(0.1))
    assert (diagnostics.chains, diagnostics.draws) == (4, 0) and math.isnan(diagnostics.ess_energy)


def test_the_start_is_no_draw():
    recorder = Recorder(normal(4, 2), 10)
    recorder.add(0, MALA(0.1).init(normal(4, 2), GAUSSIAN))
    assert recorder.arrays() == {}


@pytest.mark.parametrize("warmed_up", [False, True])
@pytest.mark.parametrize("steps", [60, 61])
def test_diagnostics_are_those_of_the_second_half(steps, warmed_up):
    """Or of the whole where the chains had a warm-up."""
    recorder, _ = watch(MALA(0.1), GAUSSIAN, normal(20, 5), steps)
    diagnostics = recorder.diagnose(MALA(0.1), warmed_up)
    first = 0 if warmed_up else steps // 2
    energy, projection = (recorder.arrays()[name][:, first:] for name in ("energy", "projection"))
    assert diagnostics == pytest.approx(
        Diagnostics(
            20, steps - first, float(ess(energy)), float(rhat(energy)), float(ess(projection).min()),
            float(rhat(projection).max()), 1000 * float(ess(energy)) / (20 * (steps - first)),
            left_start(recorder.start, recorder.end),
        )
    )  # fmt: skip


def test_a_bad_first_half_is_forgotten():
    """Chains that start far apart and then agree."""
    positions = normal(8 * 200, 2).reshape(8, 200, 2)
    positions[:, :100] += 10 * torch.arange(8)[:, None, None]
    recorder = feed(positions)
    assert recorder.diagnose(MALA(0.1)).mixed
    assert not recorder.diagnose(MALA(0.1), warmed_up=True).mixed


@pytest.mark.parametrize("kernel, every", [(MALA(0.15), 1), (HMC(0.4, leapfrog=4), 1), (HMC(0.4, leapfrog=4), 3)])
def test_effective_samples_per_evaluation(kernel, every):
    """Counted: evaluations of the target, one chain each, in the steps that the diagnostics are of."""
    evaluated, steps = [], 60

    def target(z):
        evaluated.append(len(z))
        return GAUSSIAN(z)

    recorder, _ = watch(kernel, target, normal(10, 3), steps, draws=steps // every)
    evaluations = sum(evaluated[1 + steps // 2 * kernel.cost :])  # the first is that of the start
    diagnostics = recorder.diagnose(kernel)
    assert diagnostics.draws == steps // every // 2
    assert diagnostics.ess_per_1000_evaluations == pytest.approx(1000 * diagnostics.ess_energy / evaluations)


def test_good_chains():
    recorder, _ = watch(MALA(0.15), GAUSSIAN, normal(50, 5), 400)
    diagnostics = recorder.diagnose(MALA(0.15))
    assert diagnostics.mixed and diagnostics.rhat_energy < 1.02
    assert 500 < diagnostics.ess_energy < 10_000 and diagnostics.left_start > 0.9


@pytest.mark.parametrize("chains", [2, 20])
def test_chains_trapped_in_two_modes(chains):
    """N(+-3, 0.1): R-hat is large in the projections alone, since the energies of both modes are the same."""
    target = value_and_grad(lambda z: -torch.logaddexp(-50 * (z - 3).square().sum(1), -50 * (z + 3).square().sum(1)))
    start = torch.where(torch.arange(chains)[:, None] % 2 == 0, 3.0, -3.0) + 0.1 * normal(chains, 2)
    recorder, states = watch(MALA(0.003), target, start, 200)
    assert torch.equal(states[200].position[:, 0] > 0, start[:, 0] > 0)
    diagnostics = recorder.diagnose(MALA(0.003), warmed_up=True)
    assert not diagnostics.mixed and diagnostics.rhat_projection > 1.5 and diagnostics.ess_projection < 2 * chains
    assert diagnostics.left_start == 0


def test_chains_that_hardly_move():
    recorder, _ = watch(MALA(1e-6), GAUSSIAN, normal(50, 5), 50)
    diagnostics = recorder.diagnose(MALA(1e-6))
    assert not diagnostics.mixed and diagnostics.left_start == 0 and diagnostics.ess_energy < 100


def test_too_few_draws():
    """No word on mixing, but whether the chains have left their starts can be seen."""
    recorder, _ = watch(MALA(0.15), GAUSSIAN, normal(50, 5), 14)
    assert recorder.diagnose(MALA(0.15), warmed_up=True).ess_energy > 0
    diagnostics = recorder.diagnose(MALA(0.15))
    assert (diagnostics.chains, diagnostics.draws) == (50, 7) and all(map(math.isnan, diagnostics[2:7]))
    assert diagnostics.left_start > 0.5 and not diagnostics.mixed


def test_one_chain_cannot_be_compared():
    recorder, _ = watch(MALA(0.15), GAUSSIAN, normal(1, 5), 100)
    diagnostics = recorder.diagnose(MALA(0.15))
    assert diagnostics.ess_energy > 0 and math.isnan(diagnostics.rhat_energy) and math.isnan(diagnostics.left_start)
    assert not diagnostics.mixed


def test_kernels_whose_chains_do_not_travel():
    still = {name: kernel for name, kernel in SAMPLERS.items() if not kernel.moves}
    assert still.keys() == {"smc", "sir", "dot", "zero_temperature_langevin"}
    recorder, _ = watch(MALA(0.15), GAUSSIAN, normal(20, 5), 100)
    for kernel in still.values():
        diagnostics = recorder.diagnose(kernel.from_gamma(0.1))
        assert diagnostics[:2] == (20, 50) and all(map(math.isnan, diagnostics[2:])) and not diagnostics.mixed


@pytest.mark.parametrize(
    "energy, projection, mixed",
    [(1.0, 1.0, True), (1.05, 1.05, True), (1.06, 1.0, False), (1.0, 1.06, False)]
    + [(NAN, 1.0, True), (1.0, NAN, False), (NAN, NAN, False), (math.inf, 1.0, False)],
)
def test_mixed(energy, projection, mixed):
    assert Diagnostics(2, 10, 1.0, energy, 1.0, projection, 1.0, 0.5).mixed is mixed


def test_left_start():
    start = normal(6, 3)
    assert left_start(start, start + 1e-3) == 0
    corners = torch.tensor([[0.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 4.0]])
    assert left_start(corners, corners[[1, 0, 2, 3]]) == 1 / 2
    assert left_start(corners, corners.roll(1, 0)) == 1
    assert math.isnan(left_start(start[:1], start[:1]))
    start, other = normal(500, 30), normal(500, 30, seed=1)
    assert left_start(start, other) == 1
    assert left_start(start, 0.95 * start + 0.05**0.5 * other) < 0.05 < 0.95 < left_start(start, 0.7 * start + other)
