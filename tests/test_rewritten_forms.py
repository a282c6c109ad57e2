"""Layers that only look like stock ones, and losses with weights that depend on the input: every rewritten form of a
network computes what the network as it is written does, in values and in gradients."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from gebm import fast
from gebm.errors import InputError
from gebm.latent import GaussianPrior, LatentPosterior
from gebm.networks.resampling import Paired
from gebm.networks.trials import difference
from gebm.second_order import input_gradient


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, self.stride, self.padding)


class StandardisedInside(nn.Conv2d):
    """The same by the method that `nn.Conv2d.forward` calls."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), bias)


class Equalised(nn.Conv2d):
    """Equalised learning rate (Karras et al. 2018)."""

    def forward(self, x):
        return F.conv2d(x, self.weight * 0.3, self.bias, self.stride, self.padding)


class EqualisedTransposed(nn.ConvTranspose2d):
    def forward(self, x):
        return F.conv_transpose2d(x, self.weight * 0.3, self.bias, self.stride, self.padding)


class EqualisedLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * 3, self.bias)


class Partial(nn.Conv2d):
    """A convolution that divides by the share of its window inside the image (Liu et al. 2018)."""

    def forward(self, x):
        inside = F.avg_pool2d(F.pad(torch.ones_like(x[:, :1]), (1, 1, 1, 1)), 3, 1)
        return super().forward(x) / inside


class Coordinates(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)


class Scaled(nn.BatchNorm2d):
    """A norm that keeps more of the mean than it should."""

    def forward(self, x):
        return super().forward(x) + 0.5 * x


class Renormalised(nn.BatchNorm2d):
    """Statistics of the batch, in evaluation mode too."""

    def forward(self, x):
        return F.batch_norm(x, None, None, self.weight, self.bias, True)


class AlwaysTraining(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class Blurred(nn.AvgPool2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="reflect")[..., 1:-1, 1:-1] + x.square())


class Doubled(nn.Upsample):
    def forward(self, x):
        return 2 * super().forward(x)


class Unflattened(nn.Unflatten):
    """To channels last, as `reshape` of other frameworks does."""

    def forward(self, x):
        return x.reshape(len(x), 2, 2, 8).permute(0, 3, 1, 2)


class Reversed(nn.Sequential):
    def __iter__(self):
        return iter([*self._modules.values()][::-1])


class Called(nn.Sequential):
    def __call__(self, x):
        return super().__call__(x) + x


class Pieces(nn.Module):
    """The layers of a Sequential one by one, or in part, in the hands of their owner."""

    def __init__(self, use: Callable[[nn.Sequential, Tensor], Tensor], kind: type[nn.Sequential] = nn.Sequential):
        super().__init__()
        self.q = kind(conv(), nn.BatchNorm2d(2), nn.ReLU(), conv(), nn.AvgPool2d(2))
        self.use = use

    def forward(self, x):
        return self.use(self.q, x)


class HyperBias(nn.Module):
    """Weights that its owner writes into a layer before each call."""

    def __init__(self):
        super().__init__()
        self.q = nn.Sequential(conv(), nn.BatchNorm2d(2))
        self.first = self.q[0]

    def forward(self, x):
        self.first.bias.data = x.mean((0, 2, 3)).detach()
        return self.q(x)


class Viewed(nn.Module):
    """`view`, which channels-last outputs do not take."""

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return self.conv(x).view(len(x), -1)


class Noisy(nn.Module):
    """Noise at every call, as in StyleGAN."""

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


