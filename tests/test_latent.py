import math

import pytest
import torch
from scipy import stats
from torch import nn

import gebm
from gebm.errors import InputError
from gebm.latent import PRIORS, GaussianPrior, LatentPosterior, UniformPrior, value_and_grad
from gebm.model import GEBM
from gebm.samplers.kinetic import KineticLangevin
from gebm.samplers.random_walk import SIR, IndependentMetropolis, RandomWalk
from gebm.samplers.sphere import SphereLangevin
from gebm.training.negatives import Replay

DIM = 3


class Quadratic(nn.Module):
    """E(x) = a.x + |x|^2 / 2, with one parameter."""

    def __init__(self, dim: int):
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 2, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a + 0.5 * x.square().sum(1)


def posterior(prior: str = "gaussian", beta: float = 1.0, dtype: torch.dtype = torch.float64) -> LatentPosterior:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(DIM, 4), nn.Tanh(), nn.Linear(4, 2))
    return LatentPosterior(PRIORS[prior](DIM), base.to(dtype), Quadratic(2).to(dtype), beta)


def positions(n: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("prior", PRIORS)
def test_gradient_against_finite_differences(prior):
    target, u, step = posterior(prior, beta=3.0), positions(), 1e-5
    value, gradient = target(u)
    for i in range(DIM):
        e = torch.zeros(DIM, dtype=u.dtype)
        e[i] = step
        slope = (target(u + e)[0] - target(u - e)[0]) / (2 * step)
        torch.testing.assert_close(gradient[:, i], slope, rtol=1e-7, atol=1e-7)
    assert not value.requires_grad and not gradient.requires_grad


@pytest.mark.parametrize("prior", PRIORS)
def test_potential_is_prior_plus_beta_times_energy(prior):
    u = positions()
    flat, one, hot = (posterior(prior, beta)(u)[0] for beta in (0.0, 1.0, 100.0))
    normal = torch.tensor(stats.multivariate_normal([0] * DIM).logpdf(u.numpy()))
    torch.testing.assert_close(flat, -normal)
    e = posterior(prior).energies(u)
    torch.testing.assert_close(one - flat, e)
    torch.testing.assert_close(hot - flat, 100 * e)
    torch.testing.assert_close(posterior(prior).at(100.0)(u)[0], hot)


def test_energies_are_those_of_the_decoded_samples():
    target, u = posterior("uniform"), positions()
    x = target.decode(u)
    torch.testing.assert_close(x, target.base(torch.erf(u / 2**0.5)))
    torch.testing.assert_close(target.energies(u), target.energy(x))
    assert not x.requires_grad and not target.energies(u).requires_grad


def test_parameters_get_no_gradient_and_no_grad_is_no_obstacle():
    target = posterior()
    with torch.no_grad():
        value, gradient = target(positions())
    assert value.shape == (5,) and gradient.shape == (5, DIM) and gradient.abs().min() > 0
    assert all(p.grad is None for network in (target.base, target.energy) for p in network.parameters())


def test_value_and_grad_of_any_potential():
    precision = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    target = value_and_grad(lambda z: 0.5 * torch.einsum("ni,ij,nj->n", z, precision, z))
    z = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], requires_grad=True)
    value, gradient = target(z)
    torch.testing.assert_close(value, torch.tensor([4.0, 0.875]))
    torch.testing.assert_close(gradient, z.detach() @ precision)
    assert not value.requires_grad and not gradient.requires_grad and z.grad is None and z.is_leaf


def test_start_has_the_networks_dtype_and_the_seed_decides():
    for dtype in (torch.float32, torch.float64):
        target = posterior(dtype=dtype)
        start = target.start(4, torch.Generator().manual_seed(2))
        assert start.shape == (4, DIM) and start.dtype == dtype
        assert torch.equal(start, target.start(4, torch.Generator().manual_seed(2)))


# Priors


