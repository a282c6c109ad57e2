"""KALE in Donsker-Varadhan form."""

from torch import Tensor

from gebm.objectives.base import Objective, log_mean_exp

__all__ = ["DonskerVaradhan"]


class DonskerVaradhan(Objective):
    r"""KALE in Donsker-Varadhan form, with the log-partition of each batch.

    .. math:: \mathrm{KALE} = \sup_E -\mathbb E_P[E] - \log \mathbb E_G[\exp(-E)]

    (Donsker and Varadhan 1975; Arbel et al. 2021, section 3). The energy step minimises minus that. The logarithm of a
    batch's mean is biased downwards, and so are its weights softmax(-E): the bias is of order 1/M in the M samples, and
    worse the farther the energy is from flat. c has no part in it, and follows all the same.
    """

    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        return e_real.mean() + log_mean_exp(-e_fake)
