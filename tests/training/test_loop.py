"""The loop: what it does in which order, and that a run which was stopped goes on to the same bits."""

import json
import os
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from gebm.checkpoints import checkpoints
from gebm.data import from_uint8
from gebm.metrics.partition import base_energies, energies, evaluate_kale
from gebm.model import GEBM
from gebm.training.checkpoint import load_checkpoint
from gebm.training.loop import DivergenceError, Interrupted, Schedule, train

# 3 + 2 + 2 energy steps and 3 base steps, then 4 energy steps: 14 updates
SHORT = Schedule(base_steps=3, n_iter_d=2, n_iter_d_init=3, refine_steps=4, log_every=1, checkpoint_every=2)
UPDATES = 14


def count_updates(trainer, then):
    """Call `then(number of the update)` after each update of the trainer; returns the list of their names."""
    done = []

    def counted(name, original):
        def step():
            stats = original()
            done.append(name)
            then(len(done))
            return stats

        return step

    for name in ("energy_step", "base_step"):
        setattr(trainer, name, counted(name, getattr(trainer, name)))
    return done


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def test_order_of_the_steps(make_trainer, run):
    trainer = make_trainer()
    done = count_updates(trainer, lambda n: None)
    train(trainer, SHORT, run)
    assert "".join(name[0] for name in done) == "eeeb" + "eeb" + "eeb" + "eeee"


def test_energy_steps_are_many_at_base_steps_0_500_and_1000(make_trainer, run):
    trainer, energy_steps_before = make_trainer(), []
    counters, loss = trainer.counters, {"energy_loss": torch.zeros(())}

    def energy_step():
        counters.e_step += 1
        return loss

    def base_step():
        energy_steps_before.append(counters.pending)
        counters.g_step, counters.pending = counters.g_step + 1, 0
        return loss

    trainer.energy_step, trainer.base_step = energy_step, base_step
    train(trainer, Schedule(base_steps=1003, n_iter_d=2, n_iter_d_init=7, refine_steps=0), run, save=False)
    assert energy_steps_before == [7] + [2] * 499 + [7] + [2] * 499 + [7] + [2] * 2


