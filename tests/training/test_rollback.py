"""Where a run has diverged, and how it goes on from before that."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from gebm.checkpoints import checkpoints
from gebm.model import GEBM
from gebm.training.checkpoint import load_checkpoint, save_checkpoint
from gebm.training.guard import DivergenceError, Guard
from gebm.training.loop import Interrupted, Schedule, train
from gebm.training.rollback import train_with_rollbacks

# 3 + 2 + 2 energy steps and 3 base steps, then 4 energy steps
SHORT = Schedule(base_steps=3, n_iter_d=2, n_iter_d_init=3, refine_steps=4, log_every=1, checkpoint_every=1)


@pytest.mark.parametrize("limit", [0.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [9.9, -9.9, 10.1, -10.1, 3e38, float("inf"), -float("inf"), float("nan")])
def test_which_losses_are_bad(make_trainer, limit, dtype, value):
    trainer = make_trainer()
    guard = Guard(trainer, limit)
    trainer.counters.e_step = 3
    guard.watch({"energy_loss": torch.tensor(1.0, dtype=dtype), "kale": torch.tensor(float("nan"))})
    guard.check(None)
    trainer.counters.e_step = 4
    guard.watch({"energy_loss": torch.tensor(value, dtype=dtype)})
    trainer.counters.e_step = 5
    guard.watch({"energy_loss": torch.tensor(float("nan"))})  # what comes after the first one
    finite = abs(value) < float("inf")
    if finite and (not limit or abs(value) < limit):
        with pytest.raises(DivergenceError, match="^loss not finite at energy step 5: "):
            guard.check(None)
        return
    what = f"loss {value:.3g} beyond 10" if finite else "loss not finite"
    with pytest.raises(DivergenceError) as error:
        guard.check(None)
    assert str(error.value).startswith(f"{what} at energy step 4: ")


def test_buffers_that_are_not_finite(make_trainer):
    trainer = make_trainer()
    guard = Guard(trainer)
    guard.check_weights(None)
    next(b for name, b in trainer.model.named_buffers() if name.endswith("running_var")).fill_(float("inf"))
    with pytest.raises(DivergenceError, match="not finite"):
        guard.check_weights(None)


def explode(trainer, update, value=1e9):
    """Let the loss of a trainer's update of that number be too large."""
    done = []

    def exploding(original, key):
        def step():
            done.append(key)
            stats = original()
            return stats | {key: torch.tensor(value)} if len(done) == update else stats

        return step

    trainer.energy_step = exploding(trainer.energy_step, "energy_loss")
    trainer.base_step = exploding(trainer.base_step, "base_loss")
    return trainer


def test_an_exploding_loss_stops_the_run_before_it_is_saved(make_trainer, run):
    with pytest.raises(DivergenceError, match="^loss 1e.09 beyond 1e.08 at base step 2: ") as error:
        train(explode(make_trainer(), 7), SHORT, run)
    assert str(error.value).endswith(f"the last good checkpoint is {run}/checkpoints/joint-00000001")
    assert [p.name for p in checkpoints(run)] == ["joint-00000001"]


class Attempts:
    """Trainers as a run makes them, of which the n-th explodes at the update `explodes[n]` of its own."""

    def __init__(self, make_trainer, explodes, **options):
        self.make, self.explodes, self.options, self.made = make_trainer, list(explodes), options, []

    def at(self, checkpoint):
        trainer = self.make(**self.options)
        if checkpoint is not None:
            load_checkpoint(checkpoint, trainer)
        self.made.append((None if checkpoint is None else checkpoint.name, trainer))
        update = self.explodes.pop(0) if self.explodes else None
        return explode(trainer, update) if update else trainer

    def run(self, run, max_rollbacks=3, schedule=SHORT, **options):
        start = checkpoints(run)[-1] if checkpoints(run) else None
        return train_with_rollbacks(self.at(start), self.at, schedule, run, max_rollbacks=max_rollbacks, **options)


def rates(run) -> list[float]:
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return [row["lr_generator"] for row in rows if "lr_generator" in row]


def test_a_rollback_goes_on_from_the_last_good_checkpoint_at_lower_rates(make_trainer, run, caplog):
    attempts = Attempts(make_trainer, [7, 3], rollback_factor=0.25)  # base step 2, and base step 2 again
    trainer = attempts.run(run)
    assert [name for name, _ in attempts.made] == [None, "joint-00000001", "joint-00000001"]
    assert trainer is attempts.made[-1][1]
    assert SHORT.finished(trainer.counters) and trainer.counters.rollbacks == 2
    first, second = (message for message in caplog.messages if "rollback" in message)
    assert first == (
        "rollback 1 of 3: loss 1e+09 beyond 1e+08 at base step 2; going on from joint-00000001, learning rates x 0.25"
    )
    assert second.startswith("rollback 2 of 3: ") and second.endswith("x 0.0625")
    assert rates(run) == [1e-2, 1e-2 / 16, 1e-2 / 16]  # one line a step: those of the course that was left are gone
    assert [p.name for p in checkpoints(run)] == [
        "joint-00000002", "joint-00000003", "refine-00000003", "refine-00000004"
    ]  # fmt: skip


