import copy

import torch

from gebm.networks import ENERGIES
from gebm.networks.folding import folded
from gebm.networks.mlp import ResidualMLP


def rows(n: int, dim: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def made(seed: int = 0, **options) -> ResidualMLP:
    torch.manual_seed(seed)
    energy = ENERGIES["mlp"]((4,), **options)
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return energy


def test_starts_at_zero_and_moves():
    energy, x = ENERGIES["mlp"]((4,)), rows(5)
    assert torch.equal(energy(x), torch.zeros(5))
    optimiser = torch.optim.Adam(energy.parameters(), lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        loss = (energy(x) - torch.arange(5.0)).square().mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    assert all(p.grad.abs().max() > 0 for p in energy.parameters())


def test_one_row_one_energy():
    energy, x = made(bn=True), rows(6)
    assert energy(x).shape == (6,)
    torch.testing.assert_close(torch.cat([energy(row[None]) for row in x]), energy(x))
    assert energy.double()(x.double()).dtype == torch.float64
    assert ResidualMLP((1,))(rows(3, 1)).shape == (3,)


def test_dropout():
    energy, x = made(dropout=0.3), rows(50)
    assert energy.state_dict().keys() == made().state_dict().keys()
    assert (energy(x) - energy(x)).abs().max() > 0.01
    assert torch.equal(energy.eval()(x), made()(x))


def test_residual_blocks_by_hand():
    energy, x = made(blocks=2), rows(6)
    h = energy.first(x)
    for block in energy.blocks:
        h = h + block[4](torch.nn.functional.silu(block[1](torch.nn.functional.silu(h))))
    torch.testing.assert_close(energy(x), energy.head[1](torch.nn.functional.silu(h))[:, 0])
    assert len(energy.blocks) == 2 and energy.first.out_features == 128
    assert made(width=0.5).first.out_features == 64


def test_forces_have_no_kinks():
    """The gradient in x is differentiable: its jump across a small step vanishes with the step."""
    energy, x = made().double(), rows(50).double()
    gradient = torch.func.grad(lambda q: energy(q).sum())
    jumps = [(gradient(x + h) - gradient(x)).abs().max() for h in (1e-3, 1e-6)]
    assert jumps[1] < 2e-3 * jumps[0]


def test_copies(tmp_path):
    energy, other, x = made(), made(seed=1), rows(5)
    torch.save(energy.state_dict(), tmp_path / "weights.pt")
    assert not torch.allclose(other(x), energy(x))
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(other(x), energy(x))
    assert torch.equal(copy.deepcopy(energy)(x), energy(x)) and torch.equal(folded(energy)(x), energy(x))