@pytest.mark.parametrize("mode, updates", [("both", "eeebeebeebeeee"), ("energy", "eeee"), ("base", "bbb")])
def test_train_modes(make_trainer, state, run, mode, updates):
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.log_partition.fill_(0.5)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    done = count_updates(trainer, lambda n: None)
    train(trainer, replace(SHORT, train_mode=mode), run)
    assert "".join(name[0] for name in done) == updates
    # The energy's buffers are the power iteration of its spectral norms, none in this energy.
    moved = {k.split(".")[0] for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    of_energy = {"energy", "log_partition"}
    assert moved == {"both": {"base", *of_energy}, "energy": of_energy, "base": {"base", "log_partition"}}[mode]
    loaded = GEBM.load(checkpoints(run)[-1])
    assert loaded.log_partition.item() == trainer.model.log_partition.item()
    again = make_trainer(seed=1)
    load_checkpoint(checkpoints(run)[-1], again)
    state.assert_same(state.of(again), state.of(trainer))


VARIANTS = {
    "adam": {},
    "moving average and gradient_l2": {"ema": 0.8, "penalty": "gradient_l2"},
    "momentum and float64": {"sgd": 0.9, "dtype": torch.float64, "grad_clip": 1.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode, updates", [("both", UPDATES), ("energy", 4), ("base", 3)])
def test_stopped_after_every_single_update_and_resumed(make_trainer, state, tmp_path, variant, mode, updates):
    options, schedule = VARIANTS[variant], replace(SHORT, train_mode=mode)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    straight = make_trainer(**options)
    train(straight, schedule, whole)

    def stop(n):
        if n == 1:  # in the middle of a step, as signals come
            os.kill(os.getpid(), signal.SIGTERM)

    stops = 0
    while True:
        trainer = make_trainer(**options)
        if found := checkpoints(parts):
            load_checkpoint(found[-1], trainer)
        count_updates(trainer, stop)
        try:
            train(trainer, schedule, parts)
            break
        except Interrupted as stopped:
            assert stopped.signum == signal.SIGTERM
            assert stopped.checkpoint == checkpoints(parts)[-1]
            stops += 1
            assert stops <= updates
    assert stops == updates
    state.assert_same(state.of(trainer), state.of(straight))
    for file in ("base.safetensors", "energy.safetensors", "training.safetensors"):
        assert (checkpoints(parts)[-1] / file).read_bytes() == (checkpoints(whole)[-1] / file).read_bytes()


def test_killed_after_every_update_and_resumed_from_what_was_saved_before(make_trainer, state, tmp_path):
    class Kill(BaseException):
        pass

    def die_after(last):
        def die(n):
            if n == last:
                raise Kill

        return die

    (tmp_path / "whole").mkdir()
    straight = make_trainer(ema=0.8)
    train(straight, SHORT, tmp_path / "whole")
    expected = [(r["stage"], r["g_step"], r["e_step"]) for r in rows(tmp_path / "whole")]
    for last in range(1, UPDATES + 1):
        run = tmp_path / str(last)
        run.mkdir()
        first, second = make_trainer(ema=0.8), make_trainer(ema=0.8)
        count_updates(first, die_after(last))
        with pytest.raises(Kill):
            train(first, SHORT, run)
        if found := checkpoints(run):
            load_checkpoint(found[-1], second)
        train(second, SHORT, run)
        state.assert_same(state.of(second), state.of(straight))
        assert [(r["stage"], r["g_step"], r["e_step"]) for r in rows(run)] == expected  # no row lost or twice


def test_a_signal_leaves_the_handlers_as_they_were(make_trainer, run):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    seen = []

    def stop(n):
        os.kill(os.getpid(), signal.SIGINT)
        seen.append(signal.getsignal(signal.SIGINT))  # of a second Ctrl-C, which acts at once

    trainer = make_trainer()
    count_updates(trainer, stop)
    with pytest.raises(Interrupted) as stopped:
        train(trainer, SHORT, run)
    assert stopped.value.signum == signal.SIGINT
    assert seen == before[:1]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_log(make_trainer, run):
    trainer, shown = make_trainer(), []

    def evaluate(trainer):
        shown.append(trainer.counters.g_step)
        return {"FD(x)_base": 3.0}

    train(trainer, replace(SHORT, log_every=2), run, evaluations=[(2, evaluate)])
    lines = rows(run)
    assert [(r["stage"], r["g_step"], r["refine_step"], r["e_step"]) for r in lines if "energy_loss" in r] == [
        ("joint", 2, 0, 5), ("joint", 3, 0, 7), ("refine", 3, 2, 9), ("refine", 3, 4, 11)
    ]  # fmt: skip
    assert all(a["e_step"] <= b["e_step"] for a, b in pairwise(lines))
    assert [r["e_step"] for r in lines if "FD(x)_base" in r] == [5, 9, 11]
    assert shown == [2, 3, 3]
    assert {"kale", "c", "base_loss", "images_per_s", "elapsed_s", "images"} <= lines[0].keys()
    assert "base_loss" not in lines[-1]
    assert list((run / "tensorboard").glob("events*"))
    assert {p.name for p in (run / "grids").iterdir()} == {"joint-00000002.png", "joint-00000003.png"}


def test_long_steps_are_told_of(make_trainer, run, monkeypatch, caplog):
    """Between two lines of the log there may be minutes, as base steps with a hundred energy steps take them."""
    monkeypatch.setattr("gebm.training.log.QUIET_S", 0.0)
    with caplog.at_level("INFO", "gebm"):
        train(make_trainer(), replace(SHORT, log_every=100), run)
    assert caplog.messages[0].startswith("joint 0/3  energy step ")
    assert any(line.startswith("refine 0/4  energy step ") for line in caplog.messages)


def test_rows_are_means_over_the_steps_since_the_last(make_trainer, run, tmp_path):
    (tmp_path / "each").mkdir()
    train(make_trainer(), replace(SHORT, train_mode="base"), tmp_path / "each")
    train(make_trainer(), replace(SHORT, train_mode="base", log_every=3), run)
    losses = [r["base_loss"] for r in rows(tmp_path / "each")]
    assert rows(run)[0]["base_loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_a_log_that_is_damaged_is_gone_on_with(make_trainer, run):
    """Lines that are no rows of a log are left out, whatever they hold."""
    good = '{"e_step": 0, "g_step": 0, "kale": 1.5}'
    bad = ["{", "[1]", "7", '{"e_step": "x", "g_step": [1]}', '{"e_step": 0}', '{"e_step": NaN, "g_step": 0}', "\xff"]
    (run / "stats.jsonl").write_text("\n".join([*bad, good]), encoding="latin1")
    train(make_trainer(), SHORT, run)
    assert rows(run)[0] == json.loads(good) and len(rows(run)) > 1


def test_without_saving(make_trainer, run):
    train(make_trainer(), SHORT, run, save=False)
    assert checkpoints(run) == []
    trainer = make_trainer()
    count_updates(trainer, lambda n: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as stopped:
        train(trainer, SHORT, run, save=False)
    assert stopped.value.checkpoint is None


def test_refinement_ends_at_the_wanted_kale_also_when_stopped_there(make_trainer, state, tmp_path):
    schedule = replace(SHORT, refine_steps=300, refine_kale=0.5, log_every=5, checkpoint_every=1000)
    held_out = from_uint8(make_trainer().batches.data)
    runs = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        trainer = make_trainer()
        if name == "stopped":
            last = UPDATES - 4 + runs[0].counters.refine_step
            count_updates(trainer, lambda n, last=last: os.kill(os.getpid(), signal.SIGTERM) if n == last else None)
            with pytest.raises(Interrupted):
                train(trainer, schedule, tmp_path / name, held_out=held_out)
            trainer = make_trainer()
            load_checkpoint(checkpoints(tmp_path / name)[-1], trainer)
        train(trainer, schedule, tmp_path / name, held_out=held_out)
        runs.append(trainer)
    step = runs[0].counters.refine_step
    assert 0 < step < 300 and step % 5 == 0
    state.assert_same(state.of(runs[0]), state.of(runs[1]))
    fake = base_energies(runs[0].model, 10_000, torch.Generator().manual_seed(99))
    assert evaluate_kale(energies(runs[0].model.energy, held_out), fake, 0.0).donsker_varadhan > 0.4


class Spoilt(nn.Module):
    """An energy that goes wrong after `calls` training calls: in its value, or in its gradient alone."""

    def __init__(self, energy: nn.Module, calls: int, value: bool):
        super().__init__()
        self.energy, self.calls, self.value = energy, calls, value

    def forward(self, x):
        e = self.energy(x)
        self.calls -= 1
        if self.calls >= 0:
            return e
        return e * float("nan") if self.value else e + torch.sqrt(0 * e)  # the slope of the root at 0 is infinite


def spoil(trainer, calls, value=True):
    energy = Spoilt(trainer.model.energy, calls, value)
    trainer.objective.energy = energy
    return trainer


@pytest.mark.parametrize("value", [True, False], ids=["value", "gradient"])
@pytest.mark.parametrize(
    # with one energy call a step, as without a gradient penalty
    "calls, step, good",
    [
        (0, "energy step 1", None),
        (3, "base step 1", None),
        (8, "energy step 7", "joint-00000002"),
        (11, "energy step 9", "joint-00000003"),
    ],
)
def test_divergence_names_the_step_and_the_last_good_checkpoint(make_trainer, run, calls, step, good, value):
    trainer = spoil(make_trainer(penalty="none"), calls, value)
    schedule = replace(SHORT, log_every=100)
    with pytest.raises(DivergenceError) as error:
        train(trainer, schedule, run)
    message = str(error.value)
    assert "\n" not in message
    if value:
        assert message.startswith(f"loss not finite at {step}: ")
    if good is None:
        assert "no checkpoint" in message and not checkpoints(run)
        return
    assert message.endswith(str(run / "checkpoints" / good)) and checkpoints(run)[-1].name == good
    model = GEBM.load(checkpoints(run)[-1])
    assert all(p.isfinite().all() for p in model.parameters())


def test_divergence_after_a_resume_names_the_checkpoint_from_before_it(make_trainer, run):
    train(make_trainer(), replace(SHORT, base_steps=2, refine_steps=0), run)
    trainer = make_trainer()
    load_checkpoint(checkpoints(run)[-1], trainer)
    with pytest.raises(DivergenceError, match=r"the last good checkpoint is .*joint-00000002$"):
        train(spoil(trainer, 0), SHORT, run)
