"""Maximum likelihood."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gebm.errors import InputError
from gebm.networks.common import HasDensity
from gebm.objectives.base import log_mean_exp
from gebm.objectives.donsker import DonskerVaradhan

__all__ = ["MaximumLikelihood"]


@runtime_checkable
class _KnownDensity(Protocol):
    def log_density(self, x: Tensor, /) -> Tensor: ...


class MaximumLikelihood(DonskerVaradhan):
    r"""Maximum likelihood of the energy, and of the base by itself.

    .. math:: \min_E\, \mathbb E_P[E] + \log Z, \quad \log Z = \log \mathbb E_G[\exp(-E)]

    log Z is the energy's `known_log_partition` where it has one (as a flow relative to the base's density has): then
    nothing is sampled, and c follows that value. An energy step then minimises minus the mean of the energy's
    `log_density`, if there is one: the same but for the base's part, which takes time and has no gradient. Of any other
    energy log Z is the batch's log-mean-exp, and an energy step is that of `DonskerVaradhan`.

    A base step minimises :math:`-\mathbb E_P[\log g]`, whatever the energy is; it draws no samples, so that in
    `--train_mode base` an unknown log-partition is estimated only at the end of the stage.
    """

    base_sees_data = True

    @property
    def uses_samples(self) -> bool:
        return self._known is None

    @property
    def c_is_known(self) -> bool:
        return self._known is not None

    @property
    def _known(self) -> Tensor | None:
        return getattr(self.energy, "known_log_partition", None)

    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        return e_real.mean() + self.batch_log_partition(e_fake)

    def batch_log_partition(self, e_fake: Tensor) -> Tensor:
        """The known log-partition, else that of the batch, with its graph."""
        known = self._known
        return log_mean_exp(-e_fake) if known is None else known

    @torch.no_grad()
    def follow(self, e_fake: Tensor) -> None:
        """Set c to the known log-partition; else take energies of base samples (M,) into it."""
        if self._known is None:
            super().follow(e_fake)
        else:
            self.log_partition.copy_(self._known)

    def forward(
        self, real: Tensor, fake: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        known = self._known
        if known is None or not isinstance(self.energy, _KnownDensity):
            return super().forward(real, fake, generator)
        if self.training:
            self.follow(real.new_empty(0))
        penalty = self._penalty(real, None, generator)
        loss = -self.energy.log_density(real).mean()
        stats = {"c": self.log_partition.detach().clone(), "c_batch": known.detach(), "penalty": penalty.detach()}
        return loss + self.penalty_lambda * penalty, stats

    def base_loss(
        self, base: Callable[[Tensor], Tensor], z: Tensor, real: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Minus the mean log-density of a batch of data under the base; it draws no samples, so there are no energies.

        Raises:
            InputError: the base has no density.
        """
        if not isinstance(base, HasDensity):
            raise InputError("--criterion ml: the base has no log_prob to maximise; take a flow (--g_model nvp, maf)")
        return -base.log_prob(real()).mean(), z.new_empty(0)
