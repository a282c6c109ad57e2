"""Runs that survive: full and read-only disks, damaged checkpoints, two processes, clocks that jump, divergence."""

import contextlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import gebm.checkpoints
import gebm.model
from gebm.checkpoints import checkpoints
from gebm.cli import main
from gebm.commands import density
from gebm.commands import report as report_command
from gebm.commands import sample as sample_command
from gebm.commands import train as train_command
from gebm.commands.datasets import made_with
from gebm.commands.runs import runs_of
from gebm.config import Config
from gebm.files import atomic_folder, remove_folder
from gebm.training import loop

ROOT = Path(__file__).resolve().parent.parent
# 3 + 5 * 2 energy steps and 6 base steps, then 6 energy steps
TINY = (
    "train --device -2 --dataset digits --g_model dcgan --d_model dcgan --Z_dim 4 --width .1 --b_size 16 "
    "--total_gen_iter 6 --n_iter_d 2 --n_iter_d_init 3 --refine_iter 6 --checkpoint_freq 2 --disp_freq 2 --lr 1e-3 "
    "--no_watch"
).split()
DRAW = "--device -2 --n_samples 6 --num_sampler_steps 2 --lmc_gamma 1e-3 --temperature 1".split()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A folder of its own, and no report, which would take most of the time."""
    monkeypatch.chdir(tmp_path)
    for command in (train_command, sample_command):
        monkeypatch.setattr(command, "write_report", lambda run, allow: run)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run; tests do not write into it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "write_report", lambda run, allow: run)
        assert main([*TINY, "--log_dir", str(folder), "--log_name", "x"]) == 0
    return folder / "x"


@pytest.fixture
def mount(tmp_path):
    """mount(size) is a folder on a small file system of its own, in memory."""
    mounted = []

    def make(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this system does not let a test mount a file system")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def states(run: Path) -> dict[str, bytes]:
    """All of a run's checkpoints but the configuration, which names its place."""
    found = contents(run / "checkpoints")
    return {name: content for name, content in found.items() if Path(name).name not in ("config.yaml", "manifest.json")}


def cut(run: Path, last: str, target: Path) -> Path:
    """A copy of a run as it was when its newest checkpoint was `last`."""
    shutil.copytree(run, target)
    for path in checkpoints(target):
        if path.name > last:
            shutil.rmtree(path)
    return target


# Full and read-only disks


def fill(disk: Path, free: int) -> Path:
    """A file that leaves so many bytes free."""
    room = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - free))
    return disk / "ballast"