@pytest.mark.parametrize("prior", PRIORS)
def test_log_prob_is_summed_and_matches_scipy(prior):
    z = torch.linspace(-0.9, 0.9, 4 * DIM, dtype=torch.float64).reshape(4, DIM)
    exact = {"gaussian": stats.norm(), "uniform": stats.uniform(-1, 2)}[prior].logpdf(z.numpy()).sum(1)
    torch.testing.assert_close(PRIORS[prior](DIM).log_prob(z), torch.tensor(exact), rtol=1e-14, atol=0)
    assert PRIORS[prior](DIM).log_prob(z.float()).dtype == torch.float32


def test_uniform_is_nothing_outside():
    z = torch.tensor([[0.0, 1.0], [0.0, 1.0001], [-2.0, 2.0]])
    assert UniformPrior(2).log_prob(z).tolist() == [pytest.approx(-2 * math.log(2)), -math.inf, -math.inf]


@pytest.mark.parametrize("prior, law", [("gaussian", stats.norm()), ("uniform", stats.uniform(-1, 2))])
def test_push_forward(prior, law):
    """Samples, and Gaussian coordinates mapped by T, follow the prior, coordinate by coordinate."""
    p = PRIORS[prior](2)
    generator = torch.Generator().manual_seed(3)
    u = torch.randn(20_000, 2, generator=generator)
    for z in (p.sample(20_000, generator), p.from_gaussian(u)):
        assert all(stats.kstest(column, law.cdf).pvalue > 1e-3 for column in z.T.numpy())
        assert abs(stats.pearsonr(*z.T.numpy()).statistic) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("prior", PRIORS)
def test_density_transforms(prior):
    """log eta(T(u)) + log |det dT/du| is the standard Gaussian density: so U is the right potential in u."""
    p, u = PRIORS[prior](DIM), positions().requires_grad_()
    slope = torch.autograd.grad(p.from_gaussian(u).sum(), u)[0]
    transformed = p.log_prob(p.from_gaussian(u)) + slope.log().sum(1)
    torch.testing.assert_close(transformed, GaussianPrior(DIM).log_prob(u))


@pytest.mark.parametrize("prior", PRIORS)
def test_sample_takes_dtype_and_seed(prior):
    like = torch.empty(0, dtype=torch.float64)
    a, b = (PRIORS[prior](DIM).sample(4, torch.Generator().manual_seed(1), like) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.float64 and a.shape == (4, DIM)


def test_plain_functions_will_do():
    """A base and an energy that are no modules: E(G(z)) = |2z|^2 / 2 at beta 3 has the potential 13 |z|^2 / 2."""
    posterior = LatentPosterior(GaussianPrior(2), lambda z: 2 * z, lambda x: x.square().sum(1) / 2, beta=3.0).frozen()
    z = posterior.start(5, torch.Generator().manual_seed(0))
    value, gradient = posterior(z)
    torch.testing.assert_close(value, 6.5 * z.square().sum(1) + math.log(2 * math.pi))
    torch.testing.assert_close(gradient, 13 * z)
    assert posterior.exact and posterior.decode(z).equal(2 * z)


def test_tf32_is_off_while_potentials_are_computed():
    """And what the user had set comes back."""
    seen = []
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn

    def energy(x):
        seen.append([backend.fp32_precision for backend in backends])
        return x.sum(1)

    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32"
        LatentPosterior(GaussianPrior(2), lambda z: z, energy)(torch.zeros(1, 2))
        assert seen == [["ieee"] * 3] and [backend.fp32_precision for backend in backends] == ["tf32"] * 3
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


def test_energies_of_another_shape_are_refused():
    """(N, 1), as a critic often gives, would be broadcast to (N, N) and count the prior N times."""
    posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: x[:, :1])
    for target in (posterior, value_and_grad(lambda z: z[:, :1])):
        with pytest.raises(InputError, match=r"gives \(3, 1\) for 3 rows, not \(3,\): squeeze it"):
            target(torch.zeros(3, 2))
    with pytest.raises(InputError, match="not to plain functions"):
        posterior.frozen(torch.bfloat16)


