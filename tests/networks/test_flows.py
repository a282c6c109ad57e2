import copy
import math

import pytest
import torch
from torch.autograd.functional import jacobian

from gebm.errors import InputError
from gebm.networks import BASES
from gebm.networks.flows import FLOWS, Flow
from gebm.networks.folding import folded
from gebm.networks.ratio import DensityRatio
from gebm.networks.transforms import Mixture

DIM = 5
NORMED = ("nvp", "maf", "mogmaf")  # those of several blocks


def made(name: str, dim: int = DIM, seed: int = 0, dtype: torch.dtype = torch.float64, **options) -> Flow:
    """A flow whose weights and running statistics are far from where they start, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    flow = FLOWS[name]((dim,), **{"width": 0.2, "blocks": 3} | options)
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.5 * noise / max(1, parameter.shape[-1] if parameter.ndim > 1 else 1) ** 0.5)
        flow.to(dtype)
        for _ in range(3):  # moves what running statistics there are
            flow.log_prob(rows(100, dim, dtype) * 1.5 + 0.5)
    return flow.eval()


def rows(n: int, dim: int = DIM, dtype: torch.dtype = torch.float64, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def log_normal(z: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Normal(0, 1).log_prob(z).sum(-1)


def log_det(flow_map, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([jacobian(flow_map, row[None]).squeeze().slogdet().logabsdet for row in x])


def grid(low: float, high: float, points: int) -> tuple[torch.Tensor, float]:
    """Points of the plane and the area of each."""
    axis = torch.linspace(low, high, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), ((high - low) / (points - 1)) ** 2


OPTIONS = [(name, False) for name in FLOWS] + [(name, True) for name in NORMED]


@pytest.fixture(params=OPTIONS, ids=lambda p: p[0] + " bn" * p[1])
def options(request) -> dict:
    return {"name": request.param[0], "bn": request.param[1]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inverse(options, dtype):
    flow = made(**options, dtype=dtype)
    z = rows(200, dtype=dtype)
    x = flow(z)
    assert x.shape == z.shape and x.dtype == dtype and flow.log_prob(x).dtype == dtype
    assert (x - z).abs().max() > 0.5
    bound = 1e-4 if dtype == torch.float32 else 1e-9
    assert (flow.inverse(x) - z).abs().max() < bound
    assert (flow(flow.inverse(z)) - z).abs().max() < bound


def test_log_density_is_that_of_the_jacobian(options):
    flow, x = made(**options), rows(6)
    z = flow.inverse(x)
    expected = log_normal(z) + log_det(flow.inverse, x)
    torch.testing.assert_close(flow.log_prob(x), expected)
    torch.testing.assert_close(log_normal(z) - log_det(flow, z), expected)


def test_density_integrates_to_one(options):
    flow = made(**options, dim=2, seed=2, width=0.05)
    points, area = grid(-25, 25, 501)
    with torch.no_grad():
        total = torch.cat([flow.log_prob(part) for part in points.split(50_000)]).exp().sum() * area
        inside = flow(rows(2000, 2)).abs().max()
    assert inside < 25
    assert total == pytest.approx(1, abs=1e-3)


def test_gradients_reach_every_parameter(options):
    flow = made(**options).train()
    for value in (flow.log_prob(rows(20)).mean(), flow(rows(20)).square().mean()):
        flow.zero_grad()
        value.backward()
        for name, parameter in flow.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_gradients_of_samples(options):
    """By finite differences, in the latents and in each parameter."""
    flow, z, weight = made(**options), rows(3), rows(3, seed=5)
    parameters = list(flow.parameters())
    exact = torch.autograd.grad((weight * flow(z.requires_grad_())).sum(), [z, *parameters])
    step = 1e-5
    for tensor, gradient in zip([z, *parameters], exact):
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        values = []
        with torch.no_grad():
            for move in (step, -2 * step):
                tensor.add_(move * direction)
                values.append((weight * flow(z)).sum())
            tensor.add_(step * direction)
        expected = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-4, atol=1e-6)


def test_gradient_of_a_gradient(options):
    """A penalty on the gradient in x trains the parameters; torch.func gives the same gradient."""
    flow, x = made(**options), rows(4).requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)
    torch.testing.assert_close(torch.func.grad(lambda q: flow.log_prob(q).sum())(x.detach()), gradient)
    gradient.square().sum().backward()
    assert sum(p.grad.abs().sum() for p in flow.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("name", FLOWS)
def test_starts_near_the_identity(name):
    torch.manual_seed(0)
    flow, z = FLOWS[name]((11,)), rows(1000, 11, torch.float32)
    with torch.no_grad():
        assert (flow(z) - z).abs().max() < (0.5 if name == "mogmaf" else 1e-6)
        assert (flow.log_prob(z) - log_normal(z)).abs().mean() < 0.2


@pytest.mark.parametrize("name", ["made", "maf", "mogmaf"])
def test_autoregressive(name):
    """Column i of z depends on columns 1 to i of x, for one layer; all of several do so in turns."""
    derivative = jacobian(made(name, blocks=1).inverse, rows(1)).squeeze()
    assert torch.equal(derivative.triu(1), torch.zeros(DIM, DIM, dtype=torch.float64))
    assert (derivative.tril() != 0).sum() == DIM * (DIM + 1) / 2
    assert FLOWS[name].sequential
    if name != "made":
        assert (jacobian(made(name, blocks=2).inverse, rows(1)) != 0).all()


def test_coupling_masks_alternate():
    flow, x = made("nvp", blocks=1), rows(2)
    z = flow.inverse(x)
    network, inside, outside = flow.maps[0].network, x[:, ::2], x[:, 1::2]
    weights = [(layer.weight, layer.bias) for layer in network.layers]
    h = [inside, inside]
    for i, (w, b) in enumerate(weights):
        h = [h[k] @ w[k].T + b[k] for k in (0, 1)]
        if i < 2:
            h = [h[0].tanh(), h[1].relu()]
    log_scale = 6.907755 * torch.tanh(h[0] / 6.907755)
    torch.testing.assert_close(z[:, 1::2], outside * log_scale.exp() + h[1])
    assert torch.equal(z[:, ::2], x[:, ::2]) and (z[:, 1::2] != x[:, 1::2]).all()
    assert (jacobian(made("nvp", blocks=3).inverse, x[:1]) != 0).all()
    assert not FLOWS["nvp"].sequential and not FLOWS["gaussian"].sequential


def test_gaussian_is_the_gaussian_of_its_samples():
    flow = made("gaussian")
    mean, x = flow(torch.zeros(1, DIM, dtype=torch.float64))[0], rows(7)
    factor = flow(torch.eye(DIM, dtype=torch.float64)) - mean  # rows: columns of L
    assert (factor.T.diagonal() > 0).all() and torch.equal(factor.tril(-1), torch.zeros_like(factor))
    expected = torch.distributions.MultivariateNormal(mean, scale_tril=factor.T).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x), expected)


@pytest.mark.parametrize("name", NORMED)
def test_batch_normalisation(name):
    flow = made(name, bn=True, dtype=torch.float32)
    norms = [m for m in flow.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(norms) == (1 if name == "mogmaf" else 2)  # between three blocks, the mixture aside
    x, far = rows(64, dtype=torch.float32), 3 * rows(64, dtype=torch.float32, seed=9)
    before = copy.deepcopy(flow.state_dict())
    with torch.no_grad():
        alone = flow.log_prob(x)
        torch.testing.assert_close(flow.log_prob(torch.cat([x, far]))[:64], alone)
        flow.train()
        flow(x), flow.inverse(x)  # between latents and rows: by the running statistics, which stay
        assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
        assert (flow.inverse(flow(x)) - x).abs().max() < 1e-4
        assert (flow.log_prob(torch.cat([x, far]))[:64] - flow.log_prob(x)).abs().max() > 0.1  # by the batch
        many = x.repeat(20, 1)  # the running variance is the unbiased one: here the same to 8e-4
        by_batch = flow.log_prob(many)
        for _ in range(150):
            again = flow.log_prob(many)
        torch.testing.assert_close(again, by_batch)  # whatever the running statistics
        torch.testing.assert_close(flow.eval().log_prob(many), by_batch, rtol=0, atol=0.03)


def test_saved_and_copied(options, tmp_path):
    flow, other, x = made(**options), made(**options, seed=4), rows(5)
    expected = flow.log_prob(x)
    assert torch.equal(copy.deepcopy(flow).log_prob(x), expected)
    torch.testing.assert_close(folded(flow)(x), flow(x))
    torch.save(flow.state_dict(), tmp_path / "weights.pt")
    assert not torch.allclose(other.log_prob(x), expected)
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(other.log_prob(x), expected) and torch.equal(other(x), flow(x))
    assert BASES[options["name"]] is FLOWS[options["name"]]


@pytest.mark.parametrize("name", FLOWS)
def test_shapes_that_are_refused(name):
    with pytest.raises(InputError, match="rows of a table"):
        FLOWS[name]((3, 32, 32))
    with pytest.raises(InputError, match="--Z_dim 100.* 11"):
        FLOWS[name]((11,), latent_dim=100)
    assert FLOWS[name]((2,), latent_dim=2).dim == 2
    if name == "gaussian":
        assert FLOWS[name]((1,))(torch.ones(3, 1)).shape == (3, 1)
    else:
        with pytest.raises(InputError, match="needs 2 columns, the data have 1: choose 'gaussian'"):
            FLOWS[name]((1,))


@pytest.mark.parametrize("name", FLOWS)
def test_width_and_blocks(name):
    def size(**options):
        return sum(p.numel() for p in FLOWS[name]((4,), **options).parameters())

    assert (size(width=0.5) < size()) == (name != "gaussian")
    assert (size(blocks=2) < size()) == (name in NORMED)


DROPPED = [name for name in FLOWS if name != "gaussian"]


@pytest.mark.parametrize("name", DROPPED)
def test_dropout_is_for_training_by_likelihood_alone(name):
    flow, plain, x = made(name, dropout=0.3), made(name), rows(200)
    state = [(p.shape, n.rsplit(".", 1)[1]) for n, p in plain.named_parameters()]
    assert [(p.shape, n.rsplit(".", 1)[1]) for n, p in flow.named_parameters()] == state
    expected = flow.log_prob(x)
    flow.train()
    torch.manual_seed(0)
    first, second = flow.log_prob(x), flow.log_prob(x)
    assert (first - second).abs().max() > 0.01 and (first - expected).abs().max() > 0.01
    torch.manual_seed(0)
    assert torch.equal(flow.log_prob(x), first)
    z = flow.inverse(x)
    assert torch.equal(flow.inverse(x), z) and torch.equal(flow.eval().inverse(x), z)
    assert (flow.train()(z) - x).abs().max() < 1e-6
    energy = DensityRatio(made(name, dropout=0.3, seed=3), flow).train()
    assert torch.equal(energy(x), energy(x)) and torch.equal(energy.eval()(x), energy.train()(x))
    flow.log_prob(x).mean().backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())


def test_gaussian_takes_no_dropout():
    flow = made("gaussian", dropout=0.3).train()
    assert torch.equal(flow.log_prob(rows(9)), flow.eval().log_prob(rows(9)))


def test_mixture_alone_is_autoregressive_in_the_order_of_the_columns():
    """Blocks count the mixture: with one, the first column's marginal is the first conditional."""
    flow, x = made("mogmaf", blocks=1), rows(50)
    (first,) = {tuple(row) for row in flow._mixtures(x).mean[:, 0].tolist()}
    bias = flow.conditionals[-1].bias[: 3 * flow.components].view(3, -1)
    assert torch.equal(bias[1], torch.tensor(first, dtype=torch.float64))
    marginal = Mixture(bias).log_prob(x[:, 0])
    others = x.clone()
    others[:, 1:] = 0
    conditionals = flow._mixtures(others).log_prob(others)
    torch.testing.assert_close(conditionals[:, 0], marginal)
    assert not flow.maps and len(made("mogmaf", blocks=4).maps) == 3


