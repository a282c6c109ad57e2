"""Several processes give what one gives; these run on the CPU over gloo, by real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from gebm import parallel
from gebm.checkpoints import checkpoints
from gebm.cli import run as cli
from gebm.commands.launch import as_arguments
from gebm.config import Config
from tests.jobs.launching import ROOT, environment, finish, start

TRAIN = ["--dataset=digits", "--width=0.1", "--Z_dim=8", "--b_size=16", "--n_iter_d=2", "--n_iter_d_init=2"]
TRAIN += ["--refine_iter=5", "--disp_freq=1", "--optimizer=SGD", "--lr=0.01", "--lr_generator=0.01", "--device=-2"]


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes that are started, for equal bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def job(name: str, folder: Path, *words: str, processes: int = 2) -> list[subprocess.Popen]:
    return start(
        processes, [str(ROOT / "tests" / "jobs" / f"{name}.py"), str(folder / f"{name}-{processes}"), *words], folder
    )


def gebm(folder: Path, *words: str, processes: int = 2) -> list[subprocess.Popen]:
    return start(processes, ["-m", "gebm", *words], folder)


def said(folder: Path, rank: int, what: str = "err") -> str:
    return (folder / f"{what}.{rank}").read_text()


def rows(run: Path) -> list[dict]:
    file = run / "stats.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def until(condition, started: list[subprocess.Popen], timeout_s: float = 500) -> None:
    """Wait for it, while the processes run."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end and all(process.poll() is None for process in started)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "criterion", "noise_factor", "optimizer", "dtype", "bound"),
    [
        ("sngan", "kale", 1, "SGD", "float32", 1e-5),
        ("resnet-sn", "kale", 2, "SGD", "float32", 1e-5),
        ("sngan", "kale", 1, "SGD", "float64", 1e-12),
        ("resnet-sn", "kale", 2, "SGD", "float64", 1e-12),
        ("resnet-sn", "hinge", 1, "Adam", "float64", 1e-12),
    ],
)
def test_steps_of_two_processes_are_those_of_one(tmp_path, network, criterion, noise_factor, optimizer, dtype, bound):
    words = [network, criterion, str(noise_factor), optimizer, dtype]
    assert finish(job("steps", tmp_path, *words) + job("steps", tmp_path, *words, processes=1)) == [0, 0, 0]
    one, *two = (json.loads((tmp_path / f"steps-{name}").read_text()) for name in ("1.0", "2.0", "2.1"))
    assert two[0] == two[1]  # weights, batch statistics, spectral vectors, the moving average and every statistic
    assert len(one["steps"]) == 21
    for i, (ours, theirs) in enumerate(zip(two[0]["steps"], one["steps"], strict=True)):
        assert ours == pytest.approx(theirs, abs=bound), i
    losses = [step["2.base_loss"] for step in one["steps"][:-1]]
    assert np.std(losses) > 1e-3  # they went somewhere
    for name, values in one["state"].items():
        assert two[0]["state"][name] == pytest.approx(values, abs=10 * bound if dtype == "float32" else 1e-9), name


