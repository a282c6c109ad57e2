"""What every criterion shares: one pass of the energy, its penalty, c and the statistics."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from gebm.latent import one_a_row
from gebm.networks.common import called, weights_once
from gebm.parallel import gathered
from gebm.penalties import PENALTIES, gradient_penalty, l2_penalty

__all__ = ["Objective", "log_mean_exp"]


def log_mean_exp(a: Tensor) -> Tensor:
    r""":math:`\log \frac1n \sum_i \exp a_i` of a vector (n,), a scalar.

    Example:

        >>> log_mean_exp(torch.tensor([0.0, 0.0, 1000.0]))
        tensor(998.9014)
    """
    return torch.logsumexp(a, 0) - math.log(len(a))


class Objective(nn.Module, ABC):
    r"""A criterion of both training steps, as one module with one forward; low energy means real.

    Energies are gathered from all processes, so that each sees the whole batch and computes the same loss.

    The energy step minimises `criterion` plus the penalty. Whatever the criterion, c follows the log-partition
    c~ = log-mean-exp(-E(y)) of each batch of base samples, so that c and the batches' mean of KALE are at hand. Its
    derivative is that of KALE's Fenchel form, 1 - exp(c~ - c), whose mean over batches vanishes at the log-partition
    itself; where c is more than 2 nats below a batch's c~ it is held at its value there, so that it cannot explode.

    Arguments:
        energy: network samples -> (N,).
        log_partition: the scalar parameter c.
        penalty_type: 'gradient_l2', 'gradient', 'l2' or 'none'.
        penalty_lambda: weight of the penalty.

    Attributes:
        fake_from: whose samples an energy step is given, the 'base''s or the 'model''s.
        base_sees_data: whether base steps draw data.
    """

    fake_from: ClassVar[str] = "base"
    base_sees_data: ClassVar[bool] = False

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

    @property
    def uses_samples(self) -> bool:
        """Whether an energy step needs samples of the base or of the model."""
        return True

    @abstractmethod
    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        """What an energy step minimises, of energies of data (N,) and of samples (M,); c takes no gradient here.

        M is 0 where there are no samples.
        """

    def base_criterion(self, e_fake: Tensor) -> Tensor:
        r"""What a base step minimises: :math:`-\log \tfrac1M \sum_i \exp(-E(y_i))` unless a criterion has its own.

        Its gradient weights base sample i by softmax(-E)_i: the batch form of the gradient of KALE in the base, which
        weights by the latent posterior (paper.md section 1).
        """
        return -log_mean_exp(-e_fake)

    def batch_log_partition(self, e_fake: Tensor) -> Tensor | None:
        """c~ of energies of base samples (M,), with its graph; None where the samples do not tell it."""
        return log_mean_exp(-e_fake)

    def forward(
        self, real: Tensor, fake: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one energy step and its statistics (detached scalars).

        Arguments:
            real: data (N, ...); this process's share of it.
            fake: samples (M, ...) without a graph, a share as well, from what `fake_from` says; None where
                `uses_samples` is False.
            generator: randomness of the gradient penalty.
        """
        e_real, e_fake, penalty = self._energies(real, fake, generator)
        loss = self.criterion(e_real, e_fake)
        c, c_batch = self.log_partition, self.batch_log_partition(e_fake)
        stats = {"energy_real": e_real.detach().mean(), "c": c, "penalty": penalty}
        if len(e_fake):
            stats["energy_fake"] = e_fake.detach().mean()
        if c_batch is not None:
            c_batch = c_batch.detach()
            loss = loss + self.slope(c_batch) * (c - c.detach())  # adds the derivative of c and no value
            d = c_batch - c.detach()
            donsker_varadhan = -stats["energy_real"] - c_batch
            stats |= {"kale": donsker_varadhan - (torch.expm1(d) - d), "kale_dv": donsker_varadhan, "c_batch": c_batch}
        return loss + self.penalty_lambda * penalty, {name: value.detach() for name, value in stats.items()}

    def base_loss(
        self, base: Callable[[Tensor], Tensor], z: Tensor, real: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Loss of one base step, and the log-partition of its base samples (detached; None: it drew none).

        Arguments:
            base: network, latents (M, d) -> samples.
            z: latents (M, d).
            real: draws a batch of data, for criteria whose base steps look at data.
        """
        with weights_once(self.energy):
            e_fake = gathered(self.energies(called(base, z, "the base")))
        return self.base_criterion(e_fake), log_mean_exp(-e_fake.detach())

    def energies(self, x: Tensor) -> Tensor:
        """E of samples (N, ...): (N,), in float32 at least; exponentials of energies take no less.

        Raises:
            InputError: the energy gives another shape, such as (N, 1), or does not take these samples.
        """
        e = one_a_row(called(self.energy, x, "the energy"), x, "the energy")
        return e.to(torch.promote_types(e.dtype, torch.float32))

    def slope(self, c_batch: Tensor) -> Tensor:
        """Derivative of the loss in c, 1 - exp(min(c~ - c, 2)), for the log-partition c~ of a batch; no graph."""
        return -torch.expm1((c_batch - self.log_partition.detach()).clamp(max=2))

    def _energies(
        self, real: Tensor, fake: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energies of the data and of the samples, and the penalty."""
        with weights_once(self.energy):
            together = self.energies(real if fake is None else torch.cat([real, fake]))
            e_real, e_fake = map(gathered, torch.split(together, [len(real), len(together) - len(real)]))
            penalty = self._penalty(real, fake, generator)
        return e_real, e_fake, penalty

    def _penalty(self, real: Tensor, fake: Tensor | None, generator: torch.Generator | None) -> Tensor:
        penalty = torch.zeros_like(self.log_partition)
        if self.gradient:  # without samples to interpolate with, at the data
            penalty = penalty + gradient_penalty(self.energy, real, real if fake is None else fake, generator)
        return penalty + l2_penalty(self.energy) if self.l2 else penalty
