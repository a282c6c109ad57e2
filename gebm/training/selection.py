"""Which weights of a stage are kept, and when it ends, by data that it is not trained on."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gebm.training.trainer import Trainer

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Keeps the weights with the lowest validation loss of a stage; the stage ends when none was lower for a while.

    Looked at where a stage starts, which is so a candidate, and after every pass over the training data; from the state
    alone, so that a resumed run ends where an uninterrupted one does.

    Arguments:
        loss: of a trainer's model as it would be sampled now, on validation data.
        patience: passes without a lower one that end the stage; 0: they do not.
        name: of the loss in the log.
        stages: in which it is looked at; in the others the last weights stay, and all steps are taken.
    """

    def __init__(
        self,
        loss: Callable[["Trainer"], float],
        patience: int = 0,
        name: str = "valid_nll",
        stages: Sequence[str] = ("base", "joint", "refine"),
    ):
        self.loss, self.patience, self.name, self.stages = loss, patience, name, stages
        self.start(0)

    def start(self, epoch: int) -> None:
        """Begin a stage, which chooses among its own weights alone."""
        self.best, self.best_epoch, self.seen, self.seen_images = math.inf, epoch, -1, -1
        self.weights: dict[str, Tensor] = {}

    def look(self, trainer: "Trainer", last: bool = False) -> dict[str, float]:
        """The validation loss, if a pass has gone by since the last look; keeps the weights if it is the lowest.

        last: whether a stage ends here, whose last weights are a candidate too.
        """
        if trainer.counters.stage not in self.stages:
            return {}
        due = trainer.counters.images != self.seen_images if last else trainer.epoch != self.seen
        if not due:
            return {}
        self.seen, self.seen_images = trainer.epoch, trainer.counters.images
        value = self.loss(trainer)
        if value < self.best:
            self.best, self.best_epoch = value, trainer.epoch
            self.weights = {key: tensor.clone() for key, tensor in trainer.sampled_model.state_dict().items()}
        return {self.name: value, f"{self.name}_best": self.best}

    def exhausted(self, epoch: int) -> bool:
        """Whether the stage has gone `patience` passes without a lower loss."""
        return bool(self.patience) and self.seen >= 0 and epoch - self.best_epoch >= self.patience

    def restore(self, trainer: "Trainer") -> bool:
        """Give the model the weights that were kept, if there are any; return whether it had others."""
        now = trainer.sampled_model.state_dict()
        if all(torch.equal(now[key], weight) for key, weight in self.weights.items()):
            return False
        trainer.sampled_model.load_state_dict(self.weights)
        if trainer.average is not None:
            trainer.model.base.load_state_dict(trainer.average.module.state_dict())
        return True

    def state_dict(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("best", "best_epoch", "seen", "seen_images")}
        return {**numbers, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.best, self.best_epoch, self.seen = float(state["best"]), int(state["best_epoch"]), int(state["seen"])
        self.seen_images = int(state.get("seen_images", -1))  # absent in runs from before the last look of a stage
        self.weights = dict(state["weights"])