@pytest.mark.parametrize(
    "n, energy, said",
    [
        (
            1,
            lambda x: x[:, :1].squeeze(),
            r"\(\) for 1 rows, not \(1,\): squeeze one dimension alone, by",
        ),
        (3, lambda x: x.sum(), r"\(\) for 3 rows, not \(3,\): give one number a row"),
        (3, lambda x: x, r"\(3, 2\) for 3 rows, not \(3,\): give one number a row"),
        (3, lambda x: (x.sum(1), x), "a tuple, not a tensor of one number a row"),
        (3, lambda x: None, "a NoneType, not a tensor of one number a row"),
    ],
)
def test_what_an_energy_gives_in_place_of_one_number_a_row_is_told(n, energy, said):
    target = LatentPosterior(GaussianPrior(2), lambda z: z, energy)
    for function in (target, target.energies):
        with pytest.raises(InputError, match=f"^the energy gives {said}"):
            function(torch.zeros(n, 2))


def test_a_base_of_another_dimension_or_dtype_is_told_in_a_line():
    base, energy = nn.Linear(5, 2), Quadratic(2)
    target = LatentPosterior(GaussianPrior(3), base, energy)
    u = torch.zeros(4, 3)
    line = (
        r"the base fails on inputs \(4, 3\), torch.float32 \(mat1.*\): give the prior the dimension that the base takes"
    )
    for act in (target, target.decode, target.energies, target.potential, lambda u: target.frozen()(u)):
        with pytest.raises(InputError, match=line):
            act(u)
    images = nn.Sequential(nn.Linear(5, 16), nn.Unflatten(1, (1, 4, 4)), Conv(), nn.Flatten())  # not all torch's
    with pytest.raises(InputError, match=line):
        LatentPosterior(GaussianPrior(3), images, energy).frozen()
    target = LatentPosterior(GaussianPrior(5), base.double(), energy)
    with pytest.raises(
        InputError, match=r"the base fails .* \(.*\): its weights are torch.float64: give base and energy"
    ):
        target.decode(torch.zeros(4, 5))
    with pytest.raises(InputError, match=r"the energy fails on inputs \(4, 2\), torch.float64 \(.*float32: give"):
        target(torch.zeros(4, 5))
    with pytest.raises(InputError, match=r"the energy fails on inputs \(4, 3\), torch.float32"):
        LatentPosterior(GaussianPrior(3), lambda z: z, energy)(u)


def raises(error: Exception):
    def network(x):
        raise error

    return network


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (nn.BatchNorm2d(3), r"expected 4D input \(got 2D input\)"),
        (lambda z: z[:, 7], "index 7 is out of bounds"),
        (raises(AssertionError("latents of 5")), "latents of 5"),
        (raises(TypeError("no such call")), "no such call"),
    ],
)
def test_whatever_a_network_raises_of_its_inputs_is_told_in_a_line(network, reason):
    with pytest.raises(
        InputError, match=rf"the base fails on inputs \(4, 3\), torch.float32 \({reason}.*\): (give the|it takes)"
    ):
        LatentPosterior(GaussianPrior(3), network, Quadratic(2)).decode(torch.zeros(4, 3))
    with pytest.raises(InputError, match=r"^the energy fails on inputs \(4, 3\), torch.float32"):
        LatentPosterior(GaussianPrior(3), lambda z: z, network).energies(torch.zeros(4, 3))


def test_a_base_of_latents_with_two_more_axes_is_told_to_add_them():
    base = nn.Sequential(nn.ConvTranspose2d(3, 2, 4), nn.BatchNorm2d(2), nn.Flatten())
    target = LatentPosterior(GaussianPrior(3), base, lambda x: x.sum(1))
    for function in (target, target.decode):
        with pytest.raises(InputError, match=r"the base fails .*: it takes \(N, d, 1, 1\), .* z\[:, :, None, None\]$"):
            function(torch.zeros(4, 3))


