"""A warm-up finds the step size of the best acceptance and the scales of the coordinates, then leaves both alone."""

import math
from dataclasses import replace

import pytest
import torch

from gebm.errors import InputError
from gebm.latent import value_and_grad
from gebm.samplers import HMC, MALA, SAMPLERS, RandomWalk, adapt, run
from gebm.samplers.adaptation import _Moments
from gebm.samplers.diagnostics import ess

DIM, CHAINS = 20, 200
EVEN = torch.logspace(math.log10(0.3), 0, DIM, dtype=torch.float64)
UNEVEN = torch.logspace(math.log10(0.05), 0, DIM, dtype=torch.float64)
KERNELS = {"mala": MALA(0.087), "hmc": HMC(0.42, leapfrog=5), "mh": RandomWalk(0.037)}  # tuned to EVEN


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(scales: torch.Tensor):
    return value_and_grad(lambda z: 0.5 * (z / scales).square().sum(1))


def start(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(CHAINS, DIM, generator=seeded(0), dtype=dtype)


def acceptance(kernel, target, state) -> float:
    return float(run(kernel, target, state, 200, generator=seeded(2)).acceptance.mean())


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", KERNELS)
def test_reaches_the_goal(name, factor):
    first = replace(KERNELS[name], step_size=factor * KERNELS[name].step_size)
    target = gaussian(EVEN)
    adapted = adapt(first, target, start(), 300, generator=seeded(1))
    assert type(adapted.kernel) is type(first) and adapted.steps == 300
    assert abs(acceptance(adapted.kernel, target, adapted.state) - first.goal) < 0.03
    # Whatever it started from, it ends at the same.
    assert 0.9 < adapted.kernel.step_size / KERNELS[name].step_size < 1.1


def test_goals():
    assert {name: kernel.goal for name, kernel in KERNELS.items()} == {"mala": 0.574, "hmc": 0.651, "mh": 0.234}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("precondition", [False, True])
def test_nothing_is_adapted_afterwards(dtype, precondition):
    """The kernel is a constant: a plain number for a step size, and the same run from it twice."""
    target = value_and_grad(lambda z: 0.5 * (z / UNEVEN.to(z)).square().sum(1))
    results = [
        adapt(MALA(0.01), target, start(dtype), 50, precondition=precondition, generator=seeded(1)) for _ in range(2)
    ]
    kernel, state = results[0].kernel, results[0].state
    assert type(kernel.step_size) is float
    assert kernel.step_size == results[1].kernel.step_size and torch.equal(state.position, results[1].state.position)
    assert state.position.dtype == dtype
    before = (kernel.step_size, torch.as_tensor(kernel.scale).clone())
    one, two = (run(kernel, target, state, 20, generator=seeded(2)).state for _ in range(2))
    assert torch.equal(one.position, two.position) and one.position.dtype == dtype
    assert before[0] == kernel.step_size and torch.equal(before[1], torch.as_tensor(kernel.scale))
    torch.testing.assert_close(one.potential, target(one.position)[0])


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_preconditioning(name):
    """It finds the scales, which lets the steps be longer and the draws worth more."""
    target = gaussian(UNEVEN)
    draws = start() * UNEVEN
    plain, scaled = (
        adapt(KERNELS[name], target, draws, 300, precondition=wish, generator=seeded(1)) for wish in (False, True)
    )
    expected = UNEVEN / UNEVEN.log().mean().exp()
    torch.testing.assert_close(scaled.kernel.scale, expected, rtol=0.15, atol=0)
    assert scaled.kernel.scale.log().mean().abs() < 1e-6
    assert abs(acceptance(scaled.kernel, target, scaled.state) - scaled.kernel.goal) < 0.03
    worst = []
    for adapted in (plain, scaled):
        chain = run(adapted.kernel, target, adapted.state, 200, thin=1, generator=seeded(2))
        worst.append(float(ess(chain.positions.transpose(0, 1)).min()))
    assert scaled.kernel.step_size > 2 * plain.kernel.step_size and worst[1] > 4 * worst[0]


def test_moments_are_those_of_all_positions_together():
    batches = [i + i * start() for i in range(1, 6)]
    moments = _Moments(batches[0])
    for batch in batches:
        moments.add(batch)
    deviations = torch.cat(batches).std(0)
    torch.testing.assert_close(moments.deviations(), deviations / deviations.log().mean().exp(), rtol=1e-3, atol=0)


def test_preconditioning_takes_the_place_of_an_older_scale():
    first = MALA(0.05, scale=UNEVEN.flip(0))
    adapted = adapt(first, gaussian(EVEN), start() * EVEN, 200, precondition=True, generator=seeded(1))
    torch.testing.assert_close(adapted.kernel.scale, EVEN / EVEN.log().mean().exp(), rtol=0.15, atol=0)


@pytest.mark.parametrize("name", KERNELS)
def test_goes_on_from_a_state(name):
    """The tuned chains go on from where they are: no evaluation is made twice."""
    calls, plain = [], gaussian(EVEN)

    def target(z):
        calls.append(len(z))
        return plain(z)

    target.potential = lambda z: target(z)[0]
    state = KERNELS[name].init(start(), target)
    calls.clear()
    adapt(KERNELS[name], target, state, 10, generator=seeded(1))
    assert len(calls) == 10 * KERNELS[name].cost


@pytest.mark.parametrize("steps, precondition", [(0, False), (0, True), (1, True), (2, True)])
def test_next_to_no_warm_up(steps, precondition):
    first = MALA(1e-4)
    adapted = adapt(first, gaussian(EVEN), start(), steps, precondition=precondition, generator=seeded(1))
    assert adapted.steps == steps and 0.99e-4 < adapted.kernel.step_size < 0.1
    assert torch.as_tensor(adapted.kernel.scale).isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["mala", "hmc", "mh"])
def test_a_target_that_is_not_finite_everywhere(name, bad):
    """Proposals there count as rejected."""
    target = value_and_grad(lambda z: torch.where(z[:, 0] > 1, bad, 2 * (z / EVEN).square().sum(1)))
    inside = start().clamp(max=0.9)
    first = replace(KERNELS[name], step_size=30 * KERNELS[name].step_size)
    adapted = adapt(first, target, inside, 300, precondition=name != "mh", generator=seeded(1))
    assert (adapted.state.position[:, 0] <= 1).all() and adapted.state.potential.isfinite().all()
    assert abs(acceptance(adapted.kernel, target, adapted.state) - first.goal) < 0.03


@pytest.mark.parametrize("name", [n for n, kernel in SAMPLERS.items() if kernel.goal is None])
def test_kernels_without_a_goal(name):
    kernel = SAMPLERS[name].from_gamma(0.01)
    with pytest.raises(InputError, match=rf"^{type(kernel).__name__}: .*tune MALA, HMC or RandomWalk$"):
        adapt(kernel, gaussian(EVEN), start(), 10)


def test_a_kernel_without_a_scale():
    with pytest.raises(InputError, match="^RandomWalk: .*MALA and HMC do$"):
        adapt(RandomWalk(0.1), gaussian(EVEN), start(), 10, precondition=True)
