"""KALE in Fenchel form."""

import torch
from torch import Tensor

from gebm.objectives.base import Objective

__all__ = ["KALE"]


class KALE(Objective):
    r"""KL approximate lower-bound estimate, in Fenchel form.

    .. math:: \mathrm{KALE} = \sup_{E, c} -\mathbb E_P[E] - c - \mathbb E_G[\exp(-(E + c))] + 1

    (paper.md section 1; Arbel et al. 2021, section 3). The energy step minimises minus that. At the optimum
    c = log E_G[exp(-E)] is the log-partition: c remembers earlier batches, where that of one batch is noisy and biased.

    Example:

        >>> energy = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
        >>> c = torch.nn.Parameter(torch.zeros(()))
        >>> objective = KALE(energy, c, penalty_type="none")
        >>> real, fake = torch.randn(100, 2) + 1, torch.randn(100, 2)
        >>> optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
        >>> for _ in range(200):
        ...     loss, stats = objective(real, fake)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> bool(stats["kale"] > 0.5)  # KL of the two Gaussians: 1 nat
        True
    """

    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        c = self.log_partition.detach()
        return e_real.mean() + c + torch.exp(-(e_fake + c)).mean() - 1
