r"""Objectives of the alternating training."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gebm.penalties import PENALTIES, gradient_penalty, l2_penalty

__all__ = ["KALE", "OBJECTIVES", "log_mean_exp"]


def log_mean_exp(a: Tensor) -> Tensor:
    r""":math:`\log \frac1n \sum_i \exp a_i` of a vector (n,), a scalar."""
    return torch.logsumexp(a, 0) - math.log(len(a))


class KALE(nn.Module):
    r"""KL approximate lower-bound estimate in Fenchel form, as one module with one forward.

    .. math:: \mathrm{KALE} = \sup_{E, c} -\mathbb E_P[E] - c - \mathbb E_G[\exp(-(E + c))] + 1

    (paper.md section 1; Arbel et al. 2021, section 3). The energy step minimises minus that plus the penalty. At the
    optimum c = log E_G[exp(-E)] is the log-partition. Its raw derivative 1 - exp(c~ - c), with c~ = log-mean-exp(-E(y))
    of the batch, explodes when c is far too small; it is replaced by exp(c - c~) - 1, which has the same zero (and is
    the Newton step of that convex problem).

    Arguments:
        energy: network samples -> (N,).
        log_partition: the scalar parameter c.
        penalty_type: 'gradient_l2', 'gradient', 'l2' or 'none'.
        penalty_lambda: weight of the penalty.
    """

    def __init__(
        self,
        energy: nn.Module,
        log_partition: nn.Parameter,
        penalty_type: str = "gradient_l2",
        penalty_lambda: float = 0.1,
    ):
        super().__init__()
        self.energy = energy
        self.log_partition = log_partition
        self.penalty_lambda = penalty_lambda
        self.gradient, self.l2 = PENALTIES[penalty_type]

    def forward(
        self, real: Tensor, fake: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one energy step and its statistics (detached scalars).

        Arguments:
            real: data (N, ...).
            fake: base samples (M, ...), without a graph.
            generator: randomness of the gradient penalty.
        """
        # Cached: a spectrally normalised weight is computed, and its power iteration advanced, once a step.
        with parametrize.cached():
            e_real, e_fake = self.energy(torch.cat([real, fake])).split([len(real), len(fake)])
            penalty = torch.zeros((), device=real.device, dtype=e_real.dtype)
            if self.gradient:
                penalty = penalty + gradient_penalty(self.energy, real, fake, generator)
        if self.l2:
            penalty = penalty + l2_penalty(self.energy)
        c = self.log_partition
        fenchel = e_real.mean() + c.detach() + torch.exp(-(e_fake + c.detach())).mean() - 1
        c_batch = log_mean_exp(-e_fake.detach())
        slope = self.slope(c_batch)
        # Adds the corrected derivative of c and no value.
        loss = fenchel + slope * (c - c.detach()) + self.penalty_lambda * penalty
        stats = {
            "kale": -fenchel,
            "kale_dv": -e_real.mean() - c_batch,
            "energy_real": e_real.mean(),
            "energy_fake": e_fake.mean(),
            "c": c,
            "c_batch": c_batch,
            "penalty": penalty,
        }
        return loss, {name: value.detach() for name, value in stats.items()}

    def slope(self, c_batch: Tensor) -> Tensor:
        """Corrected derivative of the loss in c, exp(c - c~) - 1, for the log-partition c~ of a batch; no graph."""
        return torch.expm1((self.log_partition.detach() - c_batch).clamp(max=20))  # finite, however far c is above

    def base_loss(self, fake: Tensor) -> Tensor:
        r"""Loss of one base step: :math:`-\log \tfrac1M \sum_i \exp(-E(y_i))`.

        Its gradient weights base sample i by softmax(-E)_i: the batch form of the gradient of KALE in the base, which
        weights by the latent posterior (paper.md section 1).
        """
        return -log_mean_exp(-self.energy(fake))


OBJECTIVES = {"kale": KALE}
