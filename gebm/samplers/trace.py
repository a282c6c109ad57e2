"""What is recorded of running chains, and what it says about them."""

from typing import NamedTuple

import torch
from torch import Tensor

from gebm.samplers.base import Kernel, State
from gebm.samplers.diagnostics import ess, rhat
from gebm.samplers.tempering import excess

__all__ = ["Diagnostics", "Recorder", "left_start"]

MIXED = 1.05  # R-hat up to which chains count as mixed
FEWEST = 8  # draws a chain needs for a word on mixing


class Diagnostics(NamedTuple):
    """How well N chains have mixed, from `draws` recorded states each.

    ess_energy, rhat_energy: bulk effective sample size, over all chains, and rank-normalised split R-hat of beta E;
    ess_projection, rhat_projection: the worst of those of a few random projections of the position;
    ess_per_1000_evaluations: of the energy, per 1,000 evaluations of the target in the steps recorded, all chains
    together; left_start: fraction of chains that ended further from their start than half of what all chains are.
    Values are NaN where there are too few draws to say, or the kernel's chains do not move through the target.
    """

    chains: int
    draws: int
    ess_energy: float
    rhat_energy: float
    ess_projection: float
    rhat_projection: float
    ess_per_1000_evaluations: float
    left_start: float

    @property
    def mixed(self) -> bool:
        """Whether every R-hat is at most 1.05; that of a constant energy, NaN, does not count."""
        return self.rhat_projection <= MIXED and not self.rhat_energy > MIXED


class Recorder:
    """Records beta E and random projections of the position of some chains, on their device.

    Arguments:
        start: positions (N, d) that the chains come from.
        steps: length of the run; at most `draws` states of it are recorded, evenly spaced.
        chains: how many chains are watched.
        projections: number of random directions.
        seed: of the directions.
    """

    def __init__(
        self, start: Tensor, steps: int, *, chains: int = 1000, draws: int = 500, projections: int = 4, seed: int = 0
    ):
        directions = torch.randn(start.shape[1], projections, generator=torch.Generator().manual_seed(seed))
        self.directions = (directions / directions.norm(dim=0)).to(start)
        self.start = self.end = start[:chains]
        self.every = -(-steps // draws)
        self.energies: list[Tensor] = []
        self.projections: list[Tensor] = []

    def add(self, step: int, state: State) -> None:
        """Record the state after a step, if it is one to record."""
        if step and step % self.every == 0:
            n = len(self.start)
            self.end = state.position[:n]
            self.energies.append(excess(state)[:n])
            self.projections.append(self.end @ self.directions)

    def arrays(self) -> dict[str, Tensor]:
        """`energy` (chain, draw), beta E, and `projection` (chain, draw, direction): the arrays that ArviZ takes."""
        if not self.energies:
            return {}
        return {"energy": torch.stack(self.energies, 1), "projection": torch.stack(self.projections, 1)}

    def diagnose(self, kernel: Kernel, warmed_up: bool = False) -> Diagnostics:
        """Diagnostics of the second half of the record; of all of it if the chains had a warm-up."""
        n, recorded = len(self.start), len(self.energies)
        draws = recorded if warmed_up else recorded - recorded // 2
        missing = float("nan")
        if not kernel.moves:
            return Diagnostics(n, draws, *[missing] * 6)
        if draws < FEWEST:
            return Diagnostics(n, draws, *[missing] * 6)._replace(left_start=left_start(self.start, self.end))
        arrays = {name: values[:, -draws:] for name, values in self.arrays().items()}
        energy, projection = arrays["energy"], arrays["projection"]
        ess_energy = float(ess(energy))
        return Diagnostics(
            n,
            draws,
            ess_energy,
            float(rhat(energy)),
            float(ess(projection).min()),
            float(rhat(projection).max()),
            1000 * ess_energy / (n * draws * self.every * kernel.cost),
            left_start(self.start, self.end),
        )


def left_start(start: Tensor, end: Tensor) -> float:
    """Fraction of chains (N, d) that ended further from their start than half of what all chains are on average.

    Chains that have forgotten their starts are as far from them as any other chain is. NaN for one chain.
    """
    if len(start) < 2:
        return float("nan")
    distances = torch.cdist(end, start)
    return float((distances.diagonal() > 0.5 * distances.mean(0)).float().mean())
