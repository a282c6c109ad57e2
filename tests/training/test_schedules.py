"""Factors as functions of the epoch, the three-sample schedule's counting, and resumption with each of them."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from gebm.checkpoints import checkpoints
from gebm.data import to_uint8
from gebm.metrics.features import Pixels
from gebm.networks.common import evaluating
from gebm.training import schedules
from gebm.training.checkpoint import load_checkpoint
from gebm.training.loop import Interrupted, Schedule, train
from gebm.training.schedules import Exponential, LRSchedule, MultiStep, ThreeSample, energy_steps, remaining


@pytest.mark.parametrize("step", [0, 500, 1000, 149_500])
def test_many_energy_steps_at_the_start_and_at_every_500th_base_step(step):
    assert energy_steps(step, 5, 100) == 100


@pytest.mark.parametrize("step", [1, 2, 24, 25, 100, 499, 501, 999, 1001])
def test_few_energy_steps_otherwise(step):
    assert energy_steps(step, 5, 100) == 5


def test_the_factor_falls_linearly_and_never_reaches_zero_in_a_step():
    factors = [remaining(step, 4) for step in range(4)]
    assert factors == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (MultiStep((2, 3, 7), 0.8), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, (2, 3, 7), 0.8)),
        (Exponential(0.8), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8)),
    ],
    ids=["MultiStepLR", "ExponentialLR"],
)
def test_epochs_are_those_of_torch(ours, theirs):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = theirs(optimizer)
    for epoch in range(10):
        assert ours.factor(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()


def lags(monkeypatch, every, lag):
    for name, value in {"every": every, "lag": lag}.items():
        monkeypatch.setattr(ThreeSample, name, value)


def test_three_failures_in_a_row_lower_the_rates_and_the_count_starts_anew(monkeypatch):
    lags(monkeypatch, 1, 2)
    monkeypatch.setattr(schedules, "three_sample_test", lambda data, current, previous: pairs.append(
        (float(current), float(previous))) or type("Result", (), {"p_value": p_values.pop(0)}))  # fmt: skip
    p_values, pairs = [0.11, 0.5, 0.09, 0.2, 0.2, 0.9, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3], []
    numbers = iter(range(99))
    schedule = ThreeSample(0.5, torch.zeros(1), lambda base: torch.tensor(float(next(numbers))), "key")
    assert [schedule.test(None) for _ in range(2)] == [{}, {}]
    rows = [schedule.test(None) | {"factor": schedule.factor(0)} for _ in range(12)]
    assert [r["mmd_p"] for r in rows] == [0.11, 0.5, 0.09, 0.2, 0.2, 0.9, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3]
    assert [r["mmd_failures"] for r in rows] == [1, 2, 0, 1, 2, 3, 1, 2, 0, 1, 2, 3]
    assert [r["factor"] for r in rows] == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25]
    assert pairs == [(i + 2, i) for i in range(12)]  # against `lag` before


def test_as_published():
    assert (ThreeSample.every, ThreeSample.lag, ThreeSample.level, ThreeSample.patience) == (2000, 20_000, 0.1, 3)
    assert ThreeSample(0.8, torch.zeros(4, 2), lambda base: None, "key").first == 26_000


# In training: 40 images in batches of 8, so an epoch is 5 energy steps

LONG = Schedule(base_steps=8, n_iter_d=2, n_iter_d_init=3, refine_steps=3, log_every=1, checkpoint_every=3)
NAMES = ["constant", "MultiStepLR", "ExponentialLR", "mmd"]


@pytest.fixture
def scheduled(make_trainer, monkeypatch):
    """A trainer with a schedule by name, and the evaluations it needs; mmd tests every second step against 4 before."""
    lags(monkeypatch, 2, 4)
    monkeypatch.setattr(ThreeSample, "level", -1.0)  # no test passes: a fall at base steps 10 and 16

    def make(name, **options):
        trainer = make_trainer(**options)
        latents = trainer.model.prior.sample(20, torch.Generator().manual_seed(3), like=trainer.model.log_partition)

        def sample(base):
            with evaluating(base):
                return Pixels()(to_uint8(base(latents)))

        data = Pixels()(trainer.batches.data[:20])
        trainer.lr_schedule = {
            "constant": LRSchedule(), "MultiStepLR": MultiStep((1, 3), 0.5), "ExponentialLR": Exponential(0.5),
            "mmd": ThreeSample(0.5, data, sample, "pixels"),
        }[name]  # fmt: skip

        def test(trainer):
            return trainer.lr_schedule.test(trainer.sampled_base) if trainer.counters.stage == "joint" else {}

        return trainer, [(2, test)] if name == "mmd" else []

    return make


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_rates_in_training(scheduled, run, name):
    trainer, evaluations = scheduled(name, lr=1e-2)
    train(trainer, replace(LONG, base_steps=14), run, evaluations=evaluations)
    joint = [r for r in rows(run) if "lr_generator" in r]
    epochs = [energy_steps // 5 for energy_steps in range(3, 31, 2)]
    factors = {
        "constant": [1] * 14,
        "MultiStepLR": [0.5 ** ((epoch >= 1) + (epoch >= 3)) for epoch in epochs],
        "ExponentialLR": [0.5**epoch for epoch in epochs],
        "mmd": [1] * 10 + [0.5] * 4,
    }[name]
    assert [r["lr_generator"] for r in joint] == pytest.approx([1e-2 * f for f in factors])
    # the energy's are means over the steps before a base step, in which an epoch may end
    assert all(a["lr"] >= a["lr_generator"] - 1e-12 for a in joint)
    assert joint[-1]["lr"] == pytest.approx(1e-2 * factors[-1])
    refining = [r["lr"] for r in rows(run) if r["stage"] == "refine" and "lr" in r]
    assert refining == pytest.approx([1e-2, 1e-2 * 2 / 3, 1e-2 / 3])  # from the configured rate
    tests = [(r["g_step"], r["mmd_failures"]) for r in rows(run) if "mmd_p" in r]
    assert tests == ([(6, 1), (8, 2), (10, 3), (12, 1), (14, 2)] if name == "mmd" else [])


def test_the_rates_are_those_of_the_updates(scheduled, run):
    for name, moved in (("constant", 14), ("ExponentialLR", 5 * 1 + 5 * 0.5 + 4 * 0.25)):
        trainer, _ = scheduled(name, sgd=0.0, lr=1.0, penalty="none")
        for p in trainer.model.energy.parameters():
            p.register_hook(torch.ones_like)  # a gradient of one: weights move by the rates of the energy steps
        weight = next(trainer.model.energy.parameters()).flatten()
        start = weight[0].item()
        steps = replace(LONG, base_steps=1, n_iter_d_init=14, refine_steps=0)
        train(trainer, steps, run, save=False)
        assert start - weight[0].item() == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize("name, ema", [*((name, 0.0) for name in NAMES[1:]), ("mmd", 0.8)])
def test_stopped_at_every_third_update_and_resumed(scheduled, state, tmp_path, name, ema):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    schedule = replace(LONG, base_steps=12)
    straight, evaluations = scheduled(name, ema=ema)
    train(straight, schedule, whole, evaluations=evaluations)
    stops = 0
    while True:
        trainer, evaluations = scheduled(name, ema=ema)
        if found := checkpoints(parts):
            load_checkpoint(found[-1], trainer)
        _stop_after(trainer, 3)
        try:
            train(trainer, schedule, parts, evaluations=evaluations)
            break
        except Interrupted:
            stops += 1
    assert stops == (3 + 11 * 2 + 12 + 3) // 3
    state.assert_same(state.of(trainer), state.of(straight))
    for file in ("base.safetensors", "energy.safetensors", "training.safetensors", "training.json"):
        assert (checkpoints(parts)[-1] / file).read_bytes() == (checkpoints(whole)[-1] / file).read_bytes()
    a, b = ([r for r in rows(path) if "mmd_p" in r] for path in (whole, parts))
    assert a == b and len(a) == (4 if name == "mmd" else 0)
    assert trainer.lr_schedule.factor(trainer.epoch) < 1


def _stop_after(trainer, updates):
    done = []

    def counted(step):
        def wrapped():
            done.append(step())
            if len(done) == updates:
                os.kill(os.getpid(), signal.SIGTERM)
            return done[-1]

        return wrapped

    trainer.energy_step, trainer.base_step = counted(trainer.energy_step), counted(trainer.base_step)


def test_a_resumed_run_may_take_another_schedule(scheduled, run):
    trainer, evaluations = scheduled("mmd")
    train(trainer, replace(LONG, refine_steps=0), run, evaluations=evaluations)
    other, _ = scheduled("ExponentialLR")
    load_checkpoint(checkpoints(run)[-1], other)
    assert other.lr_schedule.factor(other.epoch) == 0.5**3
    again, _ = scheduled("mmd")
    again.lr_schedule.decay = 0.9
    again.lr_schedule.decays = 7
    load_checkpoint(checkpoints(run)[-1], again)
    assert (again.lr_schedule.decays, again.lr_schedule.failures, len(again.lr_schedule.earlier)) == (0, 2, 2)
    state = trainer.state_dict() | {"lr_schedule": {}}
    fresh, _ = scheduled("mmd")
    fresh.load_state_dict(state)
    del state["lr_schedule"]  # a checkpoint from before there were schedules
    fresh.load_state_dict(state)
    assert fresh.lr_schedule.earlier == []


def test_a_test_on_other_features_is_refused(scheduled, run):
    trainer, _ = scheduled("mmd")
    train(trainer, replace(LONG, base_steps=1, refine_steps=0), run)
    other, _ = scheduled("mmd")
    other.lr_schedule.key = "other"
    with pytest.raises(ValueError, match="the run's test was on other features"):
        load_checkpoint(checkpoints(run)[-1], other)