def test_mixture_learns_fine_structure():
    """Two values, each 0.002 wide: the density of a Gaussian of that width, reached from the start by Adam."""
    torch.manual_seed(0)
    flow = FLOWS["mogmaf"]((2,), blocks=1, width=0.1)
    optimiser = torch.optim.Adam(flow.parameters(), 0.03, (0.9, 0.99))
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0, 400)
    x = torch.randn(400, 2).sign() + 0.002 * torch.randn(400, 2)
    for _ in range(400):
        optimiser.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimiser.step()
        falling.step()
    best = 2 * (math.log(2) + math.log(0.002) + 0.5 * math.log(2 * math.pi * math.e))
    assert loss.item() == pytest.approx(best, abs=0.4)


def test_mixture_by_hand():
    logits, mean, scale = torch.tensor([[0.3, -1.0, 0.5], [-2.0, 0.0, 3.0], [-1.0, 0.2, -30.0]], dtype=torch.float64)
    mixture = Mixture(torch.stack([logits, mean, scale]))
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)
    normals = torch.distributions.Normal(mean, scale.exp().log1p() + 0.001)
    density = (logits.softmax(0) * normals.log_prob(x[:, None]).exp()).sum(1)
    torch.testing.assert_close(mixture.log_prob(x).exp(), density)
    below = (logits.softmax(0) * normals.cdf(x[:, None])).sum(1)
    torch.testing.assert_close(torch.special.ndtr(mixture.normal_score(x)), below)
    torch.testing.assert_close(mixture.quantile(mixture.normal_score(x)), x)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_mixture_tails_in_float32(sign):
    """Far outside all components, and with components so narrow that their probabilities underflow in between."""
    x = (sign * torch.tensor([5.0, 20.0, 100.0, 1000.0])).requires_grad_()
    mixture = Mixture(torch.tensor([[0.0, 0.0], [-3.0, 3.0], [-5.3, 0.54]]))  # scales 0.006 and 1
    z = mixture.normal_score(x)
    assert ((mixture.quantile(z) - x).abs() < 1e-4 * x.abs()).all()
    mixture.quantile(z).sum().backward()
    assert (x.grad - 1).abs().max() < 0.15  # log-odds of 5e5 are rounded to 0.03 or 0.06


