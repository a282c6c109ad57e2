"""Contrastive divergence."""

from torch import Tensor

from gebm.objectives.base import Objective

__all__ = ["ContrastiveDivergence"]


class ContrastiveDivergence(Objective):
    r"""Contrastive divergence with persistent chains: the gradient of maximum likelihood, by samples of the model.

    .. math:: \nabla_E\, (\mathbb E_P[E] + \log Z) = \mathbb E_P[\nabla E] - \mathbb E_Q[\nabla E]

    (Hinton 2002; Tieleman 2008). An energy step minimises mean E(x) - mean E(y) with samples y of
    `gebm.training.negatives.Replay`. As these chains lag behind the energy and start again now and then, their y are
    not quite from Q, and neither is the energy that this ends at the most likely one; more steps a draw lessen it.

    The value says nothing of how good the energy is, and samples of the model do not tell its log-partition: c is left
    as it is until the stage ends, when `gebm.training.train` estimates it. A base step is that of KALE.
    Du and Mordatch 2019 also shrink the squared energies: needless here, where the penalty bounds their slope.
    """

    fake_from = "model"

    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        return e_real.mean() - e_fake.mean()

    def batch_log_partition(self, e_fake: Tensor) -> None:
        return None