class Remembering(nn.Module):
    """A layer that keeps its last output, with its graph."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = conv(), []

    def forward(self, x):
        self.last = [self.conv(x)]
        return self.last[0]


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3, 1, 1)

    def forward(self, x):
        return self.conv(x[:, None]).flatten(1, 2)


class Doubling(nn.Module):
    def forward(self, weight):
        return 2 * weight


class InputScale(nn.Module):
    """A parametrisation that depends on more than the weight: on what its owner last saw."""

    def __init__(self):
        super().__init__()
        self.scale = torch.ones(())

    def forward(self, weight):
        return self.scale * weight


class Conditioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = parametrize.register_parametrization(conv(), "weight", InputScale())

    def forward(self, x):
        self.conv.parametrizations.weight[0].scale = x.square().mean()
        return self.conv(x)


def conv(kind: type[nn.Conv2d] = nn.Conv2d, **settings) -> nn.Conv2d:
    return kind(2, 2, 3, padding=1, **settings)


def hooked(layer: nn.Module, register: str, hook: Callable) -> nn.Module:
    getattr(layer, register)(hook)
    return layer


def doubled(module: nn.Module, of_input: tuple, of_output: tuple) -> tuple:
    return tuple(g if g is None else 2 * g for g in of_input)


def own_forward(layer: nn.Module, method: str = "forward") -> nn.Module:
    stock = getattr(layer, method)
    setattr(layer, method, lambda *args: 2 * stock(*args))
    return layer


seq, norm, half, double = nn.Sequential, nn.BatchNorm2d, nn.AvgPool2d, nn.Upsample

# Networks (N, 2, 8, 8) -> (N, ...).
LOOK_ALIKES: dict[str, Callable[[], nn.Module]] = {
    "weight standardisation, norm": lambda: seq(conv(Standardised), norm(2)),
    "standardisation in _conv_forward, norm": lambda: seq(conv(StandardisedInside), norm(2)),
    "equalised, norm": lambda: seq(conv(Equalised), norm(2)),
    "equalised, pooling": lambda: seq(conv(Equalised), half(2)),
    "doubling, equalised": lambda: seq(double(scale_factor=2), conv(Equalised)),
    "equalised transposed, norm": lambda: seq(EqualisedTransposed(2, 2, 4, 2, 1), norm(2)),
    "equalised linear, unflatten, norm": lambda: seq(
        nn.Flatten(), EqualisedLinear(128, 32), nn.Unflatten(1, (8, 2, 2)), norm(8)
    ),
    "partial, pooling": lambda: seq(conv(Partial), half(2)),
    "coordinates, norm": lambda: seq(conv(Coordinates), norm(2)),
    "subclass of norm": lambda: seq(conv(), Scaled(2)),
    "norm by the batch": lambda: seq(conv(), Renormalised(2)),
    "norm that stays in training": lambda: seq(conv(), AlwaysTraining(2)),
    "subclass of pooling": lambda: seq(conv(), Blurred(2)),
    "subclass of doubling": lambda: seq(Doubled(scale_factor=2), conv()),
    "subclass of unflatten": lambda: seq(nn.Flatten(), nn.Linear(128, 32), Unflattened(1, (8, 2, 2)), norm(8)),
    "grouped transposed, norm": lambda: seq(nn.ConvTranspose2d(2, 4, 4, 2, 1, groups=2), norm(4)),
    "grouped, norm": lambda: seq(nn.Conv2d(2, 4, 3, groups=2), norm(4)),
    "dilated transposed, norm": lambda: seq(nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, dilation=2), norm(4)),
    "reflected, norm": lambda: seq(conv(padding_mode="reflect"), norm(2)),
    "unflatten of rows": lambda: seq(nn.Flatten(2), nn.Linear(64, 2), nn.Unflatten(1, (2, 1)), norm(2)),
    "unflatten from the end": lambda: seq(nn.Flatten(2), nn.Linear(64, 4), nn.Unflatten(-1, (2, 2)), norm(2)),
    "unflatten to more channels than the norm's rows": lambda: seq(
        nn.Flatten(), nn.Linear(128, 32), nn.Unflatten(1, (2, 16)), nn.Unflatten(2, (4, 4)), norm(2)
    ),
    "pieces: q[0]": lambda: Pieces(lambda q, x: q(x).mean((2, 3)) + q[0](x).mean((2, 3))),
    "pieces: q[:1]": lambda: Pieces(lambda q, x: q[2:](q[:1](x))),
    "pieces: q[0].weight": lambda: Pieces(lambda q, x: F.conv2d(x, q[0].weight)),
    "pieces: a loop": lambda: Pieces(lambda q, x: torch.cat([layer(x).flatten(1) for layer in q], 1)),
    "pieces: norm alone": lambda: Pieces(lambda q, x: q[1](x)),
    "pieces: pooling alone": lambda: Pieces(lambda q, x: q[4](x) + q(x)),
    "pieces: of a Paired": lambda: Pieces(lambda q, x: q[4](x) + q(x), Paired),
    "pieces: functional_call": lambda: Pieces(
        lambda q, x: torch.func.functional_call(q, {"0.bias": x.mean((0, 2, 3))}, (x,))
    ),
    "weights written by the owner": HyperBias,
    "Sequential in reverse": lambda: Reversed(norm(2), conv()),
    "Sequential with a call of its own": lambda: Called(conv(), norm(2)),
    "forward of the instance": lambda: seq(own_forward(conv()), norm(2)),
    "_conv_forward of the instance": lambda: seq(own_forward(conv(), "_conv_forward"), half(2)),
    "norm with a forward of the instance": lambda: seq(conv(), own_forward(norm(2))),
    "Sequential with a forward of the instance": lambda: own_forward(seq(conv(), norm(2))),
    "forward hook": lambda: seq(conv(), hooked(norm(2), "register_forward_hook", lambda m, x, y: y + 1)),
    "pre-forward hook": lambda: seq(hooked(conv(), "register_forward_pre_hook", lambda m, x: (3 * x[0],)), norm(2)),
    "backward hook": lambda: seq(
        hooked(conv(), "register_full_backward_hook", doubled), norm(2)
    ),
    "older spectral norm, norm": lambda: seq(nn.utils.spectral_norm(conv()), norm(2)),
    "older weight norm, norm": lambda: seq(nn.utils.weight_norm(conv()), norm(2)),
    "pruned, pooling": lambda: seq(prune.l1_unstructured(conv(), "weight", 0.5), half(2)),
    "spectral norm, norm": lambda: seq(parametrizations.spectral_norm(conv()), norm(2), conv(), half(2)),
    "weight norm, pooling": lambda: seq(parametrizations.weight_norm(conv()), half(2)),
    "parametrised subclass, norm": lambda: seq(
        parametrize.register_parametrization(conv(Equalised), "weight", Doubling()), norm(2)
    ),
    "parametrised by the input": Conditioned,
    "one layer twice": lambda: (lambda c: seq(c, norm(2), nn.ReLU(), c, norm(2), c, half(2)))(conv()),
    "one norm twice": lambda: (lambda n: seq(conv(), n, nn.ReLU(), conv(), n))(norm(2)),
    "view of an output": Viewed,
    "noise": lambda: seq(conv(), norm(2), Noisy()),
    "an output that is kept": Remembering,
    "convolution of volumes": Volume,
}  # fmt: skip


class Base(nn.Module):
    """A look-alike in a base."""

    def __init__(self, layers: nn.Module):
        super().__init__()
        self.first, self.layers = nn.Linear(3, 128), layers

    def forward(self, z):
        return self.layers(self.first(z).view(-1, 2, 8, 8)).tanh()


class Energy(nn.Module):
    """A look-alike in an energy."""

    def __init__(self, layers: nn.Module):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return self.layers(x.flatten(1).tile(1, 128)[:, :128].reshape(-1, 2, 8, 8)).flatten(1).square().mean(1)


def trained(network: nn.Module) -> nn.Module:
    """After passes that move running statistics and power iterations, with a step of training behind it."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    for i in range(5):
        x = 2 * torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(i), dtype=torch.float64) + 0.5
        network(x).square().mean().backward()
        optimizer.step()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
    return network