# The density ratio as an energy.


def ratio(name: str, base: str = "nvp", dim: int = 2, offset: float = 0.7, **options) -> DensityRatio:
    return DensityRatio(made(name, dim, seed=3, **options), made(base, dim), offset)


@pytest.mark.parametrize("name", FLOWS)
def test_ratio_is_the_flow_again(name):
    energy = ratio(name, width=0.05)
    points, area = grid(-25, 25, 351)
    with torch.no_grad():
        x = rows(5, 2)
        log_model = energy.base.log_prob(x) - energy(x) - energy.known_log_partition
        torch.testing.assert_close(log_model, energy.flow.log_prob(x))
        assert torch.equal(energy.log_density(x), energy.flow.log_prob(x))
        weights = [(energy.base.log_prob(part) - energy(part)).exp().sum() for part in points.split(50_000)]
    assert energy.known_log_partition == pytest.approx(-0.7)
    assert math.log(sum(weights) * area) == pytest.approx(-0.7, abs=2e-3)


@pytest.mark.parametrize("name", FLOWS)
def test_ratio_started_at_its_base(name):
    energy = DensityRatio(made(name, bn=True, seed=3), made(name, bn=True), offset=0.7)
    x = rows(20)
    assert (energy(x) - 0.7).abs().max() > 0.1
    assert energy.match_base()
    torch.testing.assert_close(energy(x), torch.full((20,), 0.7, dtype=torch.float64))
    with torch.no_grad():
        next(iter(energy.base.parameters())).add_(1.0)  # copied, not shared
    assert (energy(x) - 0.7).abs().max() > 0.01


