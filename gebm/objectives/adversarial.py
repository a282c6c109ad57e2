"""Criteria of generative adversarial networks, with the energy as minus the critic."""

from torch import Tensor
from torch.nn import functional as F

from gebm.objectives.base import Objective

__all__ = ["Hinge", "Logistic", "Wasserstein"]


class Wasserstein(Objective):
    r"""Wasserstein-1 distance: :math:`\mathbb E_P[E] - \mathbb E_G[E]`, and :math:`\mathbb E_G[E]` for the base.

    (Arjovsky et al. 2017.) It has no minimum without a bound on the slope of E: give it a gradient penalty or spectral
    norms. E is no log-ratio of densities; with c it is still the energy of a model that can be sampled.
    """

    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        return e_real.mean() - e_fake.mean()

    def base_criterion(self, e_fake: Tensor) -> Tensor:
        return e_fake.mean()


class Logistic(Objective):
    r"""Jensen-Shannon divergence by classification: softplus(E) of data plus softplus(-E) of base samples.

    At its optimum E = -log dP/dG, so c = 0 and the model is the data's law. The base minimises the non-saturating
    :math:`\mathbb E_G[\mathrm{softplus}(E)]` (Goodfellow et al. 2014).
    """

    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        return F.softplus(e_real).mean() + F.softplus(-e_fake).mean()

    def base_criterion(self, e_fake: Tensor) -> Tensor:
        return F.softplus(e_fake).mean()


class Hinge(Objective):
    r"""Hinge loss: :math:`\mathbb E_P[(1 + E)_+] + \mathbb E_G[(1 - E)_+]`, and :math:`\mathbb E_G[E]` for the base.

    (Lim and Ye 2017; Miyato et al. 2018.) Samples beyond the margin of one have no gradient, which bounds E where
    `Wasserstein` does not. E is no log-ratio here either.
    """

    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        return F.relu(1 + e_real).mean() + F.relu(1 - e_fake).mean()

    def base_criterion(self, e_fake: Tensor) -> Tensor:
        return e_fake.mean()
