"""The command line as a process: exit codes, signals, kills, and what is imported when."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LONG = (
    "train --device -2 --dataset digits --g_model dcgan --d_model dcgan --Z_dim 4 --width .05 --b_size 8 --ema .9 "
    "--total_gen_iter 30 --n_iter_d 3 --n_iter_d_init 5 --refine_iter 60 --checkpoint_freq 3 --disp_freq 5 --lr 1e-3"
).split()
WEIGHTS = ("base.safetensors", "energy.safetensors", "training.safetensors")

# Imports torch once, then forks a process for each line it reads: real processes that start at once. It lies in a
# folder of its own, like the script `gebm` that pip installs, so the working directory is not on its path.
SERVER = """
import json, os, sys
import sklearn.datasets, torch._dynamo  # what training imports late
import gebm.commands.train
from gebm.cli import main

for line in sys.stdin:
    folder, argv = json.loads(line)
    pid = os.fork()
    if not pid:
        os.chdir(folder)
        for number, name in (1, "out"), (2, "err"):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Process:
    """A running `gebm`; `wait` gives its exit code, that of a kill negative."""

    def __init__(self, server: subprocess.Popen, folder: Path, argv: list[str]):
        self.server = server
        server.stdin.write(json.dumps([str(folder), argv]) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def wait(self, signum: int | None = None) -> int:
        if signum is not None:
            os.kill(self.pid, signum)  # also one that has just ended keeps its number until it is waited for
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    script = tmp_path_factory.mktemp("bin") / "gebm"
    script.write_text(SERVER)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, script], env=ENVIRONMENT, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def start(server, tmp_path):
    return lambda *argv: Process(server, tmp_path, list(argv))


@pytest.fixture(scope="module")
def straight(server, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    assert Process(server, folder, [*LONG, "--log_name", "x"]).wait() == 0
    return folder / "runs" / "x"


def names(run: Path) -> list[str]:
    return sorted(p.name for p in run.glob("checkpoints/[!.]*"))


def assert_same_end(a: Path, b: Path) -> None:
    assert names(a)[-1] == names(b)[-1] == "refine-00000060"
    for file in WEIGHTS:
        path = f"checkpoints/refine-00000060/{file}"
        assert (a / path).read_bytes() == (b / path).read_bytes(), file


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "did not happen within a minute"
        time.sleep(0.002)


@pytest.mark.parametrize("stage", ["joint", "refine"])
@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_say_how_to_go_on_and_leave_the_same_bits(start, straight, tmp_path, signum, code, stage):
    process = start(*LONG, "--log_name", "x")
    run = tmp_path / "runs" / "x"
    wait_for(lambda: any(name.startswith(stage) for name in names(run)))
    assert process.wait(signum) == code
    assert (tmp_path / "err").read_text() == ""
    last = (tmp_path / "out").read_text().splitlines()[-1]
    saved = f"runs/x/checkpoints/{names(run)[-1]}"
    assert last == f"stopped by signal {int(signum)}: saved as {saved}; go on with --resume runs/x"
    assert names(run)[-1] < "refine-00000060"
    assert start("train", "--resume", "runs/x").wait() == 0
    assert_same_end(run, straight)


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["train", *LONG[1:]]], ids=["help", "flags", "work"]
)
def test_work_goes_on_when_nobody_reads_its_lines(tmp_path, words):
    command = [sys.executable, "-m", "gebm", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, **pipes) as process:
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert len([*tmp_path.glob("runs/*/report.html")]) == ("--help" not in words)  # what a training writes last


def test_killed_again_and_again_and_resumed(start, straight, tmp_path):
    moments, ends = random.Random(0), []
    run = tmp_path / "runs" / "x"
    for kill in range(12):
        before = names(run)
        if before[-1:] == ["refine-00000060"]:
            break
        process = start(*LONG, "--log_name", "x", "--resume", "auto")
        if kill % 2:  # anywhere around a checkpoint; else anywhere in the start
            wait_for(lambda before=before: names(run) != before)
        time.sleep(moments.uniform(0, 0.03 if kill % 2 else 0.3))
        if process.wait(signal.SIGKILL) == 0:
            break
        ends.append(names(run)[-1] if names(run) else "")
    assert start(*LONG, "--log_name", "x", "--resume", "auto").wait() == 0
    assert len(set(ends)) >= 4  # it was killed at different places
    assert_same_end(run, straight)
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (straight / "stats.jsonl").read_text().splitlines()]
    assert [r["e_step"] for r in rows] == [r["e_step"] for r in expected]
    assert not list(run.glob("checkpoints/.*"))


def test_the_users_own_network_in_the_working_directory(start, tmp_path):
    (tmp_path / "my_energy.py").write_text("from gebm.networks import SNGANEnergy as Energy\n")
    tiny = "--d_model my_energy:Energy --total_gen_iter 1 --n_iter_d_init 1 --log_name x"
    assert start(*LONG, *tiny.split()).wait() == 0, (tmp_path / "err").read_text()


def python(*argv: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *argv], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


def test_help_and_errors_of_the_arguments_do_not_wait_for_torch(tmp_path):
    code = (
        "import sys; from gebm.cli import main\n"
        "codes = [main(line.split()) for line in ('', '--help', 'trane', 'train --b_siz 3', 'train --Z_dim x')]\n"
        "try: codes.append(main(['train', '--help']))\n"
        "except SystemExit as stop: codes.append(stop.code)\n"
        "print(codes, sorted({'torch', 'numpy', 'sklearn', 'PIL'} & sys.modules.keys()))"
    )
    process = python("-c", code, cwd=tmp_path)
    assert process.stdout.splitlines()[-1] == "[0, 0, 2, 2, 2, 0] []"
    assert [line[:13] for line in process.stderr.splitlines()] == ["gebm: error: "] * 3


@pytest.mark.parametrize(
    "argv, code, says",
    [
        ("-m gebm --version", 0, "gebm 0"),
        ("-m gebm train --image_size 33", 2, "gebm: error: "),
        (f"{ROOT}/main.py --config={ROOT}/configs/training.yaml --dataset=cifar11", 2, "did you mean cifar10?"),
        (f"{ROOT}/main.py --config={ROOT}/configs/sampling.yaml --dataset=cifar10", 2, "no trained pair"),
        (f"{ROOT}/main.py --help", 0, "usage: python main.py"),
    ],
)
def test_entry_points(tmp_path, argv, code, says):
    process = python(*argv.split(), cwd=tmp_path)
    assert process.returncode == code
    assert says in (process.stderr if code else process.stdout)
    assert len(process.stderr.splitlines()) == (1 if code else 0)
    assert not list(tmp_path.iterdir())


def test_a_failure_that_nobody_reads_of_is_one():
    command = f"{sys.executable} -m gebm train --nonsense 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", command], env=ENVIRONMENT, timeout=60).returncode == 2
    command = f"{sys.executable} -m gebm --version >&-"
    closed = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, stderr=subprocess.PIPE, timeout=60)
    assert (closed.returncode, closed.stderr) == (0, b"")