@pytest.mark.parametrize("base", [("maf", {}), ("nvp", {"width": 0.4}), ("nvp", {"blocks": 2})], ids=str)
def test_ratio_unlike_its_base(base):
    energy = DensityRatio(made("nvp", seed=3), made(base[0], **base[1]))
    before = copy.deepcopy(energy.state_dict())
    assert not energy.match_base()
    assert all(torch.equal(v, before[k]) for k, v in energy.state_dict().items())


def test_ratio_partition_by_samples_of_the_base():
    base, p = made("gaussian", 2), FLOWS["nvp"]((2,), width=0.2, blocks=2).double()
    with torch.no_grad():
        base.maps[0].factor.zero_().fill_diagonal_(math.log(1.5))  # wider than p: bounded weights
        base.maps[0].mean.zero_()
    energy = DensityRatio(p, base, offset=0.7)
    with torch.no_grad():
        weights = (-energy(base(rows(20_000, 2)))).exp()
    error = weights.std() / math.sqrt(len(weights))
    assert error < 0.01
    assert abs(weights.mean() - math.exp(-0.7)) < 4 * error


def test_ratio_holds_the_base():
    energy = ratio("nvp")
    base = energy.base.train()
    z = rows(20, 2)
    x = base(z)
    (by_x,) = torch.autograd.grad(energy(x).sum(), x, retain_graph=True)
    energy(x).sum().backward()
    # The base learns through its samples alone: what is left of its own density would be a second term.
    through = {name: p.grad.clone() for name, p in base.named_parameters()}
    base.zero_grad()
    (by_x * base(z)).sum().backward()
    for name, p in base.named_parameters():
        torch.testing.assert_close(through[name], p.grad)
    assert all(p.requires_grad for p in base.parameters()) and base.training

    base.zero_grad()
    energy.zero_grad()
    energy(x.detach()).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in base.parameters())
    assert all(p.grad.abs().max() > 0 for p in energy.parameters())
    x = x.detach().requires_grad_()
    expected = base.log_prob(x) - energy.flow.log_prob(x)
    torch.testing.assert_close(torch.autograd.grad(energy(x).sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])


