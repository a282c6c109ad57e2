"""`--use_scheduler` through the command line: the rates that come out, resumption, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from gebm.checkpoints import checkpoints
from gebm.cli import main
from gebm.training.schedules import ThreeSample

# 1397 images in batches of 256: an epoch is 5.5 energy steps; they are 1 before each of 15 base steps
TINY = (
    "train --device -2 --dataset digits --g_model dcgan --d_model dcgan --Z_dim 4 --width .05 --b_size 256 "
    "--n_iter_d 1 --n_iter_d_init 1 --refine_iter 2 --checkpoint_freq 4 --disp_freq 1 --lr 1e-3 --lr_generator 2e-3 "
    "--fid_features pixels --sample_b_size 500"
).split()
FILES = ("base.safetensors", "energy.safetensors", "training.safetensors")
EPOCHS = [(step - 1) * 256 // 1397 for step in range(2, 17)]  # of the base steps, after their energy step
SCHEDULES = {
    "MultiStepLR": ("--milestone 1,2 --scheduler_gamma .5", [0.5**epoch for epoch in EPOCHS]),
    "ExponentialLR": ("--scheduler_gamma .25", [0.25**epoch for epoch in EPOCHS]),
    "mmd": ("--lr_decay .1", [1] * 10 + [0.1] * 5),  # tests at 6, 8 and 10, failed all
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of its own, one thread, no GPU; the test looks 4 base steps back, every second one, and never passes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name, value in {"every": 2, "lag": 4, "level": -1.0}.items():
        monkeypatch.setattr(ThreeSample, name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "stats.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_of_a_run_that_was_extended_are_those_of_one_that_was_not(name):
    flags, factors = SCHEDULES[name]
    argv = [*TINY, "--use_scheduler", "--scheduler", name, *flags.split()]
    assert main([*argv, "--total_gen_iter", "15", "--log_name", "whole"]) == 0
    # without a refinement, so that the joint stage can go on
    assert main([*argv, "--total_gen_iter", "7", "--log_name", "parts", "--refine_iter", "0"]) == 0
    assert main(["train", "--resume", "runs/parts", "--total_gen_iter", "15", "--refine_iter", "2"]) == 0
    for run in ("runs/whole", "runs/parts"):
        joint = [r for r in rows(run) if "lr_generator" in r]
        assert [r["lr_generator"] for r in joint] == pytest.approx([2e-3 * f for f in factors])
        assert joint[-1]["lr"] == pytest.approx(1e-3 * factors[-1])
        assert [r["lr"] for r in rows(run) if r["stage"] == "refine"] == pytest.approx([1e-3, 5e-4])
        tests = [(r["g_step"], r["mmd_failures"]) for r in rows(run) if "mmd_p" in r]
        assert tests == ([(6, 1), (8, 2), (10, 3), (12, 1), (14, 2)] if name == "mmd" else [])
    for file in FILES:
        one, other = (checkpoints(f"runs/{run}")[-1] / file for run in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes(), file


def test_mmd_compares_the_base_with_the_images_it_learns(monkeypatch):
    seen = []

    def test(self, base):
        seen.append((self, self.sample(base), self.sample(base)))
        return {}

    monkeypatch.setattr(ThreeSample, "test", test)
    argv = [*TINY, "--use_scheduler", "--scheduler", "mmd", "--total_gen_iter", "4", "--refine_kale", ".1"]
    assert main([*argv, "--fid_features", "pixels-8x8", "--seed", "3"]) == 0
    (schedule, first, again), (_, later, _) = seen
    assert schedule.key == "pixels-8x8" and schedule.data.shape == first.shape == (1258, 64)  # less the tenth set aside
    assert len(schedule.data.unique(dim=0)) == 1258
    assert torch.equal(first, again) and not torch.equal(first, later)  # the same latents, another base


def test_a_run_too_short_for_the_test_says_so(capsys):
    argv = [*TINY, "--use_scheduler", "--scheduler", "mmd", "--total_gen_iter"]
    for steps in (10, 11):
        assert main([*argv, str(steps), "--save_nothing"]) == 0
        said = "learning rates stay as they are, base step 10 is the first to lower them" in capsys.readouterr().out
        assert said == (steps == 10)


def test_without_use_scheduler_the_rates_are_constant():
    assert main([*TINY, "--total_gen_iter", "12", "--log_name", "x"]) == 0
    assert {r["lr_generator"] for r in rows("runs/x") if "lr_generator" in r} == {2e-3}


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--scheduler mmd", "--scheduler mmd: needs --use_scheduler; give that too, or leave the flag out"),
        ("--milestone 3,4", "--milestone 3,4: needs --use_scheduler --scheduler MultiStepLR; "),
        ("--use_scheduler --lr_decay .5", "--lr_decay 0.5: needs --use_scheduler --scheduler mmd; "),
        ("--use_scheduler --scheduler mmd --scheduler_gamma .5", "--scheduler MultiStepLR or ExponentialLR; "),
        ("--use_scheduler --milestone 10,50,50", "--milestone 10,50,50: epochs must rise, as in 10,50,70"),
        ("--use_scheduler --milestone 10,5", "--milestone 10,5: epochs must rise"),
        ("--use_scheduler --milestone ten", "whole numbers with commas between"),
        ("--use_scheduler --train_mode energy --g_path x", "--train_mode energy has none"),
        ("--use_scheduler --train_mode base --d_path x", "--train_mode base has none; take mmd"),
    ],
)
def test_what_cannot_act_is_refused_in_one_line(capsys, flags, line):
    assert main([*TINY, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_runs_own_configuration_is_never_refused():
    assert main([*TINY, "--total_gen_iter", "1", "--log_name", "x"]) == 0
    assert main(["train", "--config", "runs/x/config.yaml", "--log_name", "y"]) == 0
    flags = "--use_scheduler --scheduler ExponentialLR --scheduler_gamma .5 --log_name z".split()
    assert main(["train", "--config", "runs/x/config.yaml", *flags]) == 0
    assert main(["train", "--config", "runs/z/config.yaml", "--log_name", "w"]) == 0