def look_alike(name: str) -> nn.Module:
    torch.manual_seed(0)
    return trained(LOOK_ALIKES[name]().double())


def seeded(function: Callable, *args):
    torch.manual_seed(1)
    return function(*args)


def pair_of(name: str) -> tuple[LatentPosterior, nn.ModuleList, Tensor]:
    """A posterior of a look-alike in both networks, those, and positions."""
    base, energy = Base(look_alike(name)).double(), Energy(look_alike(name))
    u = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return LatentPosterior(GaussianPrior(3), base, energy, beta=2.0), nn.ModuleList([base, energy]), u


def outputs(target: LatentPosterior, u: Tensor) -> tuple:
    return seeded(target, u), seeded(target.decode, u), seeded(target.energies, u)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_look_alike_is_sampled_as_it_is_written(name, plain):
    posterior, networks, u = pair_of(name)
    state = {key: value.clone() for key, value in networks.state_dict().items()}
    random = torch.get_rng_state()
    with fast.plain(plain):
        frozen = posterior.frozen()
    assert torch.equal(random, torch.get_rng_state())
    ours = outputs(frozen, u)
    assert all(module.training for module in networks.modules()) and all(p.requires_grad for p in networks.parameters())
    torch.testing.assert_close(dict(networks.state_dict()), state, rtol=0, atol=0)
    networks.eval()
    torch.testing.assert_close(ours, outputs(posterior, u), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["norm with a forward of the instance", "Sequential with a forward of the instance"])