def one_line(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gebm: error: ")
    return line


# From nothing, through the configuration, a line of stats.jsonl, TensorBoard's file and a picture, to one file of a
# checkpoint after the other; all in pages of 4 KiB.
@pytest.mark.parametrize("free_pages", [0, 1, 2, 3, 4, 6, 9, 12, 20])
def test_a_full_disk_stops_training_in_one_line_and_it_goes_on_later(trained, mount, capsys, free_pages):
    disk = mount("4m")
    run = cut(trained, "joint-00000004", disk / "x")
    before = contents(run / "checkpoints")
    ballast = fill(disk, free_pages * 4096)
    assert main(["train", "--resume", str(run), "--log_in_file"]) == 1
    line = one_line(capsys)
    assert "No space left on device" in line and str(run) in line and ".tmp" not in line
    if free_pages:
        assert f"free some space and go on with --resume {run}" in line
    after = contents(run / "checkpoints")
    assert before.items() <= after.items() or checkpoints(run)[-1].name > "joint-00000006"
    ballast.unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert states(run) == states(trained)
    assert len((run / "stats.jsonl").read_text().splitlines()) == 6
    assert not [p for p in run.rglob(".*") if p.suffix == ".tmp"]


@pytest.mark.parametrize("free_pages", [0, 2, 6])
def test_a_full_disk_stops_sampling_in_one_line(trained, mount, capsys, free_pages):
    disk = mount("4m")
    fill(disk, free_pages * 4096)
    argv = ["sample", *DRAW, "--g_path", str(trained), "--dataset", "digits", "--log_dir", str(disk), "--log_name", "s"]
    assert main(argv) == 1
    assert "No space left on device" in one_line(capsys)
    assert [p.name for p in disk.iterdir()] == ["ballast"]


def test_a_read_only_folder_is_bad_input(trained, mount, capsys):
    disk = mount("4m")
    run = cut(trained, "joint-00000004", disk / "x")
    before = contents(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for argv in (["train", "--resume", str(run)], [*TINY, "--log_dir", str(disk)]):
        assert main(argv) == 2
        assert "is not a writable folder" in one_line(capsys)
    argv = ["sample", *DRAW, "--g_path", str(run), "--dataset", "digits", "--log_dir", str(disk)]
    assert main(argv) == 2
    assert "is not a writable folder" in one_line(capsys)
    assert contents(disk) == before


def test_a_read_only_run_is_evaluated_and_its_page_refused_before_any_work(trained, mount, monkeypatch, capsys):
    disk = mount("4m")
    run = cut(trained, "refine-00000006", disk / "x")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert main(["evaluate", str(run), "--device", "-2", "--json", "found.json"]) == 0
    out = capsys.readouterr().out
    assert f"{run}: cannot be written, so its figures are not kept there; see --json" in out
    assert "KALE" in out and json.loads(Path("found.json").read_text()).keys() == {str(run)}
    monkeypatch.setattr(report_command, "collect", None)
    assert main(["report", str(run)]) == 2
    assert "is not a writable folder); give another folder, a copy of this run" in one_line(capsys)


def test_what_was_evaluated_is_not_lost_to_a_full_disk(trained, mount, capsys):
    disk = mount("4m")
    run = cut(trained, "refine-00000006", disk / "x")
    fill(disk, 0)
    assert main(["evaluate", str(run), "--device", "-2", "--json", "found.json"]) == 1
    printed = capsys.readouterr()
    assert "KALE" in printed.out and f"No space left on device: {run}/evaluation.json" in printed.err
    assert json.loads(Path("found.json").read_text()).keys() == {str(run)}


# Damaged checkpoints


def damage(checkpoint: Path, name: str = "training.safetensors") -> None:
    content = bytearray((checkpoint / name).read_bytes())
    content[-1] ^= 1
    (checkpoint / name).write_bytes(content)


def test_resuming_goes_on_from_the_last_good_checkpoint(trained, capsys):
    run = cut(trained, "refine-00000004", Path("runs/x"))
    damage(checkpoints(run)[-1])
    assert main(["train", "--resume", str(run)]) == 0
    out = capsys.readouterr().out.splitlines()
    bad, good = run / "checkpoints" / "refine-00000004", run / "checkpoints" / "joint-00000006"
    (line,) = [line for line in out if "damaged" in line]
    reason = "is damaged (its sha256 is not the one written with it)"
    assert line == f"{bad}/training.safetensors {reason}: taking {good} instead"
    assert f"resuming {run} from joint-00000006" in out
    for name in ("base", "energy", "training"):
        file = f"refine-00000006/{name}.safetensors"
        assert (run / "checkpoints" / file).read_bytes() == (trained / "checkpoints" / file).read_bytes()


@pytest.mark.parametrize("command", ["sample", "evaluate", "train"])
def test_what_uses_a_run_takes_its_last_good_checkpoint(trained, capsys, command):
    run = cut(trained, "refine-00000006", Path("runs/x"))
    damage(checkpoints(run)[-1], "energy.safetensors")
    argv = {
        "sample": ["sample", *DRAW, "--dataset", "digits", "--log_name", "s"],
        "evaluate": ["evaluate", str(run), "--device", "-2", "--json", "found.json"],
        "train": [*TINY, "--g_path", str(run), "--d_path", str(run), "--log_name", "y"],
    }[command]
    assert main(argv) == 0
    good = "runs/x/checkpoints/refine-00000004"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert line.endswith(f"taking {good} instead")
    used = {
        "sample": lambda: json.loads(Path("runs/s/summary.json").read_text())["energy_path"],
        "evaluate": lambda: json.loads(Path("found.json").read_text())[str(run)]["energy_path"],
        "train": lambda: good,
    }[command]()
    assert used == good


def test_scoring_takes_the_last_good_checkpoint(capsys):
    rows = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    Path("t.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in rows.tolist()))
    argv = "train --device -2 --dataset csv:t.csv --g_model gaussian --d_model mlp --width .1 --total_epochs 2".split()
    assert main([*argv, "--log_name", "x", "--checkpoint_freq", "1"]) == 0
    bad, good = checkpoints("runs/x")[-1], checkpoints("runs/x")[-2]
    damage(bad, "base.safetensors")
    capsys.readouterr()
    assert main(["score", "t.csv", "--g_path", "runs/x", "--device", "-2"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert line.startswith(f"{bad}/base.safetensors") and line.endswith(f"taking {good} instead")


def test_without_a_good_checkpoint_nothing_is_done(trained, capsys):
    run = cut(trained, "refine-00000006", Path("runs/x"))
    for checkpoint in checkpoints(run):
        damage(checkpoint)
    (run / ".lock").unlink()
    before = contents(Path("runs"))
    for argv in (
        ["train", "--resume", str(run)],
        ["sample", *DRAW, "--dataset", "digits", "--log_name", "s"],
        ["evaluate", str(run), "--device", "-2"],
    ):
        assert main(argv) == 2
        assert "none of its checkpoints is whole" in one_line(capsys)
    assert contents(Path("runs")) == before


def test_the_best_checkpoint_is_kept_and_named(capsys):
    flags = "--keep 1 --eval_fid --fid_features pixels --fid_samples 40 --freq_fid 1 --lr_generator 0.5".split()
    assert main([*TINY, *flags, "--log_name", "x"]) == 0  # at such a rate the base is at its best early
    rows = [json.loads(line) for line in Path("runs/x/stats.jsonl").read_text().splitlines()]
    values = {row["g_step"]: row["FD(pixels)_base"] for row in rows if "FD(pixels)_base" in row}
    best = min(values, key=values.get)
    assert list(values) == [1, 2, 3, 4, 5, 6] and best < 6
    names = [p.name for p in checkpoints("runs/x")]
    assert names == [f"joint-{best:08d}", "joint-00000006", "refine-00000006"]
    line = f"best of its stage, FD(pixels)_base {values[best]:.4g}: runs/x/checkpoints/{names[0]}"
    assert line in capsys.readouterr().out.splitlines()


# Two processes, clocks, kills


def test_a_second_process_is_refused(trained, capsys):
    run = cut(trained, "joint-00000004", Path("runs/x"))
    code = (
        "import time, pathlib, gebm.files\n"
        "with gebm.files.alone(pathlib.Path('runs/x')): print(flush=True); time.sleep(99)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        first.stdout.readline()
        before = contents(run)
        assert main(["train", "--resume", str(run)]) == 2
        assert f"runs/x: process {first.pid} on {os.uname().nodename} is at work in it" in one_line(capsys)
        assert contents(run) == before
    finally:
        first.kill()
        first.wait()
    assert main(["train", "--resume", str(run)]) == 0  # the lock went with the process


@pytest.mark.parametrize("other", ["past", "future"])
def test_the_newest_run_is_the_one_started_or_gone_on_with_last_whatever_clocks_say(trained, other):
    for name in ("a", "b", "c"):
        assert main([*TINY, "--total_gen_iter", "1", "--refine_iter", "0", "--log_name", name]) == 0
    assert main(["train", "--resume", "runs/a", "--total_gen_iter", "2"]) == 0
    shift = {"past": -1e7, "future": 1e7}[other]
    for file in Path("runs/a" if other == "past" else "runs/b").rglob("*"):
        os.utime(file, (time.time() + shift,) * 2)
    assert [run.name for run in runs_of(Config())] == ["a", "c", "b"]
    assert main(["sample", *DRAW, "--dataset", "digits", "--log_name", "s"]) == 0
    summary = json.loads(Path("runs/s/summary.json").read_text())
    assert summary["base_path"] == "runs/a/checkpoints/joint-00000002"


def test_of_many_runs_only_those_that_may_be_meant_are_parsed(monkeypatch):
    for i in range(50):
        Path(f"runs/r{i}").mkdir(parents=True)
        Config(dataset="digits" if i in (3, 4) else "cifar10").save(f"runs/r{i}/config.yaml")
        Path(f"runs/r{i}/.serial").write_text(str(i))
    parsed = []
    load = Config.load
    monkeypatch.setattr(Config, "load", lambda path: (parsed.append(Path(path).parent.name), load(path))[1])
    assert next(runs_of(Config())).name == "r4" and parsed == ["r4"]
    assert next(runs_of(Config(), of_dataset=False)).name == "r49" and parsed == ["r4", "r49"]
    Path("runs/r40/config.yaml").write_text("{dataset: DIGITS}")  # in other ways of writing than gebm's
    assert next(runs_of(Config())).name == "r40"


def test_a_long_log_is_thinned_for_the_page_and_nothing_rare_is_lost(trained):
    run = cut(trained, "refine-00000006", Path("runs/x"))
    with open(run / "stats.jsonl", "w") as file:
        for step in range(5000):
            row = {"stage": "joint", "g_step": step, "kale": 0.5 * step} | ({"FD_base": 1.0} if step % 999 == 7 else {})
            file.write(json.dumps(row) + "\n")
    rows = report_command._rows(run / "stats.jsonl")
    assert 500 < len(rows) < 1100 and rows[-1]["kale"] == 0.5 * 4999
    assert [row["g_step"] for row in rows if "FD_base" in row] == [7, 1006, 2005, 3004, 4003]
    assert [row["g_step"] for row in rows] == sorted(row["g_step"] for row in rows)


def test_the_newest_checkpoint_is_the_one_of_most_steps_whatever_clocks_say(trained):
    run = cut(trained, "joint-00000006", Path("runs/x"))
    for path in checkpoints(run)[-1].rglob("*"):
        os.utime(path, (0, 0))
    assert main(["train", "--resume", str(run)]) == 0
    assert states(run) == states(trained)


def test_what_a_kill_left_is_cleared_away_at_the_next_start(trained):
    run = cut(trained, "joint-00000004", Path("runs/x"))
    for place in (run, run / "grids"):
        (place / ".stats.jsonl.0123abcd.tmp").write_text("half")
    shutil.copytree(run / "checkpoints" / "joint-00000004", run / "checkpoints" / ".joint-00000006.0123abcd.tmp")
    (Path("runs") / ".y.0123abcd.tmp").mkdir()
    (Path("runs") / ".y.0123abcd.tmp" / "config.yaml").write_text("half")
    assert main(["train", "--resume", str(run)]) == 0
    assert not list(run.rglob(".*.tmp"))
    assert main([*TINY, "--total_gen_iter", "0", "--refine_iter", "0", "--log_name", "y"]) == 0
    assert not list(Path("runs").glob(".*.tmp"))


def killed_at(monkeypatch, module, name: str, argv: list[str]) -> None:
    """`gebm ARGV` in a process of its own that is killed where it would call a function of a module."""
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *_, **options: os.kill(os.getpid(), signal.SIGKILL))
        process = multiprocessing.get_context("fork").Process(target=main, args=(argv,))
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("place", ["write_trace", "write_samples", "write_report"])
def test_the_same_command_succeeds_after_a_kill_of_sampling(trained, monkeypatch, capfd, place):
    argv = ["sample", *DRAW, "--g_path", str(trained), "--dataset", "digits", "--log_name", "s"]
    killed_at(monkeypatch, sample_command, place, argv)
    assert [p.name for p in Path("runs").glob("[!.]*")] == (["s"] if place == "write_report" else [])
    before = contents(Path("runs/s"))
    calls = []
    monkeypatch.setattr(sample_command, "write_report", lambda run, allow: calls.append(run))
    assert main(argv) == 0
    assert calls == [Path("runs/s")] and not list(Path("runs").glob(".*"))
    assert "samples runs/s/samples.npz" in " ".join(Path("runs/s/summary.txt").read_text().split())
    if place == "write_report":
        assert "its samples are there, so only its page is made" in capfd.readouterr().out
        assert contents(Path("runs/s")) == before


def test_samples_of_other_flags_are_not_taken_for_those_asked_for(trained, capsys):
    argv = ["sample", *DRAW, "--g_path", str(trained), "--dataset", "digits", "--log_name", "s"]
    assert main(argv) == 0
    before = contents(Path("runs/s"))
    assert main([*argv, "--seed", "3"]) == 2
    assert "runs/s: this run exists" in one_line(capsys)
    Path("runs/s/report.html").touch()
    assert main(argv) == 2
    assert "runs/s: this run exists" in one_line(capsys)
    assert contents(Path("runs/s")) == {**before, "report.html": b""}


def test_two_that_sample_into_one_name_do_not_both_work(trained, capsys):
    argv = ["sample", *DRAW, "--g_path", str(trained), "--dataset", "digits", "--log_name", "s"]
    with atomic_folder("runs/s") as other:
        assert main(argv) == 2
        line = one_line(capsys)
    assert "runs/s: another process is making this run; give another --log_name" in line and str(other) in line
    shutil.rmtree("runs/s")
    assert main(argv) == 0


@pytest.mark.parametrize("content", [b'{"e_step": 1, "g_st', b"\0\0\0\0}", b"[1]\n", b"\xff\xfe}\n"])
def test_a_torn_line_of_the_log_is_dropped(trained, content):
    run = cut(trained, "joint-00000004", Path("runs/x"))
    with open(run / "stats.jsonl", "ab") as file:
        file.write(content)
    assert main(["train", "--resume", str(run)]) == 0
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [row["e_step"] for row in rows] == [5, 9, 13, 15, 17, 19]


@pytest.mark.parametrize(
    "last, flags, says",
    [
        ("joint-00000006", ["--total_gen_iter", "8"], True),
        ("refine-00000006", ["--refine_iter", "8"], True),
        ("joint-00000004", ["--total_gen_iter", "8"], False),
        ("joint-00000006", [], False),
    ],
)
def test_a_stage_that_had_ended_is_not_the_same_when_it_goes_on(trained, capsys, last, flags, says):
    run = cut(trained, last, Path("runs/x"))
    assert main(["train", "--resume", str(run), *flags]) == 0
    assert (f"{last} was the end of its stage, where c was set anew" in capsys.readouterr().out) == says


# Streams that cannot be written, names that are no text


def forked(streams: dict[str, str | None], argv: list[str]) -> tuple[int, str]:
    """Exit code and errors of `gebm ARGV` in a process with streams that are opened so, or closed (None)."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            for number, name in (1, "stdout"), (2, "stderr"):
                os.close(number)
                setattr(sys, name, None)
                if place := streams.get(name, f"{name}.txt"):
                    encoding = "ascii" if place == "ascii.txt" else "utf-8"
                    setattr(sys, name, open(place, "w", encoding=encoding))  # noqa: SIM115
            logging.getLogger("gebm").handlers.clear()  # pytest's own write to its streams
            code = main(argv)
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.close(), sys.stderr.close()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, Path("stderr.txt").read_text() if Path("stderr.txt").exists() else ""


@pytest.mark.parametrize("streams", [{"stderr": None}, {"stdout": None}, {"stdout": None, "stderr": None}], ids=str)
def test_a_run_without_streams_is_trained(trained, streams):
    assert forked(streams, [*TINY, "--log_name", "x"])[0] == 0
    assert states(Path("runs/x")) == states(trained)


def test_what_cannot_be_printed_is_said_once(trained):
    code, errors = forked({"stdout": "/dev/full"}, [*TINY, "--log_name", "x"])
    assert code == 0 and states(Path("runs/x")) == states(trained)
    assert [line for line in errors.splitlines() if "gebm:" in line] == [
        "gebm: nothing more is printed: No space left on device"
    ]
    assert "Traceback" not in errors and "Logging error" not in errors


def test_a_terminal_of_another_encoding_is_written_in_escapes(trained):
    code, errors = forked({"stdout": "ascii.txt"}, [*TINY, "--log_name", "ä", "--total_gen_iter", "1"])
    assert code == 0 and "Traceback" not in errors
    assert "in runs/\\xe4" in Path("ascii.txt").read_text()


def test_a_folder_whose_name_is_no_text_has_a_page_and_is_else_refused_in_one_line(trained, monkeypatch, capsys):
    run = cut(trained, "refine-00000006", Path(os.fsdecode(b"\xff")) / "x")
    for part in ("_model", "_data"):
        monkeypatch.setattr(report_command, part, None)
    report_command.write_report(run)
    assert "<h1>Run x</h1>" in (run / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["export", str(run)]) == 2
    assert "allowed: a run, a checkpoint, a file; of printable characters, in the encoding of this" in one_line(capsys)


def test_a_page_of_a_run_from_the_year_33658(trained, monkeypatch):
    run = cut(trained, "refine-00000006", Path("runs/x"))
    for part in ("_model", "_data"):
        monkeypatch.setattr(report_command, part, None)
    monkeypatch.setattr(report_command, "_date", lambda _, date=report_command._date: date(1e12))
    assert "at a time that no calendar has" in report_command.write_report(run).read_text()


@pytest.mark.parametrize("damage", [{"metrics": {"FD(pixels)": {}}}, {"kale": {"test": 3}}, {"metrics": {"\ud800": 1}}])
def test_figures_that_lack_something_are_left_out_of_a_card(trained, capsys, damage):
    run = cut(trained, "refine-00000006", Path("runs/x"))
    (run / "evaluation.json").write_text(json.dumps(damage))
    (run / "summary.json").write_text('{"sampler": "langevin", "step_decay": [1], "gamma": 1.0}')
    assert main(["export", str(run), "out"]) == 0
    out = capsys.readouterr().out
    assert "its figures cannot be read (" in out and "its sampler cannot be read (" in out
    assert gebm.model.GEBM.from_pretrained("out").energy


# Reading a run while it trains


PLACES = [(gebm.checkpoints, "damage"), (gebm.model, "read_architecture"), (gebm.model.GEBM, "load_energy")]


@pytest.mark.parametrize("module, name", PLACES, ids=[name for _, name in PLACES])
@pytest.mark.parametrize("command", ["load", "sample", "evaluate", "export", "report"])
def test_a_run_that_trains_is_read(trained, monkeypatch, capsys, command, module, name):
    """Training replaces the only checkpoint by a newer one just when that is about to be read."""
    run = cut(trained, "refine-00000004", Path("runs/x"))
    *others, old = checkpoints(run)
    for path in others:
        shutil.rmtree(path)
    new = old.with_name("refine-00000006")
    shutil.copytree(trained / "checkpoints" / new.name, old.with_name("next"))
    function = getattr(module, name)

    def late(*arguments):
        if old.exists():
            old.with_name("next").rename(new)
            remove_folder(old)
        return function(*arguments)

    monkeypatch.setattr(module, name, late)
    if command == "load":
        assert gebm.model.GEBM.load(run).energy
    elif command == "report":
        assert report_command._model(run, Config.load(run / "config.yaml"), ()).energy
    else:
        words = {
            "sample": ["sample", *DRAW, "--g_path", str(run), "--dataset", "digits", "--log_name", "s"],
            "evaluate": ["evaluate", str(run), "--device", "-2"],
            "export": ["export", str(run), "out"],
        }[command]
        assert main(words) == 0
        out = capsys.readouterr().out
        assert "taking" not in out and "damaged" not in out
    assert checkpoints(run) == [new]


def test_what_is_read_after_the_weights_is_that_of_the_run_where_the_checkpoint_has_gone(trained):
    run = cut(trained, "refine-00000004", Path("runs/x"))
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("digits", "cifar10"))
    path = checkpoints(run)[-1]
    assert made_with(path).dataset == "digits"
    shutil.rmtree(path)
    assert made_with(path).dataset == "cifar10"
    assert made_with(Path("runs/elsewhere")) is None


def went_on(run: Path, *flags: str) -> list[dict]:
    assert main(["train", "--resume", str(run), *flags]) == 0
    file = run / "history.json"
    return json.loads(file.read_text())["changes"] if file.exists() else []


def test_flags_that_change_on_the_way_are_kept_with_the_step(trained, monkeypatch):
    run = cut(trained, "joint-00000004", Path("runs/x"))
    assert not (trained / "history.json").exists()
    first = {"checkpoint": "joint-00000004", "was": {"lr": 1e-3}, "now": {"lr": 2e-3}}
    assert went_on(run, "--lr", "2e-3") == [first]
    second = {"checkpoint": "refine-00000006", "was": {"refine_iter": 6}, "now": {"refine_iter": 8}}
    assert went_on(run, "--refine_iter", "8") == [first, second]
    for part in ("_model", "_data"):  # which take most of the time
        monkeypatch.setattr(report_command, part, None)
    text = report_command.write_report(run).read_text()
    same_again = re.sub("<[^>]*>", "", text.partition("The same again:")[2].partition("<details>")[0])
    begun, *later = same_again.split("From ")
    assert "--lr 0.001 " in begun and "--refine_iter 6 " in begun
    assert [words.split()[0] for words in later] == ["joint-00000004", "refine-00000006"]
    assert "gebm train --resume RUN --lr 0.002" in later[0] and "--refine_iter 8" in later[1]


def test_of_a_course_that_was_left_no_flags_are_kept(trained):
    run = cut(trained, "joint-00000004", Path("runs/x"))
    assert went_on(run, "--lr", "2e-3")
    for path in checkpoints(run)[-2:]:  # those of the refinement, and no longer the newest of the joint stage
        damage(path)
    damage(run / "checkpoints" / "joint-00000006")
    change = {"checkpoint": "joint-00000004", "was": {"lr": 1e-3}, "now": {"lr": 3e-3}}
    assert went_on(run, "--lr", "3e-3") == [change]
    shutil.rmtree(run / "checkpoints")
    assert went_on(run, "--lr", "4e-3") == []  # from the start on


def test_a_kill_between_the_history_and_the_configuration_loses_neither(trained, monkeypatch):
    run = cut(trained, "joint-00000004", Path("runs/x"))
    killed_at(monkeypatch, train_command, "open_run", ["train", "--resume", str(run), "--lr", "2e-3"])
    assert went_on(run) == []
    other = cut(trained, "joint-00000004", Path("runs/y"))
    killed_at(monkeypatch, train_command, "open_run", ["train", "--resume", str(other), "--lr", "2e-3"])
    (change,) = went_on(other, "--lr", "2e-3")
    assert (change["was"], change["now"]) == ({"lr": 1e-3}, {"lr": 2e-3})


@pytest.mark.parametrize("content", ['{"changes": 3}', '{"changes": [{"checkpoint": "joint-1"}]}', "{}", "["])
def test_a_damaged_history_is_one_line(trained, capsys, content):
    run = cut(trained, "joint-00000004", Path("runs/x"))
    (run / "history.json").write_text(content)
    assert main(["train", "--resume", str(run), "--lr", "2e-3"]) == 2
    assert "runs/x/history.json: not a " in one_line(capsys)


# Divergence

ENERGY = """
import torch
from gebm.networks import DCGANEnergy

class Energy(DCGANEnergy):
    calls = 0

    def forward(self, x):
        Energy.calls += self.training
        return super().forward(x) * (VALUE if Energy.calls in CALLS else 1)
"""


@pytest.mark.parametrize("value, what", [("nan", "loss not finite"), ("1e15", "loss ")])
def test_rollback(here, monkeypatch, capsys, value, what):
    # 3 + 1 and then 2 + 1 calls for a base step. The ninth is energy step 7 and comes to light after base step 4, the
    # thirteenth; the next one is the first after the rollback, energy step 6 again.
    text = ENERGY.replace("VALUE", f"float('{value}')").replace("CALLS", "(9, 14)")
    (here / f"energy_{value}.py").write_text(text)
    monkeypatch.syspath_prepend(here)
    flags = ["--d_model", f"energy_{value}:Energy", "--penalty_type", "none", "--criterion", "wasserstein"]
    argv = [*TINY, *flags, "--on_divergence", "rollback", "--rollback_factor", "0.1", "--log_name", "x"]
    assert main(argv) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rollback")]
    assert first.startswith(f"rollback 1 of 3: {what}") and " at energy step 7; " in first
    assert first.endswith("going on from joint-00000002, learning rates x 0.1")
    assert " at energy step 6; " in second and second.endswith("going on from joint-00000002, learning rates x 0.01")
    rows = [json.loads(line) for line in Path("runs/x/stats.jsonl").read_text().splitlines()]
    assert {row["g_step"]: row["rollbacks"] for row in rows} == {2: 0, 4: 2, 6: 2}
    assert [row["lr_generator"] for row in rows if "lr_generator" in row] == pytest.approx([2e-4, 2e-6, 2e-6])


def test_rollback_without_checkpoints_is_bad_input(capsys):
    assert main([*TINY, "--on_divergence", "rollback", "--save_nothing"]) == 2
    assert "leave --save_nothing out" in one_line(capsys)


# Kills at random moments: `python benchmarks/kills.py` for many


def test_kills_at_random_moments():
    kinds = ("training, tables", "sampling", "scores", "preparation")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills", "1", "--seed", "1"]
    command += [word for kind in kinds for word in ("--kind", kind)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    for line, kind in zip(found.stdout.splitlines()[1:], kinds, strict=True):
        assert line.startswith(f"{kind}: 1 kill") and line.endswith("all ended bit-identical to the undisturbed one")


ENDS = {  # a training that saves at the ends of its stages alone, and how many these are
    "images": ([*TINY, "--checkpoint_freq", "99"], 2),
    "distances": (
        [*TINY, *"--checkpoint_freq 99 --eval_fid --fid_features pixels --fid_samples 40 --freq_fid 6".split()],
        2,
    ),
    "table": (
        "train --device -2 --dataset csv:t.csv --g_model nvp --width .1 --num_blocks 1 --ml_epochs 2 --total_epochs 2 "
        "--refine_epochs 2 --checkpoint_freq 99 --partition_samples 100".split(),
        3,
    ),
}


def logged(run: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return [(row["stage"], row["ml_step"], row["g_step"], row["e_step"]) for row in rows]


@pytest.mark.parametrize("kind", ENDS)
def test_what_was_saved_at_the_end_of_a_stage_is_not_written_again(monkeypatch, kind):
    argv, stages = ENDS[kind]
    argv = [*argv, "--log_name", "x", "--resume", "auto"]
    rows = torch.randn(120, 2, generator=torch.Generator().manual_seed(0)).tolist()
    Path("t.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in rows))
    assert main(argv) == 0
    expected, lines = contents(Path("runs/x/checkpoints")), logged(Path("runs/x"))
    assert len(checkpoints("runs/x")) == stages
    save = loop.save_checkpoint
    for stage in range(1, stages + 1):
        shutil.rmtree("runs")
        saves = []

        def killed(*arguments, stage=stage, saves=saves):
            saves.append(save(*arguments))
            if len(saves) == stage:
                os.kill(os.getpid(), signal.SIGKILL)
            return saves[-1]

        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", killed)
            process = multiprocessing.get_context("fork").Process(target=main, args=(argv,))
            process.start()
            process.join()
        assert process.exitcode == -signal.SIGKILL and len(checkpoints("runs/x")) == stage
        times = {path: path.stat().st_mtime_ns for path in Path("runs/x/checkpoints").rglob("*")}
        assert main(argv) == 0
        assert contents(Path("runs/x/checkpoints")) == expected and logged(Path("runs/x")) == lines
        assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize("place", ["write_report", "open_run"])
def test_the_same_command_succeeds_after_a_kill_of_training(trained, monkeypatch, capfd, place):
    argv = [*TINY, "--log_name", "x", "--resume", "auto"]
    killed_at(monkeypatch, train_command, place, argv)
    calls = []
    monkeypatch.setattr(train_command, "write_report", lambda run, allow: calls.append(run))
    assert main(argv) == 0
    assert calls == [Path("runs/x")] and states(Path("runs/x")) == states(trained)
    assert ("is finished, so only its page is made" in capfd.readouterr().out) == (place == "write_report")


def test_the_text_of_likelihoods_is_there_when_their_figures_are(tmp_path, monkeypatch):
    monkeypatch.setattr(density, "write_json", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    process = multiprocessing.get_context("fork").Process(target=density.write_table, args=(tmp_path, {}, "text"))
    process.start()
    process.join()
    assert [p.name for p in tmp_path.iterdir() if p.name[0] != "."] == ["likelihood.txt"]
