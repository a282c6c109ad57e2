"""Gradients of gradients against autograd's own."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gebm import fast, networks, second_order
from gebm.model import OF_ROWS
from gebm.networks.common import weights_once
from gebm.penalties import gradient_penalty
from gebm.second_order import input_gradient

SHAPE = (3, 16, 16)
ENERGIES = [name for name in networks.ENERGIES if name not in OF_ROWS]


class Functional(nn.Module):
    """Convolutions and activations called as functions, with words for arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3) / 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.leaky_relu(F.conv2d(x, self.weight, stride=2, padding=(1, 0)), negative_slope=0.3)
        return F.relu(F.conv2d(h, self.weight[:, :1].expand(4, 4, 3, 3), padding="same")).square().sum((1, 2, 3))


def sequential(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(1), nn.Flatten(0))


NETWORKS = {
    "smooth": lambda: sequential(nn.Conv2d(3, 4, 3, 2), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.Tanh()),
    "smooth beside kinks": lambda: sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Softplus()),
    "strided, dilated, groups": lambda: sequential(
        nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 4, 3, dilation=2, groups=2), nn.ReLU()
    ),
    "no bias": lambda: sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 3, bias=False)),
    "in place": lambda: sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU()),
    "reflected border": lambda: sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
    "norms": lambda: sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    ),
    "functions": Functional,
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(1), nn.Flatten(0)),
}  # fmt: skip


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = networks.ENERGIES[name](SHAPE, width=0.1) if name in ENERGIES else NETWORKS[name]()
    network(torch.randn(4, *SHAPE))
    network.double()
    for _ in range(3):
        network(torch.randn(4, *SHAPE, dtype=torch.float64))
    return network


def penalty_and_gradients(network: nn.Module, plain: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    network = copy.deepcopy(network)
    real, fake = torch.randn(2, 5, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with fast.plain(plain), weights_once(network):
        penalty = gradient_penalty(network, real, fake, torch.Generator().manual_seed(2))
    penalty.backward()
    return penalty.detach(), [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]


@pytest.mark.parametrize("name", [*ENERGIES, *NETWORKS])
def test_penalties_have_autograd_s_gradients(name):
    network = make(name)
    (value, gradients), (expected, theirs) = (penalty_and_gradients(network, plain) for plain in (False, True))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert any(g.norm() > 0 for g in theirs)
    torch.testing.assert_close(gradients, theirs, rtol=1e-9, atol=1e-12 * max(float(g.norm()) for g in theirs))


def test_frozen_weights_get_no_gradient():
    network = NETWORKS["no bias"]()
    network(torch.randn(1, *SHAPE))
    network[0].weight.requires_grad_(False)
    input_gradient(network, torch.randn(2, *SHAPE)).square().sum().backward()
    assert network[0].weight.grad is None and network[2].weight.grad.norm() > 0


def test_no_pass_carries_zeros_and_no_weight_gradient_is_made_twice(monkeypatch):
    """Of a piecewise linear network: a weight gradient each, in the second pass, and none of the first."""
    calls = []
    own = second_order._backward
    monkeypatch.setattr(second_order, "_backward", lambda *args: calls.append(args[-1]) or own(*args))
    network = NETWORKS["strided, dilated, groups"]()
    network(torch.randn(1, *SHAPE))
    gradient = input_gradient(network, torch.randn(2, *SHAPE))
    assert calls == [0, 0]
    calls.clear()
    gradient.square().sum().backward()
    assert sorted(calls) == [1, 1]  # input gradients among them would go back along the forward pass


def test_plain_is_autograd(monkeypatch):
    monkeypatch.setattr(second_order, "_CheapDoubleBackward", None)
    network = NETWORKS["no bias"]()
    network(torch.randn(1, *SHAPE))
    with fast.plain():
        input_gradient(network, torch.randn(2, *SHAPE))


def test_the_switch_is_put_back():
    with pytest.raises(ZeroDivisionError), fast.plain():
        assert not fast.enabled()
        with fast.plain(False):
            assert not fast.enabled()
        raise ZeroDivisionError
    assert fast.enabled()