def test_ratio_is_of_one_row_whatever_the_mode():
    energy = DensityRatio(made("nvp", bn=True, seed=3), made("maf", bn=True))
    x = rows(6)
    energy.eval(), energy.base.eval()
    expected = energy(x)
    energy.train(), energy.base.train()
    state = copy.deepcopy(energy.base.state_dict())
    torch.testing.assert_close(torch.cat([energy(row[None]) for row in x]), expected)
    assert all(torch.equal(v, state[k]) for k, v in energy.base.state_dict().items())


def test_ratio_owns_only_its_flow():
    energy = ratio("maf")
    assert {name.split(".")[0] for name in energy.state_dict()} == {"flow", "offset"}
    owned = {id(p) for p in energy.parameters()}
    assert owned == {id(p) for p in energy.flow.parameters()}
    model = torch.nn.ModuleDict({"base": energy.base, "energy": energy})
    copied = copy.deepcopy(model)
    assert copied["energy"].base is copied["base"] and copied["base"] is not model["base"]
    assert all(p.dtype == torch.float32 for m in (energy.float(), energy.base) for p in m.parameters())
    assert model["energy"](rows(3, 2, torch.float32)).dtype == torch.float32


def test_folded_ratio():
    energy, x = ratio("nvp"), rows(5, 2)
    energy.base.train()
    fast = folded(energy)
    torch.testing.assert_close(fast(x), energy(x))
    assert not fast(x).requires_grad
    gradients = [torch.autograd.grad(e(q).sum(), q)[0] for e in (energy, fast) for q in [x.clone().requires_grad_()]]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        next(iter(energy.base.parameters())).add_(1.0)
    torch.testing.assert_close(fast(x), folded(fast)(x))
    assert not torch.allclose(fast(x), energy(x))


def test_a_gaussian_takes_its_closed_form():
    x = rows(500) @ torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 7
    flow = FLOWS["gaussian"]((DIM,)).double()
    flow.fit(x)
    best = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.mT, correction=0))
    torch.testing.assert_close(flow.log_prob(x), best.log_prob(x))
    flow.log_prob(x).mean().backward()
    assert all(parameter.grad.abs().max() < 1e-8 for parameter in flow.parameters())  # nothing is better
    noise = 0.3 * torch.eye(DIM, dtype=torch.float64) + 0.1
    flow.fit(x, noise)
    z = torch.randn(200_000, DIM, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    u = torch.rand(400, *x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 - 1
    noisy = (x + u @ noise).flatten(0, 1)
    torch.testing.assert_close(torch.cov(flow(z).mT), torch.cov(noisy.mT), rtol=0.03, atol=0.05)
    for dependent in (x[:, [0, 0, 1, 2, 3]], torch.cat([x[:, :4], x[:, :4].sum(1, keepdim=True)], 1), x * 0 + 3):
        with pytest.raises(InputError, match="depend on each other"):
            flow.fit(dependent)
    flow.fit(torch.cat([x[:, :4], x[:, :1] + 1e-5 * x[:, 4:]], 1))  # nearly so, and there is a best one