@pytest.mark.slow
def test_draws_of_two_processes_are_those_of_one_bit_for_bit(tmp_path):
    assert finish(job("draws", tmp_path) + job("draws", tmp_path, processes=1)) == [0, 0, 0]
    one, *two = (dict(np.load(tmp_path / f"draws-{name}.npz")) for name in ("1.0", "2.0", "2.1"))
    assert len(one["langevin/images"]) == 23 and len(one["one chunk/images"]) == 4
    assert len({row.tobytes() for row in one["langevin/latents"]}) == 23  # none twice
    assert "not finite" in str(one["error"])  # of the second chunk, raised in both processes
    for process in two:
        assert process.keys() == one.keys()
        different = [
            name for name in one if not np.array_equal(process[name], one[name], equal_nan=one[name].dtype.kind == "f")
        ]
        assert not different


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_the_run_goes_on_with_one_and_with_two(tmp_path, monkeypatch):
    # float64, as the rounding of float32 grows with the energy's slope over the steps
    words = [
        "train",
        *TRAIN,
        "--dtype=64",
        "--total_gen_iter=15",
        "--log_dir=.",
        "--checkpoint_freq=1000",
        "--log_name",
    ]
    monkeypatch.chdir(tmp_path)
    assert cli([*words[1:], "whole"], "train") == 0
    two = gebm(tmp_path, *words, "stopped")
    until(lambda: len(rows(tmp_path / "stopped")) >= 4, two)
    two[1].send_signal(signal.SIGTERM)
    assert finish(two) == [128 + signal.SIGTERM] * 2
    assert said(tmp_path, 0, "out").count("stopped by signal 15: saved as") == 1
    assert said(tmp_path, 1, "out") == "" == said(tmp_path, 1)
    assert len(checkpoints(tmp_path / "stopped")) == 1
    again = gebm(tmp_path, "train", "--resume=stopped", processes=1)
    before = len(rows(tmp_path / "stopped"))
    until(lambda: len(rows(tmp_path / "stopped")) >= before + 3, again)
    again[0].send_signal(signal.SIGINT)
    assert finish(again) == [128 + signal.SIGINT]
    assert finish(gebm(tmp_path, "train", "--resume=stopped")) == [0, 0]
    one, two = rows(tmp_path / "whole"), rows(tmp_path / "stopped")
    assert len(one) == len(two) == 20
    for ours, theirs in zip(two[-3:], one[-3:], strict=True):  # a row that a stop interrupts is of what came after
        timing = {"images_per_s", "elapsed_s"}
        expected = {key: value for key, value in theirs.items() if key not in timing}
        assert {key: value for key, value in ours.items() if key not in timing} == pytest.approx(expected, abs=1e-9)
    one, two = (checkpoints(tmp_path / name)[-1] for name in ("whole", "stopped"))
    for file in ("base.safetensors", "energy.safetensors"):
        ours, theirs = (safetensors.torch.load_file(folder / file) for folder in (two, one))
        assert all(torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-9) for key in theirs)
    assert (tmp_path / "stopped" / "report.html").is_file()


@pytest.mark.slow
def test_the_end_of_one_process_ends_the_other_in_one_line_and_leaves_a_run_to_go_on_with(tmp_path):
    two = gebm(
        tmp_path, "train", *TRAIN, "--total_gen_iter=100000", "--log_dir=.", "--log_name=a", "--checkpoint_freq=2"
    )
    until(lambda: len(checkpoints(tmp_path / "a")) == 2, two)
    two[1].kill()
    assert finish(two) == [1, -signal.SIGKILL]
    (line,) = said(tmp_path, 0).splitlines()
    assert line == "gebm: error: another process of this run has ended, and so does this one: go on with --resume a"
    step = int(checkpoints(tmp_path / "a")[-1].name.split("-")[1])
    assert finish(gebm(tmp_path, "train", "--resume=a", f"--total_gen_iter={step + 2}")) == [0, 0]


@pytest.mark.slow
def test_torchrun_and_a_signal_that_asks_for_another_place(tmp_path):
    words = ["train", *TRAIN, "--total_gen_iter=100000", "--log_dir=.", "--log_name=a"]
    code = f"import sys; from gebm.commands.launch import launch; sys.exit(launch(2, 'train', {words[1:]}))"
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment())
    until(lambda: rows(tmp_path / "a"), [launcher])
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.wait(500) == os.EX_TEMPFAIL
    assert len(checkpoints(tmp_path / "a")) == 1