def test_a_network_that_a_copy_would_call_is_sampled_in_evaluation_mode(name, caplog):
    """Whatever mode it was frozen in and is in now."""
    posterior, networks, u = pair_of(name)
    networks.eval()
    expected, frozen, again = outputs(posterior, u), posterior.frozen(), posterior.frozen().frozen()
    networks.train()
    torch.testing.assert_close(outputs(frozen, u), expected, rtol=0, atol=0)
    torch.testing.assert_close(outputs(again, u), expected, rtol=0, atol=0)
    said = "is computed by the network itself in evaluation mode and not by a copy, which gives other values"
    assert [
        message.startswith(f"the {what} {said}")
        for what, message in zip(("base (Base)", "energy (Energy)"), caplog.messages)
    ] == [True] * 2
    assert len(caplog.messages) == 2 and frozen.exact
    with pytest.raises(InputError, match="a dtype needs networks of which a copy is the same function"):
        posterior.frozen(torch.bfloat16)


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_look_alike_is_trained_as_it_is_written(name):
    """`Paired` joins neighbours in training as well."""
    x, results = torch.randn(4, 2, 8, 8, dtype=torch.float64), []
    for plain in (False, True):
        layers, y = look_alike(name), x.clone().requires_grad_()
        if type(layers) is nn.Sequential:
            layers.__class__ = Paired
        with fast.plain(plain):
            out = seeded(layers, y)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), y)))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


class Drawing(nn.Module):
    """An energy that goes on drawing in evaluation mode, or not."""

    def __init__(self, noise):
        super().__init__()
        self.noise, self.linear = noise, nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(self.noise(x)).squeeze(1)


@pytest.mark.parametrize("noise", [lambda x: F.dropout(x, 0.5), lambda x: x + torch.randn_like(x), nn.Dropout()])
def test_networks_that_are_random_in_evaluation_mode_are_told_of_once(noise, caplog):
    posterior, random = LatentPosterior(GaussianPrior(3), nn.Linear(3, 3), Drawing(noise)), torch.get_rng_state()
    for _ in range(2):
        posterior.frozen()
    said = [message for message in caplog.messages if "other values at each call in evaluation mode" in message]
    assert len(said) == (0 if isinstance(noise, nn.Dropout) else 1) and torch.equal(random, torch.get_rng_state())
    assert all(message.startswith("the energy (Drawing) gives") for message in said)


def test_what_runs_as_it_is_written_is_said_once(caplog):
    network = look_alike("pieces: q[0]")
    posterior = LatentPosterior(GaussianPrior(3), Base(network).double(), lambda x: x.flatten(1).sum(1))
    for _ in range(2):
        posterior.frozen()
    (said,) = caplog.messages
    assert said.startswith("the base (Base) runs as it is written and not in its faster form, which gives other values")
    posterior.base = Base(look_alike("view of an output")).double()
    posterior.frozen()
    assert "(Base) runs as it is written and not in its faster form, which fails (view size" in caplog.messages[1]
    LatentPosterior(GaussianPrior(3), Base(look_alike("spectral norm, norm")).double(), lambda x: x).frozen()
    assert len(caplog.messages) == 2  # a stock network is as fast as can be


