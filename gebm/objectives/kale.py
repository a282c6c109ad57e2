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
    """

    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        c = self.log_partition.detach()
        return e_real.mean() + c + torch.exp(-(e_fake + c)).mean() - 1
