import math

import pytest
import torch
from torch import nn

from gebm.penalties import PENALTIES, gradient_penalty, l2_penalty


class Linear(nn.Module):
    """E(x) = w.x + b on flattened samples."""

    def __init__(self, w: torch.Tensor):
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(torch.tensor(5.0))
        self.seen = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach())
        return x.flatten(1) @ self.w + self.b


class Bowl(nn.Module):
    """E(x) = |x|^2 / 2, whose gradient is x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.square().sum(1)


def draws(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 1, 2, 3, generator=torch.Generator().manual_seed(seed))


def test_linear_energy():
    energy = Linear(torch.arange(6.0))
    penalty = gradient_penalty(energy, draws(5, 0), draws(5, 1))
    assert penalty.item() == pytest.approx(55)
    penalty.backward()
    torch.testing.assert_close(energy.w.grad, 2 * torch.arange(6.0))


def test_interpolates_each_pair_on_its_segment():
    energy, real, fake = Linear(torch.ones(6)), draws(7, 0), draws(4, 1).requires_grad_()
    gradient_penalty(energy, real, fake, torch.Generator().manual_seed(0)).backward()
    (x,) = energy.seen
    assert x.shape == (4, 1, 2, 3) and fake.grad is None
    t = ((x - fake) / (real[:4] - fake)).flatten(1).detach()
    torch.testing.assert_close(t, t[:, :1].expand_as(t), rtol=1e-3, atol=1e-4)  # one t for all pixels of a sample
    assert len(t[:, 0].unique()) == 4 and t.min() >= 0 and t.max() <= 1


def test_generator_decides():
    energy, real, fake = Bowl(), torch.ones(4, 2), torch.zeros(4, 2)
    a, b, c = (gradient_penalty(energy, real, fake, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert a == b != c


def test_mean_squared_norm():
    """E |t a + (1 - t) b|^2 = (|a|^2 + a.b + |b|^2) / 3 for t ~ U[0, 1]."""
    n, a, b = 40_000, torch.tensor([2.0, 0.0, 1.0]), torch.tensor([-1.0, 1.0, 0.5])
    t = torch.linspace(0, 1, 10_001)[:, None]
    se = (t * a + (1 - t) * b).square().sum(1).std() / math.sqrt(n)
    expected = (a @ a + a @ b + b @ b) / 3
    penalty = gradient_penalty(Bowl(), a.expand(n, 3), b.expand(n, 3), torch.Generator().manual_seed(0))
    assert abs(penalty - expected) < 4 * se


def test_l2_is_the_mean_square_of_all_entries():
    energy = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    values = torch.cat([p.detach().flatten() for p in energy.parameters()])
    penalty = l2_penalty(energy)
    assert len(values) == 11
    torch.testing.assert_close(penalty, values.square().sum() / 11)
    penalty.backward()
    torch.testing.assert_close(energy[0].weight.grad, 2 * energy[0].weight.detach() / 11)


def test_names():
    assert PENALTIES == {"gradient_l2": (1, 1), "gradient": (1, 0), "l2": (0, 1), "none": (0, 0)}