def test_what_cannot_be_copied_is_named():
    network = Base(conv())
    network.lock = threading.Lock()
    with pytest.raises(InputError, match=r"Base: cannot be copied \(cannot pickle '_thread.lock' object\): keep that"):
        LatentPosterior(GaussianPrior(3), network, lambda x: x).frozen()


def test_a_difference_in_gradients_alone_is_found():
    """Of equal values: a straight-through estimator, in the hands of a Sequential's owner."""

    def use(q, x):
        kept = q[0](x)
        return q(x) + (kept - kept.detach()).mean((1, 2, 3), keepdim=True)

    network = Base(Pieces(use)).double().eval()
    posterior, u = LatentPosterior(GaussianPrior(3), network, lambda x: x.flatten(1).sum(1)), torch.ones(2, 3).double()
    torch.testing.assert_close(posterior.frozen()(u), posterior(u))


def test_a_difference_in_the_gradients_of_half_of_the_rows_is_found():
    def use(q, x):
        kept = q[0](x)
        return q(x) + (x.mean((1, 2, 3), keepdim=True) < -0.08) * (kept - kept.detach()).mean((1, 2, 3), keepdim=True)

    torch.manual_seed(3)
    network, u = Base(Pieces(use)).double().eval(), torch.randn(8, 3).double()
    posterior = LatentPosterior(GaussianPrior(3), network, lambda x: x.flatten(1).sum(1))
    torch.testing.assert_close(posterior.frozen()(u), posterior(u))


def test_rounding_that_moves_one_row_over_a_kink_is_no_difference():
    values, slopes = torch.ones(4, 1), torch.ones(4, 9)
    moved = slopes + torch.tensor([[0.01], [0], [0], [0]])
    assert difference((values, moved), (values, slopes)) == 0
    assert difference((values, slopes + torch.tensor([[0.0], [0], [0.3], [0]])), (values, slopes)) > 0.05
    assert difference((values, moved + 0.01), (values, slopes)) > 0.005
    assert difference((values + 0.01, slopes), (values, slopes)) > 0.005
    for odd in (torch.nan, torch.inf):
        assert difference((values * odd, slopes), (values, slopes)) == torch.inf
        assert difference((values * odd, slopes), (values * odd, slopes)) == 0


class Floored(nn.Module):
    """An energy on its floor within some radius, of layers that are used one by one."""

    def __init__(self, radius: float):
        super().__init__()
        self.radius = radius
        self.layers = Pieces(lambda q, x: q(x).mean((1, 2, 3)) + q[0](x).mean((1, 2, 3)))

    def forward(self, x):
        images = x.repeat(1, 43)[:, :128].view(-1, 2, 8, 8)
        return (self.layers(images) + (x.norm(dim=1) - self.radius)).clamp(min=0)


@pytest.mark.parametrize("radius, said", [(4.0, "which gives other values"), (1e4, "as gradients are zero")])
def test_an_energy_on_its_floor_is_compared_further_out_or_runs_as_it_is_written(radius, said, caplog):
    torch.manual_seed(0)
    energy = Floored(radius).double()
    nn.init.uniform_(energy.layers.q[1].running_mean, 1, 2)
    energy.eval()
    posterior = LatentPosterior(GaussianPrior(3), nn.Identity(), energy)
    near = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert posterior.energies(near[:4]).unique().tolist() == [0]
    frozen, u = posterior.frozen(), 10 * radius * near
    torch.testing.assert_close(frozen(u), posterior(u))
    assert len(caplog.messages) == 1 and said in caplog.messages[0]


# Losses that a rewritten second derivative must not mistake for one of fixed weights


