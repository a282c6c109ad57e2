"""KALE with an amortised log-partition, and in its plain Fenchel form."""

import torch
from torch import Tensor

from gebm.objectives.base import Objective, log_mean_exp
from gebm.objectives.donsker import DonskerVaradhan

__all__ = ["KALE", "Fenchel"]

FACTOR = 2.0  # by which the weight of a batch may differ from 1


class KALE(DonskerVaradhan):
    r"""KL approximate lower-bound estimate, with a log-partition that remembers earlier batches.

    .. math:: \mathrm{KALE} = \sup_{E, c} F(E, c), \qquad
              F(E, c) = -\mathbb E_P[E] - c - \mathbb E_G[\exp(-(E + c))] + 1

    (Arbel et al. 2021, section 3; arXiv 2003.05033). For a given energy the best c is the log-partition
    log E_G[exp(-E)], which `Objective` estimates from the last batches. At that c, with :math:`\tilde c` the
    log-partition of the batch, an energy step descends on

    .. math:: w \, \bigl( \overline{E(x)} + \log \overline{\exp(-E(y))} + \lambda \, \text{penalty} \bigr), \qquad
              w = \exp(\tilde c - c) \text{ if } \tfrac12 \le \exp(\tilde c - c) \le 2, \text{ else } 1,

    with no gradient in w. Base sample j so has the weight exp(-(E(y_j) + c)) / M that F gives it. Data and penalty
    have w in the place of 1: its mean over batches is 1 at the best c, so where no batch is off by more than a factor
    of two the mean gradient is that of -F, and as data
    and base samples weigh the same in each batch, noise in c cannot push all energies up or down together.
    `DonskerVaradhan` counts each batch alike, w = 1, which is what biases it. Beyond a factor of two a batch counts 1
    too: there one rare base sample of very low energy decides, and neither c nor the batch tells the log-partition.
    So no sample can do more than twice what it does to `DonskerVaradhan`, and where weights are so uneven that most
    batches are like that, as with energies of many nats in joint training on images, the two criteria are nearly one.

    Example:

        >>> energy = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
        >>> c = torch.nn.Parameter(torch.zeros(()))
        >>> objective = KALE(energy, c, penalty_type="none")
        >>> real, fake = torch.randn(100, 2) + 1, torch.randn(100, 2)
        >>> optimizer = torch.optim.Adam(energy.parameters(), lr=0.1)
        >>> for _ in range(200):
        ...     loss, stats = objective(real, fake)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> bool(stats["kale"] > 0.5)  # KL of the two Gaussians: 1 nat
        True
    """

    def weight(self, e_fake: Tensor) -> Tensor:
        ratio = torch.exp(log_mean_exp(-e_fake) - self.log_partition.detach())
        return torch.where((ratio >= 1 / FACTOR) & (ratio <= FACTOR), ratio, 1.0)


class Fenchel(Objective):
    r"""KALE in its plain Fenchel form, with c moved by its gradient at the energy's learning rate.

    An energy step minimises -F of `KALE` in E and c together, as the paper has it. Where c is more than 2 nats below a
    batch's log-partition its derivative 1 - exp(c~ - c) is held at its value there, so that it cannot explode. c takes
    steps of the size of the learning rate, too small to follow an energy that moves fast, and nothing bounds the weight
    exp(-(E + c)) of a base sample: on images, `KALE` trains better.
    """

    maximises_kale = True
    c_by_gradient = True

    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        c = self.log_partition.detach()
        slope = -torch.expm1((log_mean_exp(-e_fake.detach()) - c).clamp(max=2))
        of_c = slope * (self.log_partition - c)  # adds the derivative of c and no value
        return e_real.mean() + c + torch.exp(-(e_fake + c)).mean() - 1 + of_c
