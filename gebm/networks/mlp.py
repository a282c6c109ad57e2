"""A residual network on the rows of a table."""

from torch import Tensor, nn

from gebm.networks.common import scaled
from gebm.networks.transforms import zeroed

__all__ = ["ResidualMLP"]


class ResidualMLP(nn.Module):
    """Energy of a row: linear to 128 units, residual blocks (SiLU, linear, SiLU, linear), SiLU, linear to one.

    SiLU is smooth, so that log-density and forces are too: with kinks, leapfrog steps would lose an order. The last
    layer starts at zero: training starts from E = 0, where the model is its base.

    Arguments:
        shape: (d,), the shape of a row.
        width: factor on the hidden units.
        blocks: number of residual blocks.
        bn: without effect, as an energy is a function of one row.
        dropout: share of hidden units left out of each block's second layer in training mode.

    Shapes: rows (N, d) -> energies (N,).
    """

    def __init__(
        self, shape: tuple[int], *, width: float = 1.0, blocks: int = 3, bn: bool = False, dropout: float = 0.0
    ):
        super().__init__()
        hidden = scaled(128, width)
        self.first = nn.Linear(*shape, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden)
            )
            for _ in range(blocks)
        )
        self.head = zeroed(nn.Sequential(nn.SiLU(), nn.Linear(hidden, 1)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        energies: Tensor = self.head(h)
        return energies.squeeze(1)
