"""When a run has diverged."""

import math
from pathlib import Path

import torch
from torch import Tensor

from gebm.training.trainer import Trainer

__all__ = ["DivergenceError", "Guard"]

LOSS_LIMIT = 1e8


class DivergenceError(FloatingPointError):
    """Training cannot go on: a loss was not finite or beyond its limit, or the energy is flat.

    Arguments:
        what: happened where.
        advice: what to do about it.
    """

    def __init__(self, what: str, advice: str):
        super().__init__(f"{what}: {advice}")
        self.what, self.advice = what, advice


class Guard:
    """Watches every loss without waiting for the device; what it saw is read where a log line or checkpoint is due.

    Arguments:
        trainer: whose steps they are.
        loss_limit: largest absolute value of a loss; 0: any that is finite.
    """

    def __init__(self, trainer: Trainer, loss_limit: float = LOSS_LIMIT):
        self.trainer, self.loss_limit = trainer, loss_limit
        device = trainer.model.log_partition.device
        self.first_bad = torch.full((), -1, device=device)  # twice the step, plus one for a base step
        self.loss = torch.zeros((), device=device)  # of that step

    def watch(self, stats: dict[str, Tensor]) -> None:
        """Look at the losses of the step just taken."""
        counters = self.trainer.counters
        for name, value in stats.items():
            if name.endswith("loss"):
                code = 2 * (counters.ml_step + counters.g_step) + 1 if name == "base_loss" else 2 * counters.e_step
                largest = min(self.loss_limit or torch.inf, torch.finfo(value.dtype).max)
                first = (self.first_bad < 0) & ~(value.abs() <= largest)  # NaN compares with nothing
                self.first_bad = torch.where(first, code, self.first_bad)
                self.loss = torch.where(first, value, self.loss)

    def check(self, last_good: Path | None) -> None:
        """Raise DivergenceError if a loss was bad, naming the step, the network and the last good checkpoint."""
        if (code := int(self.first_bad)) < 0:
            return
        where = f"{'base' if code % 2 else 'energy'} step {code // 2}"
        loss = float(self.loss)
        what = f"loss {loss:.3g} beyond {self.loss_limit:g}" if math.isfinite(loss) else "loss not finite"
        raise DivergenceError(f"{what} at {where}", _advice(last_good))

    def check_weights(self, last_good: Path | None) -> None:
        """Raise DivergenceError if weights or buffers are not finite: a finite loss may have had a gradient that was
        not."""
        weights = (t for t in self.trainer.model.state_dict().values() if t.is_floating_point())
        if not all(t.isfinite().all() for t in weights):
            step = self.trainer.counters.e_step
            raise DivergenceError(f"weights not finite after energy step {step}", _advice(last_good))


def _advice(last_good: Path | None) -> str:
    kept = f"the last good checkpoint is {last_good}" if last_good else "no checkpoint was written before"
    return f"lower the learning rates, or raise the weight of the penalty; {kept}"