def test_an_error_that_is_a_line_already_and_one_of_a_single_row_are_left():
    with pytest.raises(InputError, match="^a line$"):
        LatentPosterior(GaussianPrior(3), raises(InputError("a line")), Quadratic(2)).decode(torch.zeros(4, 3))
    base = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))  # in training mode, of which one row has no statistics
    with pytest.raises(ValueError, match="^Expected more than 1 value per channel when training"):
        LatentPosterior(GaussianPrior(3), base, Quadratic(2)).decode(torch.zeros(1, 3))


def test_what_an_energy_calls_its_features_need_not_be_a_network():
    energy = Quadratic(2)
    energy.features = 64
    half = LatentPosterior(GaussianPrior(3), nn.Linear(3, 2), energy).frozen(torch.bfloat16)
    assert not half.exact and half(positions(dtype=torch.float32))[1].shape == (5, 3)


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda network: torch.jit.trace(network, torch.zeros(2, 3))])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_networks_of_torchscript_are_sampled(compiled):
    network = nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4)), nn.BatchNorm2d(1), nn.Flatten()).eval()
    target = LatentPosterior(GaussianPrior(3), nn.Sequential(compiled(network)), Quadratic(16))
    frozen, u = target.frozen(), positions(dtype=torch.float32)
    torch.testing.assert_close(frozen(u), target(u))
    assert all(p.requires_grad for p in target.base.parameters())
    before = frozen.decode(u)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert torch.equal(frozen.decode(u), before) and not torch.equal(target.decode(u), before)


class Conv(nn.Conv2d):
    """No stock layer."""

    def __init__(self):
        super().__init__(1, 1, 3)


def test_other_failures_of_a_base_keep_their_error():
    def base(z):
        if len(z) > 2:
            raise RuntimeError("can't allocate memory")
        return z

    with pytest.raises(RuntimeError, match="^can't allocate memory$"):
        LatentPosterior(GaussianPrior(3), base, lambda x: x.sum(1))(torch.zeros(4, 3))


def test_potentials_under_autocast_or_of_half_precision_are_not_exact():
    """At beta 100 they are off by tenths of nats."""
    target = posterior(beta=100.0, dtype=torch.float32)
    u = positions(dtype=torch.float32)
    for form in (target, target.frozen()):
        assert form.exact
        with torch.autocast("cpu", torch.bfloat16):
            assert not form.exact
            with pytest.raises(ValueError, match="MALA is exact only with float32 potentials.* outside autocast"):
                gebm.run(gebm.MALA(0.1), form, u, 2)
            gebm.run(gebm.Langevin(0.01), form, u, 2)
            with torch.autocast("cpu", enabled=False):
                assert form.exact
    energy = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).bfloat16())
    assert not LatentPosterior(GaussianPrior(3), target.base, energy).exact


def within(x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (x @ x.new_ones(2, 2)).float()


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.half().to(x.dtype)


class Head(nn.Module):
    """An energy of what a function makes of the samples, with a norm and noise before it."""

    def __init__(self, function):
        super().__init__()
        self.function, self.norm, self.calls = function, nn.BatchNorm1d(2), 0

    def forward(self, x):
        self.calls += 1
        return self.function(self.norm(x)).square().sum(1) + 0 * torch.randn(len(x))


AUTOCAST = torch.autocast("cpu", torch.bfloat16)
OF_LESS = [within, AUTOCAST(lambda x: (x @ x.new_ones(2, 2)).float()), rounded]


@pytest.mark.parametrize("function", OF_LESS, ids=["with", "decorator", "half"])
@pytest.mark.parametrize("part", ["energy", "function", "base"])
def test_potentials_of_networks_with_an_autocast_of_their_own_are_not_exact(part, function):
    head, u = Head(function), positions(dtype=torch.float32)
    base = nn.Sequential(nn.Linear(3, 2), Head(function))
    if part == "base":
        head = Quadratic(2)
        base[1].forward = lambda x: function(x).float()
    else:
        base = nn.Linear(3, 2)
    target = LatentPosterior(GaussianPrior(3), base, head if part != "function" else lambda x: head(x), beta=100.0)
    for form in (target, target.frozen(), target.at(2.0)):
        assert not form.exact
        with pytest.raises(InputError, match="MALA is exact only with float32 potentials.* compute in no less"):
            gebm.run(gebm.MALA(0.1), form, u, 2)
        gebm.run(gebm.Langevin(0.0001), form, u, 2)
    with pytest.raises(InputError, match="exact only"):
        Replay(gebm.MALA(0.01), steps=1, size=4)(GEBM(base, Head(function), GaussianPrior(3)), 4)


def test_a_trial_of_precision_is_made_once_and_leaves_no_trace():
    energy = Head(lambda x: x)
    target, random = LatentPosterior(GaussianPrior(3), nn.Linear(3, 2), energy), torch.get_rng_state()
    state = {key: value.clone() for key, value in energy.state_dict().items()}
    assert target.exact and target.exact and target.at(3.0).exact and energy.calls == 1 and energy.norm.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in energy.state_dict().items())
    assert LatentPosterior(GaussianPrior(2), nn.Linear(3, 2), energy).exact  # what fails is said when it is sampled


