"""What every criterion shares: one pass of the energy, its penalty, c and the statistics."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from gebm.errors import InputError
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


SMOOTHING = 0.25  # share of a batch in the level of the energies: of a few batches, less noisy than one, and soon there


class Objective(nn.Module, ABC):
    r"""A criterion of both training steps, as one module with one forward; low energy means real.

    Energies are gathered from all processes, so that each sees the whole batch and computes the same loss.

    The energy step minimises `criterion` plus the penalty, times the `weight` of the batch, 1 for most criteria.

    Whatever the criterion, c follows the log-partition of the base. It is a running statistic of the batches, like the
    mean and variance of batch normalisation: no optimiser moves it, and its speed does not depend on the learning rate.
    It is the log-partition of the last `memory` batches together. With :math:`\tilde c_k` the log-mean-exp(-E(y)) of
    batch k and :math:`\ell_k` the level of the energies then,

    .. math:: c = \log \frac1K \sum_{k} \exp(\tilde c_k + \ell_k - \ell), \qquad
              \ell \leftarrow \ell + \tfrac14 (\operatorname{median} E(y) - \ell).

    The level is a smoothed median, which no energy of a rare sample moves. A constant added to all energies lowers the
    log-partition by as much and changes nothing else, and this level moves fast while an energy is trained; so the
    earlier batches are carried along with it. Without a change of level exp(c) is the mean of exp(-E) over the base
    samples of K batches, and so has the mean Z; c itself lies below log Z by about Var(W) / (2 K M) for weights
    W = exp(-E) / Z and M samples a batch, and by more where that is not small. With K = 1 it is that of the batch.

    Arguments:
        energy: network samples -> (N,).
        log_partition: the scalar parameter c; the criterion decides whether it takes a gradient.
        penalty_type: 'gradient_l2', 'gradient', 'l2' or 'none'.
        penalty_lambda: weight of the penalty.
        memory: batches K that c remembers, at least 1.

    Attributes:
        fake_from: whose samples an energy step is given, the 'base''s or the 'model''s.
        base_sees_data: whether base steps draw data.
        maximises_kale: whether it is a form of KALE, so that a value below zero is worse than that of a flat energy.
        c_by_gradient: whether c is moved by its gradient, in place of the above.
    """

    fake_from: ClassVar[str] = "base"
    base_sees_data: ClassVar[bool] = False
    maximises_kale: ClassVar[bool] = False
    c_by_gradient: ClassVar[bool] = False
    recent: Tensor
    level: Tensor

    def __init__(
        self,
        energy: nn.Module,
        log_partition: nn.Parameter,
        penalty_type: str = "gradient_l2",
        penalty_lambda: float = 0.1,
        memory: int = 20,
    ):
        super().__init__()
        if memory < 1:
            raise InputError(f"memory {memory}: c remembers at least 1 batch")
        self.energy = energy
        self.log_partition = log_partition.requires_grad_(self.c_by_gradient)
        # log-partition plus level of each of the last batches, the oldest first; -inf: there were not as many yet
        self.register_buffer("recent", log_partition.detach().new_full((memory,), -torch.inf))
        self.register_buffer("level", log_partition.detach().new_zeros(()))
        self.penalty_lambda = penalty_lambda
        self.gradient, self.l2 = PENALTIES[penalty_type]

    @property
    def uses_samples(self) -> bool:
        """Whether an energy step needs samples of the base or of the model."""
        return True

    @property
    def c_is_known(self) -> bool:
        """Whether c is the log-partition itself, not an estimate."""
        return False

    @abstractmethod
    def criterion(self, e_real: Tensor, e_fake: Tensor) -> Tensor:
        """What an energy step minimises, of energies of data (N,) and of samples (M,).

        M is 0 where there are no samples. c has taken the samples in already, unless it is moved by its gradient.
        """

    def weight(self, e_fake: Tensor) -> Tensor | float:
        """How much a batch counts beside the others, of energies of its samples (M,), without a graph."""
        return 1.0

    def base_criterion(self, e_fake: Tensor) -> Tensor:
        r"""What a base step minimises: :math:`-\log \tfrac1M \sum_i \exp(-E(y_i))` unless a criterion has its own.

        Its gradient weights base sample i by softmax(-E)_i: the batch form of the gradient of KALE in the base, which
        weights by the latent posterior (paper.md section 1).
        """
        return -log_mean_exp(-e_fake)

    def batch_log_partition(self, e_fake: Tensor) -> Tensor | None:
        """Log-partition of energies of base samples (M,), with their graph; None where the samples do not tell it."""
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
        of_base = self.fake_from == "base"
        if self.training and of_base and not self.c_by_gradient:
            self.follow(e_fake.detach())
        loss = self.weight(e_fake.detach()) * (self.criterion(e_real, e_fake) + self.penalty_lambda * penalty)
        c, c_batch = self.log_partition.detach(), self.batch_log_partition(e_fake.detach())
        stats = {"energy_real": e_real.mean(), "c": c, "penalty": penalty}
        if len(e_fake):
            stats |= {"energy_fake": e_fake.mean()} | ({"relative_ess": _relative_ess(e_fake)} if of_base else {})
        if c_batch is not None:
            donsker_varadhan = -stats["energy_real"] - c_batch
            d = c_batch - c
            stats |= {"kale": donsker_varadhan - (torch.expm1(d) - d), "kale_dv": donsker_varadhan, "c_batch": c_batch}
        return loss, {name: value.detach().clone() for name, value in stats.items()}

    def base_loss(
        self, base: Callable[[Tensor], Tensor], z: Tensor, real: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Loss of one base step, and the energies (M,) of its base samples, detached; M is 0 where it draws none.

        Arguments:
            base: network, latents (M, d) -> samples.
            z: latents (M, d).
            real: draws a batch of data, for criteria whose base steps look at data.
        """
        with weights_once(self.energy):
            e_fake = gathered(self.energies(called(base, z, "the base")))
        return self.base_criterion(e_fake), e_fake.detach()

    @torch.no_grad()
    def follow(self, e_fake: Tensor) -> None:
        """Take a batch of energies of base samples (M,) into c; none leave it as it is."""
        if not len(e_fake):
            return
        self.recent, self.level = self.recent.to(self.log_partition), self.level.to(self.log_partition)
        median = e_fake.median().to(self.level)  # of some infinite energies too, whose weight is 0
        first = (self.recent == -torch.inf).all()
        self.level.copy_(torch.where(first, median, torch.lerp(self.level, median, SMOOTHING)))
        newest = log_mean_exp(-e_fake).to(self.level) + self.level
        self.recent.copy_(torch.cat([self.recent[1:], newest[None]]))
        batches = (self.recent > -torch.inf).sum()
        self.log_partition.copy_(torch.logsumexp(self.recent, 0) - batches.log() - self.level)

    def forget(self) -> None:
        """Let c begin anew with the next batch."""
        self.recent.fill_(-torch.inf)

    @torch.no_grad()
    def remember(self, e_fake: Tensor) -> None:
        """Set c to the log-partition of many base samples, given by their energies (M,), as if of all batches."""
        self.level.copy_(e_fake.median())
        self.log_partition.copy_(log_mean_exp(-e_fake))
        self.recent.copy_(self.log_partition + self.level)

    def energies(self, x: Tensor) -> Tensor:
        """E of samples (N, ...): (N,), in float32 at least; exponentials of energies take no less.

        Raises:
            InputError: the energy gives another shape, such as (N, 1), or does not take these samples.
        """
        e = one_a_row(called(self.energy, x, "the energy"), x, "the energy")
        return e.to(torch.promote_types(e.dtype, torch.float32))

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


def _relative_ess(e_fake: Tensor) -> Tensor:
    """Effective number of a batch's weights exp(-E) over their number, in (0, 1]."""
    return 1 / (len(e_fake) * torch.softmax(-e_fake.detach(), 0).square().sum())
