"""What a training run says of itself."""

import logging

import pytest
import torch

from gebm.training.log import BELOW_ZERO, TrainingLog
from gebm.training.loop import Schedule, train


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "gebm")
    return lambda: [record.getMessage() for record in caplog.records]


def test_kale_that_stays_below_zero_is_said_once(make_trainer, run, said):
    with TrainingLog(run, make_trainer()) as log:
        log.stage("joint", 0, 100)
        for kale in [-1.0] * (BELOW_ZERO - 1) + [0.1] + [-1.0] * (BELOW_ZERO + 3):
            log.collect({"kale": torch.tensor(kale)})
            log.write()
    assert [" KALE with c has been below zero" in line for line in said()].count(True) == 1


def test_a_line_has_kale_in_both_forms_and_the_effective_sample_size(make_trainer, run, said):
    schedule = Schedule(base_steps=2, n_iter_d=1, n_iter_d_init=1, refine_steps=0, log_every=1)
    train(make_trainer(), schedule, run, save=False)
    lines = [line for line in said() if line.startswith("joint 2/2")]
    assert lines and all(f"  {name} " in lines[-1] for name in ("kale", "(dv)", "ess", "c"))


@pytest.mark.parametrize("values, told", [([5.0, 7.0, 4.0], [2]), ([5.0, 5.9, 6.1], [3]), ([5.0, 4.0, 3.0], [])])
def test_a_base_that_has_lost_ground_is_told_of(make_trainer, run, said, values, told):
    """By more than a fifth of the best so far, whose checkpoint stays."""
    schedule = Schedule(base_steps=3, n_iter_d=1, n_iter_d_init=1, refine_steps=0, checkpoint_every=1)
    found = iter(values)
    evaluations = [(1, lambda trainer: {"FD": next(found)})]
    train(make_trainer(), schedule, run, keep=1, evaluations=evaluations, measures={"joint": ("FD", True)})
    lines = [line for line in said() if "lost ground" in line]
    assert [line.split()[1] for line in lines] == [f"{step}/3" for step in told]
    best = f"joint-{values.index(min(values)) + 1:08d}"
    assert (run / "checkpoints" / best).is_dir()
    if told:
        before = min(values[: told[0] - 1])
        assert f"was {before:.4g} at joint-{values.index(before) + 1:08d}" in lines[0]