def test_networks_of_stock_modules_alone_are_not_tried(monkeypatch):
    monkeypatch.setattr("gebm.latent.rounds", None)
    target = LatentPosterior(GaussianPrior(3), nn.Linear(3, 1), nn.Flatten(0))
    assert target.exact and target.frozen().exact


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout()])
def test_chains_of_networks_in_training_mode_are_warned_of_once(caplog, layer):
    base = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))
    target, u = LatentPosterior(GaussianPrior(3), base, Quadratic(2)), positions(dtype=torch.float32)
    gebm.run(gebm.Langevin(0.01), target.frozen(), u, 1)
    assert not caplog.messages
    for _ in range(2):
        gebm.run(gebm.Langevin(0.01), target, u, 1)
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("run: the base is in training mode")


class Cut(nn.Module):
    """A quadratic energy, or an identity, without a graph from its output to its input."""

    def __init__(self, how: str, is_base: bool):
        super().__init__()
        self.how, self.is_base, self.shift = how, is_base, nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad() if self.how == "no_grad" else torch.enable_grad():
            y = x if self.is_base else x.square().sum(1)
            y = y + 0
        y = y.long() if self.how == "whole" else y.detach() if self.how == "detach" else y
        return y + self.shift if self.how == "detach" else y


@pytest.mark.parametrize("how", ["no_grad", "detach", "whole"])
@pytest.mark.parametrize("part", ["base", "energy", "function"])
def test_samplers_by_gradients_refuse_a_cut_graph_and_others_do_not(how, part):
    base, energy = nn.Identity(), Cut(how, False)
    if part == "base":
        base, energy = Cut(how, True), lambda x: x.square().sum(1)
    elif part == "function":
        base, energy = lambda z: z, energy.forward
    target, u = LatentPosterior(GaussianPrior(2), base, energy), torch.randn(4, 2)
    for form in (target, target.frozen(), target.at(2.0)):
        for kernel in (gebm.Langevin(0.1), gebm.MALA(0.1), KineticLangevin(0.1), SphereLangevin(0.1)):
            name = "base" if part == "base" else "energy"
            with pytest.raises(InputError, match=rf"^{type(kernel).__name__}: moves by .* which the {name} cuts: "):
                gebm.run(kernel, form, u, 1)
            with pytest.raises(InputError, match="cuts"):
                kernel.init(u, form)
        for free in (RandomWalk(0.1), IndependentMetropolis(), SIR()):
            gebm.run(free, form, u, 1)
    gebm.run(gebm.Langevin(0.1), target.at(0.0), u, 1)


@pytest.mark.parametrize("energy", [lambda x: 0 * x.sum(1), lambda x: x.sum(1).sign(), lambda x: x.sum(1).relu()])
def test_gradients_of_zero_are_no_cut(energy):
    with torch.no_grad():
        target = LatentPosterior(GaussianPrior(2), lambda z: z, energy)
        assert not target.cut
        gebm.run(gebm.Langevin(0.1), target, torch.randn(4, 2), 1)
