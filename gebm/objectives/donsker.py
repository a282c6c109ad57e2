"""KALE in Donsker-Varadhan form."""

from torch import Tensor
from torch.nn import functional as F

from gebm.objectives.base import Objective, log_mean_exp

__all__ = ["DonskerVaradhan"]

CLEARANCE = 0.2  # share of the way down to the floor that the level of the base samples may go


class DonskerVaradhan(Objective):
    r"""KALE in Donsker-Varadhan form, with the log-partition of each batch.

    .. math:: \mathrm{KALE} = \sup_E -\mathbb E_P[E] - \log \mathbb E_G[\exp(-E)]

    (Donsker and Varadhan 1975; Arbel et al. 2021, section 3). The energy step minimises minus that. The logarithm of a
    batch's mean is biased downwards, and so are its weights softmax(-E): the bias is of order 1/M in the M samples, and
    worse the farther the energy is from flat. c has no part in it, and follows all the same.

    The level of the energies is free, and may drift. An energy with a floor f < 0 (attribute `floor`, as the built-in
    ones of images have) has no gradient there and does not come back, so half the square of what a batch's
    log-partition has above -f / 5 is added. Most often that is nothing; a level that is low, or a base sample near the
    floor among others far from it, makes it act. KALE has the same optimum for energies of any level.
    """

    maximises_kale = True

    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        c_batch = log_mean_exp(-e_fake)
        loss = e_real.mean() + c_batch
        floor = getattr(self.energy, "floor", None)
        if not isinstance(floor, float) or floor >= 0:  # a user's network may have something else of that name
            return loss
        return loss + F.relu(c_batch + CLEARANCE * floor).square() / 2
