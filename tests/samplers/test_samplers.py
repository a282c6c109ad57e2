import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import solve_discrete_lyapunov

from gebm.errors import InputError
from gebm.latent import value_and_grad
from gebm.samplers import (
    HMC,
    MALA,
    SAMPLERS,
    GradientDescent,
    Info,
    Kernel,
    KineticLangevin,
    Langevin,
    NonFiniteError,
    OptimalTransport,
    State,
    load_chain,
    ramp,
    run,
    save_chain,
    step_decay,
)  # fmt: skip

PRECISION = np.array([[1.0, 0.5], [0.5, 2.0]])
BOUND = 4.0  # standard errors
CHAINS = 200_000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(precision=PRECISION):
    """Target of N(0, precision^-1)."""
    p = torch.as_tensor(precision, dtype=torch.float64)
    return lambda z: (0.5 * (z @ p * z).sum(1), z @ p)


class Counted:
    """A smooth target that is no Gaussian, and counts its evaluations."""

    def __init__(self):
        self.calls = 0
        self.target = value_and_grad(lambda z: z.square().sum(1).add(1).sqrt() + z.sin().sum(1))

    def __call__(self, z):
        self.calls += 1
        return self.target(z)

    def potential(self, z):
        self.calls += 1
        return self.target.potential(z)


# The discrete invariant law. On a Gaussian target a step is linear, s' = A s + B xi, with covariance A S A' + B B' = S.