class Loss(nn.Module):
    """An energy of images by a function of two layers' parameters and the images (N, 2, 8, 8)."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.a, self.b = conv(), conv(bias=False)
        self.small = nn.Linear(2, 36)
        self.function = function

    def forward(self, x):
        return self.function(self, x).flatten(1).square().mean(1)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def dynamic(m: Loss, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """A kernel for each image, as one grouped convolution."""
    n = len(x)
    kernels = m.small(pooled(x.square())).view(n * 2, 2, 3, 3)
    return F.conv2d(x.reshape(1, 2 * n, 8, 8), kernels, bias, padding=1, groups=n).view(n, 2, 8, 8)


def modulated(m: Loss, x: Tensor) -> Tensor:
    """Weights scaled by the image and normalised again, as in StyleGAN2."""
    n = len(x)
    weight = m.a.weight[None] * (1 + pooled(x))[:, None, :, None, None]
    weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + 1e-4).sqrt()
    return F.conv2d(x.reshape(1, 2 * n, 8, 8), weight.reshape(2 * n, 2, 3, 3), padding=1, groups=n).view(n, 2, 8, 8)


def experts(m: Loss, x: Tensor) -> Tensor:
    """A mixture of two kernels by a softmax of the image (CondConv)."""
    n, shares = len(x), pooled(x).softmax(1)
    weight = torch.einsum("ne,eoikl->noikl", shares, torch.stack([m.a.weight, m.b.weight]))
    return F.conv2d(x.reshape(1, 2 * n, 8, 8), weight.reshape(2 * n, 2, 3, 3), padding=1, groups=n).view(n, 2, 8, 8)


def correlation(m: Loss, x: Tensor) -> Tensor:
    """An image's own patch as the kernel."""
    n = len(x)
    return F.conv2d(x.reshape(1, 2 * n, 8, 8), m.a(x)[:, :, 2:5, 2:5].reshape(n, 2, 3, 3), groups=n).view(n, 1, 6, 6)


