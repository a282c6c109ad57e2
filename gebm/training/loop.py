"""The training loop: likelihood of the base where asked for, joint training, then the refinement of the energy."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm import parallel
from gebm.checkpoints import checkpoints
from gebm.metrics.partition import base_energies, energies, evaluate_kale
from gebm.training.checkpoint import Measure, best_before, drop_older, name_of, save_checkpoint
from gebm.training.guard import LOSS_LIMIT, DivergenceError, Guard
from gebm.training.log import SilentLog, TrainingLog
from gebm.training.schedules import energy_steps, remaining
from gebm.training.trainer import Counters, Trainer

__all__ = ["STOPPING", "DivergenceError", "Interrupted", "Schedule", "exit_code", "train"]


KALE_EVERY = 100  # refinement steps between looks at the held-out KALE
REQUEUE = [signal.Signals[name] for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]  # sent by schedulers
STOPPING = [signal.SIGINT, signal.SIGTERM, *REQUEUE]


def exit_code(signum: int) -> int:
    """Of a run that a signal stopped: 128 + signal, or where it is to be queued again 75, "try again later"."""
    return os.EX_TEMPFAIL if signum in REQUEUE else 128 + signum


class Interrupted(Exception):
    """A signal stopped the run, which was saved and can be resumed."""

    def __init__(self, signum: int, checkpoint: Path | None):
        super().__init__(signum)
        self.signum = signum
        self.checkpoint = checkpoint


@dataclass(frozen=True)
class Schedule:
    """How long and how often.

    train_mode: 'both', 'energy' (refinement only) or 'base' (base steps only); ml_steps: of maximum likelihood on the
    base, a flow, before all else; ml_lr: its learning rate there (None: the base's); base_steps: of the joint stage;
    n_iter_d, n_iter_d_init: energy steps before a base step, ordinarily and at every 500th; refine_steps: energy steps
    with the base frozen; refine_kale: held-out KALE that ends them early (0: none); log_every, checkpoint_every: in
    base steps, and in energy steps while refining.
    """

    train_mode: str = "both"
    ml_steps: int = 0
    ml_lr: float | None = None
    base_steps: int = 150_000
    n_iter_d: int = 5
    n_iter_d_init: int = 100
    refine_steps: int = 15_000
    refine_kale: float = 0.0
    log_every: int = 100
    checkpoint_every: int = 1000

    @property
    def refines(self) -> bool:
        """Whether there is a refinement."""
        return self.train_mode != "base" and self.refine_steps > 0

    def finished(self, counters: Counters) -> bool:
        """Whether a run with these counters has nothing left to do."""
        if self.refines:
            return counters.refine_step >= self.refine_steps
        return counters.g_step >= self.base_steps and counters.ml_step >= self.ml_steps


def train(
    trainer: Trainer,
    schedule: Schedule,
    run: Path | None,
    *,
    config: str = "",
    held_out: Tensor | None = None,
    save: bool = True,
    keep: int = 2,
    loss_limit: float = LOSS_LIMIT,
    evaluations: Sequence[tuple[int, Callable[[Trainer], dict[str, float]]]] = (),
    measures: Mapping[str, tuple[str, bool]] | None = None,
    rows: list[dict[str, Any]] | None = None,
    progress: bool | None = None,
) -> None:
    """Train from where the trainer's counters stand to the end of the schedule.

    Learning rates follow the trainer's `lr_schedule` in the joint stage. In the others, of one network alone, its rate
    falls linearly to zero from the configured one, not from where the schedule left it: the refinement is a training
    of its own, on a base that has come to rest, and the same after a joint stage as from a trained base that was given.
    A stage of a trainer with a `selection` ends with the weights that it chose.

    Writes into the existing folder `run`: `stats.jsonl`, `tensorboard/`, `grids/` of 64 fixed latents, `checkpoints/`;
    of several processes the first does. They stop at the same step, whichever of them a signal came to.

    Arguments:
        trainer: the model, its batches and its optimisers.
        schedule: the numbers of steps.
        run: the run's folder; None: nothing is written.
        config: resolved configuration, stored in every checkpoint.
        held_out: data (N, ...) in [-1, 1] on the model's device, for the KALE that ends the refinement.
        save: write checkpoints.
        keep: newest checkpoints of a stage that stay, beside the best one.
        loss_limit: absolute value of a loss from which on the run has diverged; 0: none that is finite.
        evaluations: pairs of a number of steps and what to call that often; what it returns goes into the log.
        rows: takes every line of the log.
        progress: whether there is a progress bar; None: on a terminal.
        measures: stage -> the value among those by which its best checkpoint is told, and whether the lowest is; one is
            written whenever the value is the best so far.

    Raises:
        DivergenceError: a loss was not finite or too large; the message names the step and the last good checkpoint.
        Interrupted: a signal came (see `STOPPING`); the state was saved first.
    """
    counters = trainer.counters
    log = (TrainingLog if parallel.is_first() else SilentLog)(run, trainer, rows, progress)
    guard = Guard(trainer, loss_limit)
    last_saved = next(reversed(checkpoints(run)), None) if run is not None else None
    # What is finished is not written again: a run that goes on where its newest checkpoint stands has it already.
    saved_at = replace(counters) if last_saved is not None and last_saved.name == name_of(counters) else None
    if saved_at is not None and last_saved is not None and save and parallel.is_first():
        drop_older(last_saved, keep)
    measured: Measure | None = None

    def checkpoint() -> None:
        nonlocal last_saved, saved_at
        guard.check(last_saved)
        guard.check_weights(last_saved)
        if save and run is not None and parallel.is_first() and counters != saved_at:
            last_saved, saved_at = save_checkpoint(run, trainer, config, keep, measured), replace(counters)

    with _signals(lambda: last_saved) as received, log:

        def look() -> None:
            if trainer.selection is not None:
                log.latest |= trainer.selection.look(trainer)

        def after_step(step: int, last: bool) -> None:
            nonlocal measured
            look()
            if step % schedule.log_every == 0:
                guard.check(last_saved)
                log.write()
            name, lowest = (measures or {}).get(counters.stage, ("", False))
            for every, evaluate in evaluations:
                if step % every == 0 and (values := evaluate(trainer)):
                    log.add(values)
                    log.say(values)
                    if name in values and run is not None:
                        found = Measure(name, values[name], lowest)
                        # One process looks: others may have no such folder, and all have to save at the same step.
                        best = parallel.from_first(partial(best_before, run, counters, name))
                        if best is None or found.better(best[1]):
                            measured = found
                        elif found.far_worse(best[1]):
                            log.fell_back(found, *best)
            if last:  # the end of the stage saves, when the weights and c are those that stay
                return
            if measured or step % schedule.checkpoint_every == 0:  # after all evaluations, some of which have a state
                log.grid()
                checkpoint()

        def update(step: Callable[[], dict[str, Tensor]]) -> None:
            """Take a step at the learning rates of its moment."""
            nonlocal measured
            measured = None
            if counters.stage == "joint":
                trainer.scale_lr(trainer.lr_schedule.factor(trainer.epoch))
            elif counters.stage == "base":
                trainer.scale_lr(remaining(counters.ml_step, schedule.ml_steps), schedule.ml_lr)
            else:
                trainer.scale_lr(remaining(counters.refine_step, schedule.refine_steps))
            stats = step()
            log.collect(stats)
            guard.watch(stats)

        def stop_if_asked() -> None:
            if signum := parallel.agreed(received[0] if received else 0):
                checkpoint()
                parallel.wait()  # as the end of one process is that of all
                raise Interrupted(signum, last_saved)

        def reached() -> bool:
            """Whether a stage may end here: by the state alone, so that a resumed run ends at the same step."""
            if trainer.selection is not None and trainer.selection.exhausted(trainer.epoch):
                return True
            if counters.stage != "refine" or not schedule.refine_kale or held_out is None:
                return False
            if counters.refine_step % KALE_EVERY:
                return False
            return parallel.from_first(lambda: _held_out_kale(trainer, held_out)) >= schedule.refine_kale

        def joint_step() -> None:
            """The energy steps that are still due, and the base step."""
            wanted = energy_steps(counters.g_step, schedule.n_iter_d, schedule.n_iter_d_init)
            while schedule.train_mode == "both" and counters.pending < wanted:
                update(trainer.energy_step)
                counters.pending += 1
                stop_if_asked()
            update(trainer.base_step)

        def refine_step() -> None:
            update(trainer.energy_step)
            counters.refine_step += 1

        stages: list[tuple[str, str, int, Callable[[], object]]] = [
            ("base", "ml_step", schedule.ml_steps, lambda: update(trainer.likelihood_step)),
            ("joint", "g_step", schedule.base_steps if schedule.train_mode != "energy" else 0, joint_step),
            ("refine", "refine_step", schedule.refine_steps if schedule.refines else 0, refine_step),
        ]
        names = [name for name, *_ in stages]
        for name, counter, steps, step in stages[names.index(counters.stage) :]:
            if not steps:
                continue
            trainer.start(name)
            log.stage(name, getattr(counters, counter), steps)
            look()
            while getattr(counters, counter) < steps and not reached():
                step()
                log.advance()
                done = getattr(counters, counter)
                after_step(done, done == steps)
                if done < steps:
                    stop_if_asked()
            log.grid()
            if trainer.selection is not None:
                log.latest |= trainer.selection.look(trainer, last=True)
            chosen = trainer.selection is not None and trainer.selection.restore(trainer)
            if trainer.end_stage() or chosen:
                saved_at = None  # at these counters other weights or another c may have been saved
            guard.check(last_saved)
            log.write()  # before the checkpoint, from which a killed run goes on without what it had not written
            checkpoint()
            stop_if_asked()
        checkpoint()  # where no stage had a step


def _held_out_kale(trainer: Trainer, held_out: Tensor) -> float:
    """Donsker-Varadhan KALE on held-out data; latents of its own, so that looking does not change the training."""
    model = trainer.model
    generator = torch.Generator(model.log_partition.device).manual_seed(trainer.counters.e_step)
    fake = base_energies(model, 2000, generator)
    return evaluate_kale(energies(model.energy, held_out), fake, model.log_partition.item()).donsker_varadhan


@contextmanager
def _signals(last_saved: Callable[[], Path | None]) -> Iterator[list[int]]:
    """Collect the signals that stop a run instead of dying of them; a second one acts at once.

    Not of several processes: their launcher hands a signal on that may have come to all, so two are one. A run that
    diverges when it was asked to stop does stop, and diverges again when it goes on.
    """
    received: list[int] = []

    def handler(signum: int, frame: object) -> None:
        received.append(signum)
        if parallel.processes() == 1:
            for name, old in before.items():
                signal.signal(name, old)

    in_main = threading.current_thread() is threading.main_thread()  # the others cannot set handlers
    before = {name: signal.signal(name, handler) for name in STOPPING if in_main}
    try:
        yield received
    except DivergenceError:
        if received:
            raise Interrupted(received[0], last_saved()) from None
        raise
    finally:
        for name, old in before.items():
            signal.signal(name, old)
