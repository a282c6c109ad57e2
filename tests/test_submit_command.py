"""`gebm submit`, on submitit's executor for one machine: a real job, really told to make room."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from gebm.checkpoints import checkpoints
from gebm.cli import run as cli
from gebm.commands import submit
from gebm.config import Config
from gebm.parsing import parse
from tests.jobs.launching import environment

FLAGS = ["--dataset=digits", "--width=0.1", "--Z_dim=8", "--b_size=16", "--n_iter_d=1", "--n_iter_d_init=1"]
FLAGS += ["--refine_iter=0", "--disp_freq=1", "--log_dir=runs", "--log_name=a", "--slurm_gpus=0", "--slurm_cpus=1"]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(condition, timeout_s: float = 500) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def rows(run: Path) -> list[dict]:
    file = run / "stats.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the job's process in /proc")
def test_a_job_that_has_to_make_room_is_saved_queued_again_and_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, environment()[name])
    run = tmp_path / "runs" / "a"
    controller = int(submit.main(*parse([*FLAGS, "--total_gen_iter=40"], "submit")))
    until(lambda: len(rows(run)) >= 3)
    (task,) = children(controller)
    os.kill(task, signal.SIGUSR2)  # as SLURM does before it takes the place away
    until(lambda: task not in children(controller))
    saved = checkpoints(run)
    assert len(saved) == 1 and 3 <= int(saved[0].name.split("-")[1]) < 40
    os.waitpid(controller, 0)  # the job goes on by itself
    assert [row["g_step"] for row in rows(run)] == list(range(1, 41))
    (output,) = (tmp_path / "runs" / "jobs" / "a").glob("*_0_log.out")
    assert f"resuming runs/a from {saved[0].name}" in output.read_text()
    assert (run / "report.html").is_file()


def test_what_is_wrong_with_a_training_is_said_before_it_is_queued(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli([*FLAGS, "--train_mode=energy"], "submit") == 2
    assert "--train_mode energy trains on a frozen base" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_submitit_one_line_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert cli(FLAGS, "submit") == 2
    assert capsys.readouterr().err.startswith("gebm: error: gebm submit: needs submitit, pip install 'gebm[slurm]'")


def test_several_gpus_are_several_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {}

    class Executor:
        cluster = "slurm"

        def __init__(self, **options):
            found.update(options)

        def update_parameters(self, **parameters):
            found.update(parameters)

        def submit(self, training):
            found["training"] = training
            return type("Job", (), {"job_id": "7", "paths": type("Paths", (), {"stdout": "out"})})

    submitit = type(sys)("submitit")
    submitit.AutoExecutor = Executor
    monkeypatch.setitem(sys.modules, "submitit", submitit)
    flags = ["--slurm_gpus=4", "--slurm_partition=gpu", "--slurm_hours=1.5", "--b_size=64", "--log_name=a"]
    assert submit.main(*parse(flags, "submit")) == "7"
    assert found["gpus_per_node"] == 4 and found["timeout_min"] == 90
    assert found["slurm_partition"] == "gpu" and "slurm_account" not in found
    config, given = parse(found["training"].flags, "train")
    assert config == Config(**{k: getattr(config, k) for k in given}) and config.dataparallel and config.b_size == 64
    assert config.log_name == "a" and Path(found["training"].run) == Path("runs/a")