def langevin_law(h: float, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    eye = np.eye(len(p))
    return eye - h * p, math.sqrt(2 * h) * eye


def kinetic_law(h: float, kappa: float, p: np.ndarray, splitting: str = "ABOBA") -> tuple[np.ndarray, np.ndarray]:
    """The maps A (drift), B (half kick), O (friction and noise) multiplied out; s = (z, v) at a step's end."""
    eye, zero = np.eye(len(p)), np.zeros_like(p)
    drift = np.block([[eye, h / 2 * eye], [zero, eye]])
    kick = np.block([[eye, zero], [-h / 2 * p, eye]])
    keep = np.block([[eye, zero], [zero, math.exp(-kappa * h) * eye]])
    noise = np.vstack([zero, math.sqrt(1 - math.exp(-2 * kappa * h)) * eye])
    if splitting == "BAOAB":
        return kick @ drift @ keep @ drift @ kick, kick @ drift @ noise
    return drift @ kick @ keep @ kick @ drift, drift @ kick @ noise


def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return solve_discrete_lyapunov(a, b @ b.T)


def make_state(kernel, s: torch.Tensor, target) -> State:
    if isinstance(kernel, Langevin):
        return kernel.init(s, target)
    position, velocity = s.chunk(2, 1)
    return kernel.init(position, target)._replace(velocity=velocity)


def coordinates(state: State) -> torch.Tensor:
    return state.position if state.velocity is None else torch.cat([state.position, state.velocity], 1)


def largest_z(s: torch.Tensor, cov: np.ndarray) -> float:
    """Greatest deviation of the means and second moments from N(0, cov), in standard errors of independent rows."""
    n, var = len(s), np.diag(cov)
    mean = np.abs(s.mean(0).numpy()) / np.sqrt(var / n)
    second = np.abs((s.T @ s).numpy() / n - cov) / np.sqrt((np.outer(var, var) + cov**2) / n)
    return max(mean.max(), second.max())


def p_value(s: torch.Tensor, cov: np.ndarray) -> float:
    """Least Kolmogorov-Smirnov p-value of the coordinates against N(0, cov)."""
    return min(stats.kstest(x, stats.norm(scale=v**0.5).cdf).pvalue for x, v in zip(s.T.numpy(), np.diag(cov)))


GAUSSIAN = [
    (Langevin(0.5), langevin_law(0.5, PRECISION)),
    (KineticLangevin(0.7, friction=1.0), kinetic_law(0.7, 1.0, PRECISION)),
    (KineticLangevin(0.7, 1.0, "BAOAB"), kinetic_law(0.7, 1.0, PRECISION, "BAOAB")),
]


@pytest.mark.parametrize("kernel, law", GAUSSIAN, ids=["langevin", "lmc", "baoab"])
def test_one_step_keeps_the_discrete_invariant_law(kernel, law):
    """Exact draws of the law, one step, the same law; a kernel aimed at a precision 10 % too great is found out."""
    cov = covariance(*law)
    draws = torch.from_numpy(np.random.default_rng(0).multivariate_normal(np.zeros(len(cov)), cov, CHAINS))
    assert largest_z(draws, cov) < BOUND

    def after_one_step(target):
        state, info = kernel.step(make_state(kernel, draws, target), target, seeded(0))
        assert info.accepted.all() and (info.acceptance == 1).all()
        return coordinates(state)

    kept, wrong = after_one_step(quadratic()), after_one_step(quadratic(1.1 * PRECISION))
    assert largest_z(kept, cov) < BOUND and p_value(kept, cov) > 1e-3
    assert largest_z(wrong, cov) > 2 * BOUND


@pytest.mark.parametrize("kernel, law", GAUSSIAN, ids=["langevin", "lmc", "baoab"])
def test_long_runs_reach_the_discrete_invariant_law(kernel, law):
    a, b = law
    steps = math.ceil(math.log(1e-4) / math.log(np.abs(np.linalg.eigvals(a)).max()))
    start = torch.full((CHAINS // 10, 2), 3.0, dtype=torch.float64)
    chain = run(kernel, quadratic(), start, steps, generator=seeded(1))
    assert largest_z(coordinates(chain.state), covariance(a, b)) < BOUND
    assert (chain.acceptance == 1).all()


@pytest.mark.parametrize("gamma", [0.4, 1.0, 2.0])
def test_langevin_variance_on_the_standard_normal(gamma):
    """1 / (1 - h/2) = 1 / (1 - gamma/4)."""
    expected = np.array([[1 / (1 - gamma / 4)]])
    assert covariance(*langevin_law(gamma / 2, np.eye(1))) == pytest.approx(expected)
    steps = math.ceil(math.log(1e-4) / math.log(abs(1 - gamma / 2))) if gamma != 2 else 2
    start = torch.zeros(CHAINS // 4, 1, dtype=torch.float64)
    chain = run(Langevin.from_gamma(gamma), quadratic([[1.0]]), start, steps, generator=seeded(2))
    assert largest_z(chain.state.position, expected) < BOUND


@pytest.mark.parametrize(
    "kernel, sizes, order",
    [
        (Langevin, (0.1, 0.05), (0.85, 1.3)),
        (lambda h: KineticLangevin(h, 3.0), (0.4, 0.2), (1.7, 2.8)),
        (lambda h: KineticLangevin(h, 1.0, "BAOAB"), (0.6, 0.3), (1.7, 4.0)),
    ],
    ids=["langevin", "lmc", "baoab"],
)
def test_order_of_the_bias(kernel, sizes, order):
    """On x^2/2 + sin 2x, the bias of the mean of sin 2x falls by 2^order when the step is halved."""
    x = np.linspace(-8, 8, 100_001)
    density = np.exp(-(x**2 / 2 + np.sin(2 * x)))
    exact = (density * np.sin(2 * x)).sum() / density.sum()
    law = np.cumsum(density) / density.sum()
    n = 250_000

    def bias(kernel) -> float:
        generator = seeded(0)
        uniform, velocity = torch.rand(n, generator=generator).double(), torch.randn(n, 1, generator=generator).double()
        start = torch.from_numpy(np.interp(uniform.numpy(), law, x))[:, None]
        target = lambda z: ((z**2 / 2 + torch.sin(2 * z)).sum(1), z + 2 * torch.cos(2 * z))  # noqa: E731
        state = kernel.init(start, target)
        state = state if state.velocity is None else state._replace(velocity=velocity)
        steps, total = round(6 / kernel.step_size), []

        def collect(t, state):
            if t > steps // 3:
                total.append(float(torch.sin(2 * state.position).mean()))

        run(kernel, target, state, steps, callback=collect, generator=generator)
        return abs(np.mean(total) - exact)

    coarse, fine = (bias(kernel(h)) for h in sizes)
    assert order[0] < math.log2(coarse / fine) < order[1]


@pytest.mark.parametrize("splitting", ["ABOBA", "BAOAB"])
@pytest.mark.parametrize("kappa", [0.5, 5.0])
def test_kinetic_step_is_the_stated_splitting(kappa, splitting):
    """The kernel's own linear map, read off by stepping unit vectors with the same noise, is that of the law."""
    kernel, target, h = KineticLangevin(0.3, kappa, splitting), quadratic(), 0.3
    start = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double()
    noise = torch.zeros(5, 2, dtype=torch.float64).normal_(generator=seeded(3))
    moved = coordinates(kernel.step(make_state(kernel, start, target), target, seeded(3))[0])
    a, b = (torch.from_numpy(m) for m in kinetic_law(h, kappa, PRECISION, splitting))
    torch.testing.assert_close(moved, start @ a.T + noise @ b.T)


@pytest.mark.parametrize("h", [0.1, 0.7, 1.3])
@pytest.mark.parametrize("kappa", [0.1, 3.0])
def test_kinetic_law_in_closed_form(h, kappa):
    """On a Gaussian the positions at a step's end are exact, whatever h and friction; the velocities' covariance
    (I - h^2 P / 4)^-1, and so that of the midpoints, is off by second order in h."""
    cov = covariance(*kinetic_law(h, kappa, PRECISION))
    assert cov[:2, :2] == pytest.approx(np.linalg.inv(PRECISION))
    assert cov[2:, 2:] == pytest.approx(np.linalg.inv(np.eye(2) - h**2 / 4 * PRECISION))
    assert cov[:2, 2:] == pytest.approx(np.zeros((2, 2)), abs=1e-9)


def test_huge_friction_is_overdamped():
    """Without memory of the velocity the midpoints are Langevin's with step h^2 / 2, from the same noise."""
    h, target, steps = 0.3, Counted(), 20
    kernel = KineticLangevin(h, friction=1e6)
    state, midpoints = kernel.init(torch.randn(4, 3, generator=seeded(0)).double(), target), []
    start, generator = state.position, seeded(1)
    for _ in range(steps):
        midpoints.append(state.position + h / 2 * state.velocity)
        state, _ = kernel.step(state, target, generator)
    chain = run(Langevin(h**2 / 2), target, start, steps - 1, thin=1, generator=seeded(1))
    torch.testing.assert_close(torch.stack(midpoints[1:]), chain.positions)


def test_no_friction_keeps_the_energy():
    """Without friction nothing is random: leapfrog, whose energy error stays of second order."""
    target = quadratic()
    kernel = KineticLangevin(0.01, friction=0.0)
    position = torch.tensor([[1.0, -0.5]], dtype=torch.float64)

    def energy(state):
        return target(state.position)[0] + 0.5 * state.velocity.square().sum(1)

    a, b = (run(kernel, target, position, 500, generator=seeded(s)).state for s in (0, 1))
    assert torch.equal(a.position, b.position) and a.velocity.abs().max() > 0.1
    torch.testing.assert_close(energy(a), target(position)[0], rtol=1e-4, atol=0)


def test_documented_flags():
    assert Langevin.from_gamma(0.01) == Langevin(0.005)
    assert KineticLangevin.from_gamma(1e-4, friction=100.0) == KineticLangevin(0.02, 100.0)
    assert KineticLangevin.from_gamma(1e-4).friction == 100.0
    # The factor of a schedule on gamma becomes one on h.
    for kernel in SAMPLERS.values():
        factor = kernel.from_gamma(0.1).step_size / kernel.from_gamma(1.0).step_size
        assert factor == pytest.approx(0.1**kernel.gamma_power)


# Every kernel of the registry, through `run`.

KERNELS = {
    **{name: kernel.from_gamma(0.04) for name, kernel in SAMPLERS.items()},
    "baoab": KineticLangevin(0.4, 1.0, "BAOAB"),
    "hmc": HMC(0.4, leapfrog=3),
    "mala-scaled": MALA(0.1, scale=torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)),
}
NOISELESS = (GradientDescent, OptimalTransport)
INTERACT = ("smc", "dot")  # resampled together; measured together at the start
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
moved_alone = pytest.mark.parametrize(
    "kernel", [k for name, k in KERNELS.items() if name not in INTERACT], ids=[k for k in KERNELS if k not in INTERACT]
)
unadjusted = [KERNELS[name] for name in ("langevin", "lmc", "baoab", "spherelangevin", "trunclangevin", "dot")]
START = torch.randn(6, 3, generator=seeded(5), dtype=torch.float64)


def tensors(state: State) -> list[torch.Tensor]:
    return [x for x in (*state[:4], *state.extra.values()) if x is not None]


@every_kernel
def test_shapes_and_seeds(kernel):
    target = Counted()
    for dtype in (torch.float32, torch.float64):
        if isinstance(getattr(kernel, "scale", None), torch.Tensor):
            kernel = replace(kernel, scale=kernel.scale.to(dtype))
        chains = [run(kernel, target, START.to(dtype), 10, thin=3, generator=seeded(s)) for s in (0, 0, 1)]
        one, same, other = chains
        assert one.positions.shape == (3, 6, 3) and one.potentials.shape == (3, 6) and one.acceptance.shape == (6,)
        assert one.state.position.dtype == one.state.potential.dtype == dtype
        assert torch.equal(one.positions, same.positions) and torch.equal(one.state.position, same.state.position)
        assert torch.equal(one.state.position, other.state.position) == isinstance(kernel, NOISELESS)
        assert not one.state.position.requires_grad
    assert run(kernel, target, START, 4).positions.shape == (0, 6, 3)
    still = run(kernel, target, START, 0)
    assert torch.equal(still.state.position, kernel.init(START, target).position)
    assert torch.equal(still.acceptance, torch.zeros(6))


@moved_alone
def test_chains_do_not_interact(kernel):
    """A chain moves the same whatever its neighbours do."""
    other = START.clone()
    other[1:] += 5
    a, b = (run(kernel, Counted(), s, 10, generator=seeded(0)).state.position for s in (START, other))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


@every_kernel
def test_evaluations_of_a_step(kernel):
    target = Counted()
    state = kernel.init(START, target)
    assert target.calls == {KERNELS["lmc"]: 0, KERNELS["dot"]: 2}.get(kernel, 1)
    target.calls = 0
    run(kernel, target, state, 10, generator=seeded(0))
    assert target.calls == 10 * kernel.cost == 10 * (3 if isinstance(kernel, HMC) else 1)


@every_kernel
def test_pure(kernel):
    """A step leaves its state as it was, and the same state and generator give the same step."""
    target = Counted()
    state = run(kernel, target, START, 2, generator=seeded(0)).state
    before = [x.clone() for x in tensors(state)]
    one, two = (kernel.step(state, target, seeded(1))[0] for _ in range(2))
    assert state.extra.keys() == one.extra.keys()
    for old, kept, a, b in zip(before, tensors(state), tensors(one), tensors(two)):
        assert torch.equal(old, kept) and torch.equal(a, b)


@every_kernel
def test_resumes_bit_for_bit(kernel, tmp_path):
    """Stopped after 37 of 100 steps, saved, loaded, gone on: the uninterrupted chain."""
    beta_schedule = ramp(60) if kernel.anneals else None
    options = {"schedule": step_decay(0.5, 30), "beta_schedule": beta_schedule, "thin": 2}
    whole = run(kernel, Counted(), START, 100, **options, generator=seeded(0))
    generator = seeded(0)
    first = run(kernel, Counted(), START, 37, **options, generator=generator)
    save_chain(tmp_path / "chain", first.state, 37, generator)
    state, step, generator = load_chain(tmp_path / "chain")
    second = run(kernel, Counted(), state, 63, **options, first_step=step, generator=generator)
    assert len(tensors(whole.state)) == len(tensors(second.state)) and whole.state.extra.keys() == state.extra.keys()
    for name, a in whole.state.extra.items():
        assert torch.equal(a, second.state.extra[name])
    for a, b in zip(whole.state[:4], second.state[:4]):
        assert a is b is None or torch.equal(a, b)
    assert torch.equal(whole.positions, torch.cat([first.positions, second.positions]))
    assert torch.equal(whole.potentials, torch.cat([first.potentials, second.potentials]))


@every_kernel
def test_callback_and_thinning_agree(kernel):
    seen = {}
    chain = run(kernel, Counted(), START, 7, thin=2, callback=seen.__setitem__, generator=seeded(0))
    assert list(seen) == [1, 2, 3, 4, 5, 6, 7]
    assert torch.equal(chain.positions, torch.stack([seen[t].position for t in (2, 4, 6)]))
    assert torch.equal(chain.potentials, torch.stack([seen[t].potential for t in (2, 4, 6)]))
    assert torch.equal(chain.state.position, seen[7].position)


@pytest.mark.parametrize("kernel", unadjusted)
@pytest.mark.parametrize("bad_step, steps", [(1, 5), (3, 5), (150, 250), (100, 100)])
@pytest.mark.parametrize("what", ["potential", "gradient"])
def test_names_the_first_bad_step(kernel, bad_step, steps, what):
    """One bad evaluation is enough, even where the chain comes back."""
    plain = quadratic(np.eye(3))
    calls = -10

    def target(z):
        nonlocal calls
        calls += 1
        value, gradient = plain(z)
        if calls == bad_step:
            value, gradient = (value + math.inf, gradient) if what == "potential" else (value, gradient * math.nan)
        return value, gradient

    target.potential = lambda z: plain(z)[0]
    start = kernel.init(START, target)
    calls = 0
    with pytest.raises(NonFiniteError, match=rf"{type(kernel).__name__}.*at step {bad_step};.*smaller step") as error:
        run(kernel, target, start, steps, generator=seeded(0))
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Spy(Kernel):
    """A kernel that moves nothing and says with what step size it was asked to."""

    seen: list = None

    def init(self, position, target):
        return State(position, *target(position))

    def step(self, state, target, generator):
        self.seen.append(self.step_size)
        n = len(state.position)
        return state, Info(torch.full((n,), 0.25), torch.zeros(n).bool(), torch.ones(n).bool())


def test_schedule_acts_at_its_steps():
    spy = Spy(2.0, [])
    chain = run(spy, quadratic(np.eye(3)), START.double(), 7, schedule=step_decay(0.1, 3))
    assert spy.seen == pytest.approx([2.0] * 3 + [0.2] * 3 + [0.02])
    assert torch.allclose(chain.acceptance, torch.tensor(0.25))
    late = replace(spy, seen=[])
    run(late, quadratic(np.eye(3)), START.double(), 2, schedule=step_decay(0.1, 3), first_step=5)
    assert late.seen == pytest.approx([0.2, 0.02])


def test_step_decay():
    assert [step_decay()(t) for t in (0, 199, 200, 399, 400)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert [step_decay(0.1, 0)(t) for t in (0, 10_000)] == [1, 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: MALA(-1.0),
        lambda: Langevin(math.nan),
        lambda: HMC(0.1, leapfrog=0),
        lambda: KineticLangevin(0.1, -1.0),
        lambda: KineticLangevin(0.1, 1.0, "OABAO"),
        lambda: run(MALA(0.1), quadratic(), START[:, :2], -3),
        lambda: run(MALA(0.1), lambda z: z.square().sum(1), START, 3),
    ],
)
def test_impossible_settings_are_one_line(make):
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
