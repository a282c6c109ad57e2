"""When which network is trained, and how fast."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gebm.errors import InputError
from gebm.metrics.mmd import three_sample_test
from gebm.parallel import from_first

__all__ = [
    "BOOST_EVERY", "Exponential", "LRSchedule", "MultiStep", "ThreeSample", "energy_steps", "ramped", "remaining",
]  # fmt: skip

BOOST_EVERY = 500  # base steps


def energy_steps(g_step: int, n_iter_d: int, n_iter_d_init: int) -> int:
    """Energy steps before base step `g_step`: `n_iter_d_init` at 0 and at every 500th, else `n_iter_d`."""
    return n_iter_d_init if g_step % BOOST_EVERY == 0 else n_iter_d


def remaining(step: int, steps: int) -> float:
    """The part of `steps` still to do before step `step`: a factor that falls linearly from 1 towards 0."""
    return 1 - step / steps


def ramped(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    r"""The update of a moving average of weights whose decay rises to `decay`, for torch's `AveragedModel`.

    .. math:: a_n = d_n a_{n-1} + (1 - d_n) w_n, \qquad d_n = \min(\text{decay}, (1 + n) / (10 + n))

    A constant decay of 0.999 remembers the first thousand steps, in which a base changes most; with the ramp the
    average is over the last tenth of the steps or so until the decay is reached.
    """

    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], n: Tensor | int) -> None:
        rest = 1 - torch.clamp((1 + torch.as_tensor(n)) / (10 + n), max=decay)  # no wait for a GPU
        for average, weight in zip(averages, weights):
            if average.is_floating_point():
                average.lerp_(weight, rest.to(average))
            else:  # counts
                average.copy_(weight)

    return update


class LRSchedule:
    """A factor on the learning rates of both networks in the joint stage; this one is constant.

    It is worked out anew before each step, from the run's counters and from what `state_dict` holds. The schedulers of
    torch multiply rates that are kept in the optimiser, by calls that are counted; a resumed run would be bound to the
    rates it was started with, which it may change here.
    """

    def factor(self, epoch: int) -> float:
        """The factor after `epoch` whole passes over the training images."""
        return 1.0

    def state_dict(self) -> dict[str, Any]:
        """What the factor depends on besides the epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; with the state of another schedule, or none, start afresh."""


class MultiStep(LRSchedule):
    """The factor `gamma` once more from each of the epochs `milestones` (rising) on: PyTorch's MultiStepLR."""

    def __init__(self, milestones: Sequence[int], gamma: float):
        self.milestones, self.gamma = milestones, gamma

    def factor(self, epoch: int) -> float:
        return self.gamma ** bisect_right(self.milestones, epoch)


class Exponential(LRSchedule):
    """The factor `gamma` once more after each epoch: PyTorch's ExponentialLR."""

    def __init__(self, gamma: float):
        self.gamma = gamma

    def factor(self, epoch: int) -> float:
        return self.gamma**epoch


class ThreeSample(LRSchedule):
    """The factor `decay` once more whenever the base has ceased to come nearer to the data.

    Every 2000 base steps, features of the base's samples are compared with those of 20,000 base steps before by
    `three_sample_test`. A p-value above 0.1 is a failure; after 3 in a row the rates fall, and the count starts anew.

    Arguments:
        decay: the factor.
        data: features (n, d) of training images.
        sample: features (n, d) of samples of a base, from the same latents every time.
        key: what makes the features; a state made with others cannot be gone on with.

    Reference: Binkowski et al., *Demystifying MMD GANs*, arXiv 1801.01401, section 4.
    """

    every, lag = 2000, 20_000  # base steps
    level, patience = 0.1, 3

    def __init__(self, decay: float, data: Tensor, sample: Callable[[nn.Module], Tensor], key: str):
        self.decay, self.data, self.sample, self.key = decay, data, sample, key
        self.earlier: list[Tensor] = []  # features at the last evaluations, oldest first
        self.failures = self.decays = 0

    @property
    def first(self) -> int:
        """Base steps before the rates can fall."""
        return self.lag + self.patience * self.every

    def factor(self, epoch: int) -> float:
        return self.decay**self.decays

    def test(self, base: nn.Module) -> dict[str, float]:
        """Take the base after `every` more steps; returns the p-value and the failures in a row, where one was due."""
        self.earlier.append(self.sample(base).float())  # what extractors compute in, and half the room in checkpoints
        if len(self.earlier) <= self.lag // self.every:
            return {}
        now, before = self.earlier[-1], self.earlier.pop(0)
        p = from_first(lambda: three_sample_test(self.data, now, before).p_value)
        failures = self.failures + 1 if p > self.level else 0
        self.decays += failures == self.patience
        self.failures = failures % self.patience
        return {"mmd_p": p, "mmd_failures": failures}

    def state_dict(self) -> dict[str, Any]:
        return {"key": self.key, "earlier": self.earlier, "failures": self.failures, "decays": self.decays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            return
        if state["key"] != self.key:
            raise InputError(
                "--scheduler mmd: the run's test was on other features; go on with its --fid_features and --fid_weights"
            )
        self.earlier, self.failures, self.decays = state["earlier"], state["failures"], state["decays"]