def per_row(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([function(row[None]) for row in x])


def inner_gradient(m: Loss, x: Tensor, by: str) -> Tensor:
    """The squared gradient of an inner loss by a weight or a bias, row by row."""

    def of_row(row):
        inner = m.b(F.relu(m.a(row))).square().mean()
        (gradient,) = torch.autograd.grad(inner, m.get_parameter(by), create_graph=True)
        return gradient.square().sum().view(1, 1)

    return per_row(of_row, x)


def adapted(m: Loss, x: Tensor) -> Tensor:
    """A step of gradient descent on the weights, by the image, before they are used (MAML)."""

    def of_row(row):
        (gradient,) = torch.autograd.grad(F.relu(m.a(row)).square().mean(), m.a.weight, create_graph=True)
        return F.conv2d(row, m.a.weight - 0.5 * gradient, m.a.bias, padding=1)

    return per_row(of_row, x)


def inner_slope(m: Loss, x: Tensor) -> Tensor:
    """A score: the gradient of an inner energy by the images."""
    return torch.autograd.grad(m.b(F.leaky_relu(m.a(x), 0.3)).square().sum(), x, create_graph=True)[0]


def tangent(m: Loss, x: Tensor) -> Tensor:
    return torch.func.jvp(lambda y: F.relu(m.a(y)), (x,), (x.cos(),))[1]


def forward_mode(m: Loss, x: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x.cos())
        return torch.autograd.forward_ad.unpack_dual(F.relu(m.a(dual))).tangent


def checkpointed(m: Loss, x: Tensor) -> Tensor:
    return m.b(torch.utils.checkpoint.checkpoint(lambda y: F.relu(m.a(y)), x, use_reentrant=False))


def half_precision(m: Loss, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):  # leaves float64 as it is
        return m.b(F.relu(m.a(x)))


def residual(m: Loss, x: Tensor) -> Tensor:
    """What went into the ReLU is overwritten, as torch's own allows."""
    h = m.a(x)
    h += m.b(F.relu(h))
    return h


def overwritten(m: Loss, x: Tensor) -> Tensor:
    """What came out of leaky ReLUs and convolutions is overwritten, as torch's own allow."""
    h = F.leaky_relu(m.a(x).mul_(0.5), 0.0)
    h += 1
    y = F.leaky_relu(m.b(h), 0.2)
    y *= 2
    return y


LOSSES: dict[str, Callable[[Loss, Tensor], Tensor]] = {
    "dynamic kernels": dynamic,
    "dynamic kernels under a ReLU": lambda m, x: m.b(F.relu(dynamic(m, x))),
    "dynamic bias": lambda m, x: per_row(lambda row: F.conv2d(row, m.a.weight, pooled(row)[0]), x),
    "dynamic kernels and bias": lambda m, x: dynamic(m, x, pooled(x.square()).flatten()),
    "modulated weights": modulated,
    "mixed kernels": experts,
    "correlation with a patch": correlation,
    "correlation with itself": lambda m, x: per_row(lambda row: F.conv2d(row, row), x),
    "correlation with itself, the leaf": lambda m, x: F.conv2d(x, x).diagonal(dim1=0, dim2=1)[..., None].movedim(2, 0),
    "weights by a norm of the image": lambda m, x: per_row(lambda row: F.conv2d(row, m.a.weight * row.norm()), x),
    "weights by an earlier layer": lambda m, x: per_row(lambda row: F.conv2d(row, m.a.weight + m.b(row).mean()), x),
    "weights by the image, expanded": lambda m, x: per_row(
        lambda row: F.conv2d(row, (m.a.weight * row.square().mean()).expand(2, 2, 3, 3), m.a.bias, (2,), [1]), x
    ),
    "weights with a detached part": lambda m, x: per_row(
        lambda row: F.conv2d(row, m.a.weight * row.detach().norm() * row.max()), x
    ),
    "image as a kernel of a parameter": lambda m, x: per_row(lambda row: F.conv2d(m.a.weight, row[:, :, :3, :3]), x),
    "gradient by a weight": lambda m, x: inner_gradient(m, x, "a.weight"),
    "gradient by a later weight": lambda m, x: inner_gradient(m, x, "b.weight"),
    "gradient by a bias": lambda m, x: inner_gradient(m, x, "a.bias"),
    "weights after a step of descent": adapted,
    "gradient by the images": inner_slope,
    "relu by name": lambda m, x: F.relu(input=m.a(x)),
    "leaky relu by name": lambda m, x: F.leaky_relu(input=m.a(x), negative_slope=0.2),
    "conv2d by name": lambda m, x: F.relu(F.conv2d(input=x, weight=m.a.weight, bias=m.a.bias, stride=2)),
    "conv2d, all by place": lambda m, x: F.relu(F.conv2d(x, m.a.weight, m.a.bias, 1, 1, 1, 1), False),
    "stride and padding of one number": lambda m, x: F.relu(F.conv2d(x, m.a.weight, None, [2], (1,))),
    "vmap": lambda m, x: torch.func.vmap(lambda row: F.relu(m.a(row)))(x),
    "vmap of dynamic kernels": lambda m, x: torch.func.vmap(
        lambda row, w: F.relu(F.conv2d(row[None], w.view(2, 2, 3, 3)))[0]
    )(x, m.small(pooled(x))),
    "jvp": tangent,
    "vjp": lambda m, x: torch.func.vjp(lambda y: F.relu(m.a(y)), x)[1](x.cos())[0],
    "func.grad": lambda m, x: torch.func.grad(lambda y: F.relu(m.a(y)).square().sum())(x),
    "forward-mode derivative": forward_mode,
    "checkpoint": checkpointed,
    "residual in place": residual,
    "results overwritten": overwritten,
    "autocast of float64": half_precision,
    "complex": lambda m, x: F.conv2d(torch.complex(x, x.sin()), m.a.weight * (1 + 1j)).abs(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_with_weights_of_its_own_has_autograd_s_derivatives(name):
    torch.manual_seed(0)
    energy, x = Loss(LOSSES[name]).double(), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    results = []
    for plain in (False, True):
        with fast.plain(plain):
            gradient = input_gradient(energy, x)
        gradients = torch.autograd.grad(gradient.square().sum(), [*energy.parameters()], allow_unused=True)
        results.append([gradient.detach(), *(torch.zeros(()) if g is None else g for g in gradients)])
    assert results[1][0].norm() > 0 and any(g.norm() > 0 for g in results[1][1:]) or "itself" in name
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