def test_a_rollback_in_the_refinement_thaws_and_freezes_what_it_must(make_trainer, run):
    """The newest good checkpoint is then of the joint stage, with its moving average and a base that trains."""
    trainer = Attempts(make_trainer, [11], ema=0.8).run(run)
    assert SHORT.finished(trainer.counters) and trainer.counters.rollbacks == 1
    assert not any(p.requires_grad for p in trainer.model.base.parameters()) and not trainer.model.base.training


def test_a_rollback_to_the_start(make_trainer, run, caplog):
    attempts = Attempts(make_trainer, [2])
    trainer = attempts.run(run)
    assert [name for name, _ in attempts.made] == [None, None] and "going on from the start" in caplog.text
    assert trainer.counters.rollbacks == 1 and SHORT.finished(trainer.counters)
    assert rates(run) == [5e-3] * 3


def test_after_the_last_rollback_the_run_stops(make_trainer, run):
    attempts = Attempts(make_trainer, [7, 2, 2, 2])
    with pytest.raises(DivergenceError, match=r"at energy step 5, after 2 rollbacks: .*joint-00000001$"):
        attempts.run(run, max_rollbacks=2)
    assert len(attempts.made) == 3
    with pytest.raises(DivergenceError, match="after 2 rollbacks"):  # and so it does when it is gone on with
        attempts.run(run, max_rollbacks=2)


def test_random_numbers_after_a_rollback_are_others(make_trainer, run):
    path = save_checkpoint(run, make_trainer(dropout=0.5), "")

    def numbers(rollbacks):
        trainer = make_trainer(dropout=0.5)
        load_checkpoint(path, trainer)
        if rollbacks:
            trainer.roll_back(rollbacks)
        latents = torch.randn(3, generator=trainer.generator)
        return [latents, next(trainer.batches), torch.rand(3)]

    for values in zip(numbers(0), numbers(1), numbers(2)):
        assert not any(torch.equal(values[i], values[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    for a, b in zip(numbers(1), numbers(1)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("last", range(1, 11))
def test_killed_after_a_rollback_it_goes_on_to_the_same_bits(make_trainer, state, tmp_path, last):
    class Kill(BaseException):
        pass

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = Attempts(make_trainer, [7]).run(tmp_path / "whole")

    class Killed(Attempts):
        def at(self, checkpoint):
            trainer = super().at(checkpoint)
            if len(self.made) == 2:
                step, done = trainer.scale_lr, []

                def scale_lr(*arguments):
                    done.append(step(*arguments))
                    if len(done) == last:
                        raise Kill

                trainer.scale_lr = scale_lr
            return trainer

    with pytest.raises(Kill):
        Killed(make_trainer, [7]).run(tmp_path / "parts")
    parts = Attempts(make_trainer, []).run(tmp_path / "parts")
    assert parts.counters.rollbacks == 1
    state.assert_same(state.of(parts), state.of(whole))


def test_where_nothing_diverges_nothing_changes(make_trainer, state, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    plain = make_trainer()
    train(plain, SHORT, tmp_path / "a", loss_limit=0)
    guarded = Attempts(make_trainer, []).run(tmp_path / "b")
    state.assert_same(state.of(guarded), state.of(plain))


def test_a_run_that_was_asked_to_stop_does_not_roll_back(make_trainer, run):
    trainer = make_trainer()
    step = trainer.base_step

    def stopped():
        if trainer.counters.g_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step()

    trainer.base_step = stopped
    with pytest.raises(Interrupted) as stop:
        explode(trainer, 7)
        train_with_rollbacks(trainer, None, SHORT, run, max_rollbacks=3)
    assert stop.value.checkpoint == run / "checkpoints" / "joint-00000001"


def test_the_best_checkpoint_is_written_when_it_is_measured(make_trainer, run):
    """Not only where one is due; and it stays, also after a rollback to it."""
    values = iter([5.0, 3.0, 4.0, 4.0, 1.0, 2.0, 2.0])
    schedule = replace(SHORT, checkpoint_every=100)
    options = {
        "evaluations": [(1, lambda trainer: {"FD": next(values), "other": 0.0})],
        "measures": {"joint": ("FD", True), "refine": ("FD", False)},
    }
    attempts = Attempts(make_trainer, [10])  # base step 3
    attempts.run(run, schedule=schedule, keep=1, **options)
    assert attempts.made[1][0] == "joint-00000002"
    # 5, 3; from there 4 and the end of the stage; refining 4, 1, 2, 2, of which the highest is the best
    names = [p.name for p in checkpoints(run)]
    assert names == ["joint-00000002", "joint-00000003", "refine-00000001", "refine-00000004"]
    assert all(p.isfinite().all() for p in GEBM.load(checkpoints(run)[0]).parameters())
