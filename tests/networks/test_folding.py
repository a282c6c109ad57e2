"""Folding of the networks of images; those of rows have test_flows.py and test_mlp.py."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from gebm import networks
from gebm.latent import GaussianPrior, LatentPosterior
from gebm.model import OF_ROWS
from gebm.networks.folding import folded

BASES, ENERGIES = ({k: v for k, v in r.items() if k not in OF_ROWS} for r in (networks.BASES, networks.ENERGIES))
SHAPE = (3, 16, 16)
FAMILIES = [(part, name) for part, registry in (("base", BASES), ("energy", ENERGIES)) for name in registry]


def batch(part: str, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (8, 5) if part == "base" else (8, *SHAPE)
    return torch.randn(shape, generator=generator, dtype=dtype)


def trained(part: str, name: str, dtype: torch.dtype = torch.float64, width: float = 0.1) -> nn.Module:
    """A network whose running statistics, affine norms and power iterations are far from their first values."""
    torch.manual_seed(0)
    network = BASES[name](SHAPE, latent_dim=5, width=width) if part == "base" else ENERGIES[name](SHAPE, width=width)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
        network.to(dtype)
        for i in range(5):
            network(2 * batch(part, i, dtype) + 0.5)
    return network


def left_to_fold(network: nn.Module) -> list[nn.Module]:
    """Parametrised layers, and norms, doublings and poolings beside a layer they could be merged into."""
    left = [m for m in network.modules() if parametrize.is_parametrized(m)]
    for sequence in (m for m in network.modules() if isinstance(m, nn.Sequential)):
        rest = [m for m in sequence if not isinstance(m, nn.Unflatten | nn.Identity)]
        for before, after in zip(rest, rest[1:]):
            if isinstance(after, nn.BatchNorm2d) and isinstance(before, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                left.append(after)
            if isinstance(before, nn.Upsample) and isinstance(after, nn.Conv2d):
                left.append(before)
            if isinstance(before, nn.Conv2d) and isinstance(after, nn.AvgPool2d):
                left.append(after)
    return left


def value_and_gradient(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs, and the gradient by the inputs of a fixed combination of each row's outputs."""
    x = x.clone().requires_grad_()
    value = network(x).view(len(x), -1)
    weights = torch.linspace(1, 2, value.shape[1], dtype=x.dtype)
    return value.detach(), torch.autograd.grad((weights * value).sum(), x)[0]


def row_errors(result: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (result - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)


@pytest.mark.parametrize("width", [0.1, 0.25, 1.0])
@pytest.mark.parametrize("part, name", FAMILIES)
def test_same_function_and_nothing_left(part, name, width):
    network = trained(part, name, width=width)
    assert left_to_fold(network) or name == "dcgan" and part == "energy"
    fast = folded(network)
    assert not left_to_fold(fast)
    assert not fast.training and not any(p.requires_grad for p in fast.parameters())
    network.eval()
    x = batch(part, 99)
    expected = value_and_gradient(network, x)
    for error in map(row_errors, value_and_gradient(fast, x), expected):
        assert error.max() < 1e-10
    # Of the rows the median: where rounding moves a unit over the kink of its ReLU, that row's gradient jumps.
    for error in map(row_errors, value_and_gradient(folded(network.float()), x.float()), expected):
        assert error.median() < 1e-5


@pytest.mark.parametrize("part, name", FAMILIES)
def test_original_is_left_alone(part, name):
    network = trained(part, name)
    before = copy.deepcopy(network.state_dict())
    types = [type(m) for m in network.modules()]
    fast = folded(network)
    for parameter in fast.parameters():
        parameter.fill_(7.0)
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert [type(m) for m in network.modules()] == types and all(m.training for m in network.modules())
    network(batch(part, 98)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    moved = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert moved or name == "dcgan" and part == "energy"  # statistics and power iterations go on


def test_norms_that_cannot_be_merged_stay():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3),
    ).double()  # fmt: skip
    for _ in range(3):
        network(torch.randn(8, 2, 4, 4, dtype=torch.float64) + 1)
    x = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    fast = folded(network)
    torch.testing.assert_close(fast(x), network.eval()(x))
    assert [type(m).__name__ for m in fast][3:6] == ["Identity", "Conv2d", "BatchNorm2d"]


@pytest.mark.parametrize("size, padding", [(1, 0), (3, 1), (3, 0), (3, 2), (4, 1), ((3, 1), (1, 0))])
@pytest.mark.parametrize("bias", [True, False])
def test_resampling_is_folded_to_the_border(size, padding, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, size, 1, padding, bias=bias).double()
    x = torch.randn(4, 2, 5, 6, dtype=torch.float64)  # odd and even; pooling drops an odd last row
    for network, kinds in (
        (nn.Sequential(nn.Upsample(scale_factor=2), conv), [nn.Identity, nn.ConvTranspose2d]),
        (nn.Sequential(conv, nn.AvgPool2d(2)), [nn.Conv2d, nn.Identity]),
    ):
        state = torch.get_rng_state()
        fast = folded(network)
        assert torch.equal(state, torch.get_rng_state())
        assert [type(layer) for layer in fast] == kinds
        torch.testing.assert_close(value_and_gradient(fast, x), value_and_gradient(network, x), rtol=0, atol=1e-12)


