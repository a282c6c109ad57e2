"""Training that goes back and on where it diverges."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gebm import parallel
from gebm.checkpoints import newest_checkpoint
from gebm.training.checkpoint import measure_of, save_checkpoint
from gebm.training.guard import DivergenceError
from gebm.training.loop import Schedule, train
from gebm.training.trainer import Trainer

__all__ = ["train_with_rollbacks"]

log = logging.getLogger("gebm")


def train_with_rollbacks(
    trainer: Trainer,
    trainer_at: Callable[[Path | None], Trainer],
    schedule: Schedule,
    run: Path | None,
    *,
    max_rollbacks: int,
    config: str = "",
    keep: int = 2,
    **options: Any,
) -> Trainer:
    """`train`, from the newest checkpoint again wherever it diverges; returns the trainer that came to the end.

    A rollback is a resume in the same process, at learning rates that are lower by the trainer's `rollback_factor` and
    with other random numbers. It is saved at once, so that a run which is then killed goes on no other way.

    Arguments:
        trainer: as it stands now.
        trainer_at: makes a trainer as it was at a checkpoint; at None, at the start.
        schedule, run, config, keep, options: as of `train`.
        max_rollbacks: in the life of a run, of which the trainer's counters keep the number; 0, or no run: none.

    Raises:
        DivergenceError: after so many.
    """
    while True:
        try:
            train(trainer, schedule, run, config=config, keep=keep, **options)
            return trainer
        except DivergenceError as error:
            what, done = error.what, trainer.counters.rollbacks
            if run is None or done >= max_rollbacks:
                raise DivergenceError(f"{what}, after {done} rollbacks", error.advice) if done else error from None
        checkpoint = parallel.from_first(lambda: newest_checkpoint(run))
        trainer = trainer_at(checkpoint)
        trainer.roll_back(done + 1)
        if parallel.is_first():
            save_checkpoint(run, trainer, config, keep, measure_of(checkpoint) if checkpoint else None)
        parallel.wait()
        line = "rollback %d of %d: %s; going on from %s, learning rates x %.3g"
        rates = trainer.rollback_factor ** (done + 1)
        log.warning(line, done + 1, max_rollbacks, what, checkpoint.name if checkpoint else "the start", rates)
