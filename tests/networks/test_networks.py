"""The networks of images; those of rows have test_flows.py and test_mlp.py."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from gebm import networks
from gebm.errors import InputError
from gebm.model import OF_ROWS
from gebm.networks.common import ENERGY_FLOOR

BASES, ENERGIES = ({k: v for k, v in r.items() if k not in OF_ROWS} for r in (networks.BASES, networks.ENERGIES))
SHAPES = [(3, 32, 32), (1, 8, 8), (1, 16, 16), (1, 28, 28), (3, 64, 64)]
LATENT = 7


def make(registry: dict, name: str, shape: tuple, width: float = 0.1, seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return registry[name](shape, width=width, **options)


def images(n: int, shape: tuple, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def latents(n: int, dim: int = LATENT) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(1))


def assert_trains(network: nn.Module, loss: torch.Tensor) -> None:
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if parameter.ndim > 1:
            assert parameter.grad.abs().max() > 0, name


def assert_copies(network: nn.Module, other: nn.Module, x: torch.Tensor, tmp_path) -> None:
    """A deep copy and a saved and reloaded network compute the same."""
    with torch.no_grad():
        network(x)  # statistics and power iterations move
        expected = network.eval()(x)
        assert torch.equal(copy.deepcopy(network)(x), expected)
        torch.save(network.state_dict(), tmp_path / "weights.pt")
        assert not torch.equal(other.eval()(x), expected)
        other.load_state_dict(torch.load(tmp_path / "weights.pt"))
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BASES)
def test_base(name, shape, tmp_path):
    base = make(BASES, name, shape, latent_dim=LATENT)
    z = latents(4)
    x = base(z)
    assert x.shape == (4, *shape) and x.dtype == torch.float32
    assert x.abs().max() <= 1 and x.std() > 1e-3
    assert_trains(base, (x * images(4, shape)).sum())
    assert_copies(base, make(BASES, name, shape, latent_dim=LATENT, seed=5), z, tmp_path)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ENERGIES)
def test_energy(name, shape, tmp_path):
    energy = make(ENERGIES, name, shape)
    x = images(4, shape)
    e = energy(x)
    assert e.shape == (4,) and e.dtype == torch.float32 and e.std() > 0
    # An energy is a function of one image, in training too: nothing is shared within a batch.
    frozen = copy.deepcopy(energy)
    torch.testing.assert_close(frozen(torch.cat([x[:1], 0.1 * x[1:]]))[0], copy.deepcopy(energy)(x)[0])
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in energy.modules())
    assert_trains(energy, energy(x).sum())
    assert_copies(energy, make(ENERGIES, name, shape, seed=5), x, tmp_path)


@pytest.mark.parametrize("name", ENERGIES)
def test_floor(name):
    floored, free = (make(ENERGIES, name, (1, 8, 8), trunc=trunc) for trunc in (True, False))
    x = images(3, (1, 8, 8)).requires_grad_()
    torch.testing.assert_close(floored.eval()(x), free.eval()(x))
    for energy in (floored, free):
        with torch.no_grad():
            energy.head.bias.fill_(-100.0)
    e = floored(x)
    assert (e == -10).all() and ENERGY_FLOOR == -10
    assert (torch.autograd.grad(e.sum(), x)[0] == 0).all()
    assert (free(x) < -50).all()


@pytest.mark.parametrize("registry, name", [(r, n) for r in (BASES, ENERGIES) for n in r])
def test_width_multiplies_channels(registry, name):
    def hidden(width):
        modules = make(registry, name, (3, 16, 16), width).modules()
        return [max(m.weight.shape[:2]) for m in modules if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]

    assert hidden(0.5) == [n // 2 for n in hidden(1.0)]
    assert min(hidden(1e-6)) >= 1


@pytest.mark.parametrize("registry, name", [(r, n) for r in (BASES, ENERGIES) for n in r])
@pytest.mark.parametrize("size", [4, 33, 48, 56, 128])
def test_other_sizes_are_refused(registry, name, size):
    with pytest.raises(InputError, match=f"images of {size} x {size}: .* squares of 8, 16, 28, 32 or 64"):
        make(registry, name, (3, size, size))


# The layers of paper.md section 4, in the order they run (a residual block: its path, then its bypass).


def layers(module: nn.Module) -> list[str]:
    found = []
    for child in module.children():
        kind = parametrize.type_before_parametrizations(child)
        sn = " SN" if parametrize.is_parametrized(child) else ""
        if kind in (nn.Conv2d, nn.ConvTranspose2d):
            symbol = "conv" if kind is nn.Conv2d else "convT"
            stride = f" s{child.stride[0]}" if child.stride[0] > 1 else ""
            found.append(f"{symbol} {child.in_channels}-{child.out_channels} k{child.kernel_size[0]}{stride}{sn}")
        elif kind is nn.Linear:
            found.append(f"linear {child.in_features}-{child.out_features}{sn}")
        elif kind is nn.BatchNorm2d:
            found.append(f"BN {child.num_features}")
        elif kind is nn.LeakyReLU:
            found.append(f"leaky {child.negative_slope}")
        elif next(child.children(), None) is not None:
            found += layers(child)
        elif kind is not nn.Unflatten:
            short = {nn.Upsample: "up", nn.AvgPool2d: "pool", nn.AdaptiveAvgPool2d: "mean"}
            found.append(short.get(kind, kind.__name__))
    return found


UP = ["BN 128", "ReLU", "up", "conv 128-128 k3", "BN 128", "ReLU", "conv 128-128 k3", "up"]
PLAIN = ["ReLU", "conv 128-128 k3 SN", "ReLU", "conv 128-128 k3 SN"]
PUBLISHED = {
    ("base", "sngan"): [
        *("linear 100-8192", "BN 512", "ReLU", "convT 512-256 k4 s2", "BN 256", "ReLU", "convT 256-128 k4 s2"),
        *("BN 128", "ReLU", "convT 128-64 k4 s2", "BN 64", "ReLU", "convT 64-3 k3", "Tanh"),
    ],
    ("base", "resnet-sn"): ["linear 100-2048", *UP * 3, "BN 128", "ReLU", "conv 128-3 k3", "Tanh"],
    ("base", "dcgan"): [
        *("linear 100-4096", "BN 256", "ReLU", "convT 256-128 k4 s2", "BN 128", "ReLU", "convT 128-64 k4 s2"),
        *("BN 64", "ReLU", "convT 64-3 k4 s2", "Tanh"),
    ],
    ("energy", "sngan"): [
        *("conv 3-64 k3 SN", "leaky 0.1", "conv 64-128 k4 s2 SN", "leaky 0.1", "conv 128-128 k3 SN", "leaky 0.1"),
        *("conv 128-256 k4 s2 SN", "leaky 0.1", "conv 256-256 k3 SN", "leaky 0.1"),
        *("conv 256-512 k4 s2 SN", "leaky 0.1", "conv 512-512 k3 SN", "leaky 0.1", "linear 8192-1"),
    ],
    ("energy", "resnet-sn"): [
        *("conv 3-128 k3 SN", "ReLU", "conv 128-128 k3 SN", "pool", "pool", "conv 3-128 k1 SN"),
        *(*PLAIN, "pool", "pool", "conv 128-128 k1 SN", *PLAIN, "Identity", *PLAIN, "Identity"),
        *("ReLU", "mean", "linear 128-1 SN"),
    ],
    ("energy", "dcgan"): [
        *("conv 3-64 k4 s2", "leaky 0.2", "conv 64-128 k4 s2", "leaky 0.2", "conv 128-256 k4 s2", "leaky 0.2"),
        "linear 4096-1",
    ],
}


@pytest.mark.parametrize("part, name", PUBLISHED)
def test_published_layers(part, name):
    network = make({"base": BASES, "energy": ENERGIES}[part], name, (3, 32, 32), 1.0)
    assert layers(network) == PUBLISHED[part, name]


def test_every_network_is_listed():
    assert set(PUBLISHED) == {("base", name) for name in BASES} | {("energy", name) for name in ENERGIES}


def test_resnet_energy_by_hand():
    """The residual sums, the resolutions and the final mean, against the functions themselves."""
    energy = make(ENERGIES, "resnet-sn", (3, 32, 32), 0.1).eval()
    x = images(2, (3, 32, 32))

    def conv(h, layer):
        return F.conv2d(h, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)

    down1, down2, plain1, plain2 = energy.features[:4]
    h = F.avg_pool2d(conv(F.relu(conv(x, down1.path[0])), down1.path[2]), 2) + conv(F.avg_pool2d(x, 2), down1.bypass[1])
    for block, down in ((down2, True), (plain1, False), (plain2, False)):
        path = conv(F.relu(conv(F.relu(h), block.path[1])), block.path[3])
        h = F.avg_pool2d(path, 2) + F.avg_pool2d(conv(h, block.bypass[1]), 2) if down else path + h
    assert h.shape[2:] == (8, 8)
    torch.testing.assert_close(energy(x), energy.head(F.relu(h).mean((2, 3))).squeeze(1))


@pytest.mark.parametrize("name", ["sngan", "resnet-sn"])
def test_spectral_norms_become_one(name):
    energy = make(ENERGIES, name, (3, 16, 16), 0.2)
    normalised = [m for m in energy.modules() if parametrize.is_parametrized(m)]
    with torch.no_grad():
        for _ in range(300):
            for layer in normalised:
                _ = layer.weight  # reading it in training mode is one power iteration
        for layer in normalised:
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2) == pytest.approx(1, abs=0.02)