def conv2d(*args, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(2, 2, *args, **kwargs)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (nn.Upsample(scale_factor=2, mode="bilinear"), conv2d(3, 1, 1)),
        lambda: (nn.Upsample(scale_factor=3), conv2d(3, 1, 1)),
        lambda: (nn.Upsample(size=16), conv2d(3, 1, 1)),
        lambda: (nn.Upsample(scale_factor=2), conv2d(3, 2, 1)),
        lambda: (nn.Upsample(scale_factor=2), conv2d(3, padding="same")),
        lambda: (nn.Upsample(scale_factor=2), conv2d(3, 1, 1, padding_mode="reflect")),
        lambda: (nn.Upsample(scale_factor=2), conv2d(3, 1, 2, dilation=2)),
        lambda: (nn.Upsample(scale_factor=2), conv2d(3, 1, 1, groups=2)),
        lambda: (nn.Upsample(scale_factor=2), conv2d(1, 1, 1)),
        lambda: (nn.Upsample(scale_factor=2), nn.utils.spectral_norm(conv2d(3, 1, 1))),
        lambda: (conv2d(3, 1, 1), nn.AvgPool2d(3)),
        lambda: (conv2d(3, 1, 1), nn.AvgPool2d(2, 1)),
        lambda: (conv2d(3, 1, 1), nn.AvgPool2d(2, padding=1)),
        lambda: (conv2d(3, 1, 1), nn.AvgPool2d(2, ceil_mode=True)),
        lambda: (conv2d(3, 1, 1), nn.MaxPool2d(2)),
        lambda: (conv2d(3, 1, 1), nn.ReLU(), nn.AvgPool2d(2)),
    ],
)
def test_other_resampling_stays(layers):
    torch.manual_seed(0)
    network = nn.Sequential(*layers()).double().eval()
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    fast = folded(network)
    assert [type(layer) for layer in fast] == [type(layer) for layer in network]
    torch.testing.assert_close(value_and_gradient(fast, x), value_and_gradient(network, x))


@pytest.mark.parametrize("name", BASES)
def test_frozen_posterior(name):
    base, energy = trained("base", name, torch.float32), trained("energy", name, torch.float32)
    target = LatentPosterior(GaussianPrior(5), copy.deepcopy(base).eval(), copy.deepcopy(energy).eval(), beta=2.0)
    u = batch("base", 3, torch.float32)
    value, gradient = target(u)
    exact = LatentPosterior(GaussianPrior(5), base, energy, beta=2.0).frozen()
    for result, expected in zip(exact(u), (value, gradient)):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    rounded = exact.frozen(torch.bfloat16)
    assert exact.exact and not rounded.exact
    assert torch.equal(rounded.decode(u), exact.decode(u)) and torch.equal(rounded.energies(u), exact.energies(u))
    low_value, low_gradient = rounded(u)
    assert low_value.dtype == low_gradient.dtype == rounded.decode(u).dtype == torch.float32
    assert len(low_value.unique()) == len(u)
    scale = 2.0 * exact.energies(u).abs().max()
    assert (low_value - value).abs().max() < 0.05 * scale + 0.05
    assert torch.cosine_similarity(low_gradient.flatten(), gradient.flatten(), dim=0) > 0.98
    # The originals still train, and what is frozen does not follow them.
    assert base.training and all(p.requires_grad for p in base.parameters())


def test_frozen_bfloat16_keeps_positions_precise():
    base, energy = trained("base", "dcgan", torch.float32), trained("energy", "dcgan", torch.float32)
    rounded = LatentPosterior(GaussianPrior(5), base, energy).frozen(torch.bfloat16)
    for target in (rounded, rounded.at(3.0)):
        start = target.start(4, torch.Generator().manual_seed(0))
        assert start.dtype == target(start)[0].dtype == target.energies(start).dtype == torch.float32


class Residual(nn.Sequential):
    """A block that is an `nn.Sequential` by name, with a skip connection around all layers but the first."""

    def forward(self, x):
        y = self[0](x)
        return self[3](self[2](self[1](y))) + y


@pytest.mark.parametrize("kind", ["own forward", "forward hook"])
def test_what_is_no_plain_chain_of_layers_keeps_its_function(kind):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 3, 3, padding=1), nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 3, padding=1)
    block = Residual(*layers) if kind == "own forward" else nn.Sequential(*layers)
    if kind == "forward hook":
        for layer in layers:
            layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    block, x = block.double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(folded(block)(x), block(x))