@pytest.mark.slow
def test_sampling_on_two_processes_writes_what_one_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli([*TRAIN, "--total_gen_iter=2", "--log_dir=.", "--log_name=pair"], "train") == 0
    flags = ["--g_path=pair", "--dataset=digits", "--fid_features=pixels", "--eval_fid", "--fid_samples=120"]
    flags += ["--sample_b_size=25", "--num_sampler_steps=10", "--device=-2", "--log_dir=."]
    assert cli([*flags, "--n_samples=50", "--log_name=one"], "sample") == 0
    assert finish(gebm(tmp_path, "sample", *flags, "--n_samples=50", "--log_name=two")) == [0, 0]
    assert "FD" in said(tmp_path, 0, "out") and said(tmp_path, 1, "out") == said(tmp_path, 1) == ""
    one, two = (dict(np.load(tmp_path / name / "samples.npz")) for name in ("one", "two"))
    assert all(np.array_equal(one[key], two[key]) for key in one)
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    ours = {key for key in one if not re.search("second|per_s", key)}
    assert {key: two[key] for key in ours} == {key: one[key] for key in ours}
    assert {file.name for file in (tmp_path / "one").iterdir()} == {file.name for file in (tmp_path / "two").iterdir()}
    evaluate = ["pair", *flags[1:], "--json"]
    assert cli([*evaluate, "one.json"], "evaluate") == 0
    assert finish(gebm(tmp_path, "evaluate", *evaluate, "two.json")) == [0, 0]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["pair"] for name in ("one", "two"))
    assert two["metrics"] == one["metrics"] and two["kale"] == one["kale"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--b_size=15"], "--b_size 15: .* must be a multiple of the 2 processes; give 14"),
        (["--criterion=cd"], "--criterion cd: 2 processes; .*"),
        (["--dataset=toy:moons"], "--dataset toy:moons: 2 processes; .*"),
        (["--dataset=toy:moons", "--n_splits=2"], "--dataset toy:moons: 2 processes; .*"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gebm.commands.checks.parallel", SimpleNamespace(processes=lambda: 2))
    assert cli(flags, "train") == 2
    assert re.fullmatch(f"gebm: error: {message}\n", capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_an_error_is_said_by_the_first_process_alone(tmp_path):
    two = gebm(tmp_path, "train", *TRAIN, "--b_size=15")
    assert two[0].wait(500) == 2 and len(said(tmp_path, 0).splitlines()) == 1
    two[1].terminate()  # as the launcher does
    two[1].wait()
    assert said(tmp_path, 1) == ""


def test_commands_of_one_process_say_so_under_a_launcher(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert cli([], "demo") == 2
    assert "gebm demo: is one process" in capsys.readouterr().err


@pytest.mark.slow
def test_with_one_process_nothing_is_exchanged_or_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import sys; from gebm.cli import run; assert run(sys.argv[1:], 'train') == 0"
    code += "; import torch.distributed as dist; assert 'accelerate' not in sys.modules and not dist.is_initialized()"
    words = [sys.executable, "-c", code, *TRAIN, "--total_gen_iter=1", "--dataparallel", "--slurm_id=7"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("so this is one process") == 1
    (file,) = Path("runs").glob("*/config.yaml")
    assert Config.load(file).slurm_id == "7"


def test_the_job_number_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*TRAIN, "--total_gen_iter=1", "--refine_iter=0", "--log_name=a"]
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    assert cli(words, "train") == 0 and Config.load("runs/a/config.yaml").slurm_id == "41"
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert cli(["--resume=runs/a", "--total_gen_iter=2"], "train") == 0
    assert Config.load("runs/a/config.yaml").slurm_id == "42"


def test_arguments_say_again_what_was_given():
    config = Config(dataset="folder:a b", width=0.5, ema=0.0, dataparallel=True, log_name="")
    words = as_arguments(config, {"dataset", "width", "dataparallel", "log_name", "mode"})
    assert sorted(words) == ["--dataparallel=true", "--dataset=folder:a b", "--log_name=", "--width=0.5"]


def test_shares_are_put_back_in_order():
    assert parallel.in_order([[0, 2, 4], [1, 3]]) == [0, 1, 2, 3, 4]
    assert parallel.in_order([["a"], []]) == ["a"]
