"""Pairs of resampling and convolution as one, in training; folding has its own tests of the same weights."""

import copy

import pytest
import torch
from torch import nn

from gebm import fast, networks
from gebm.model import OF_ROWS
from gebm.networks.common import spectral_norm, weights_once
from gebm.networks.resampling import Paired

SHAPE = (3, 16, 16)
FAMILIES = [
    (part, name)
    for part, registry in (("base", networks.BASES), ("energy", networks.ENERGIES))
    for name in registry
    if name not in OF_ROWS
]


def output_and_gradients(network: nn.Module, x: torch.Tensor, plain: bool) -> list[torch.Tensor]:
    network, x = copy.deepcopy(network), x.clone().requires_grad_()
    with fast.plain(plain), weights_once(network):
        out = network(x)
    (out * torch.linspace(1, 2, out[0].numel(), dtype=x.dtype).view_as(out[0])).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in network.parameters())]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("part, name", FAMILIES)
def test_training_forms_agree(part, name, dtype, tolerance):
    torch.manual_seed(0)
    make = networks.BASES[name] if part == "base" else networks.ENERGIES[name]
    network = make(SHAPE, **({"latent_dim": 5} if part == "base" else {}), width=0.1).to(dtype)
    x = torch.randn(6, *((5,) if part == "base" else SHAPE), dtype=dtype)
    for _ in range(3):
        network(x)
    ours, expected = (output_and_gradients(network, x, plain) for plain in (False, True))
    for a, b in zip(ours, expected, strict=True):
        scale = b.norm() if b is expected[0] else max(g.norm() for g in expected[1:])  # a bias before a norm gets zero
        assert (a - b).norm() <= tolerance * scale


def test_the_pair_is_one_convolution(monkeypatch):
    network = Paired(
        nn.Upsample(scale_factor=2), nn.Conv2d(2, 3, 3, 1, 1), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.AvgPool2d(2)
    )
    assert set(network.state_dict()) == {"1.weight", "1.bias", "3.weight", "3.bias"}
    monkeypatch.setattr(nn.Upsample, "forward", None)
    monkeypatch.setattr(nn.AvgPool2d, "forward", None)
    assert network(torch.randn(1, 2, 8, 8)).shape == (1, 2, 7, 7)
    with fast.plain(), pytest.raises(TypeError):
        network(torch.randn(1, 2, 8, 8))


def test_weights_are_computed_once_and_in_full_precision(monkeypatch):
    network = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), spectral_norm(nn.Conv2d(4, 4, 3)))
    kind, counts = type(network[0].parametrizations.weight[0]), []
    own = kind.forward

    def counted(self, weight):
        out = own(self, weight)
        counts.append((out.dtype, torch.is_autocast_enabled("cpu")))
        return out

    monkeypatch.setattr(kind, "forward", counted)
    x = torch.randn(1, *SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        with weights_once(network):
            first = network(x)
            assert network(x).dtype == torch.bfloat16 and torch.equal(first, network(x))
        assert torch.is_autocast_enabled("cpu")
    assert counts == [(torch.float32, False)] * 2  # a power iteration a layer, for all passes
