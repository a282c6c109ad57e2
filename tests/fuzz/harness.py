"""Damaged inputs through the readers, in a forked process with a limit on its memory and an eye on its time."""

import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import hypothesis
import torch
from hypothesis import HealthCheck, Phase
from mutate import mutate
from targets import TARGETS, Target, shrink

from gebm.errors import InputError

__all__ = ["CPU_S", "MEMORY", "Outcome", "inputs_of", "run_target", "shares"]

MEMORY = 1 << 30  # bytes beyond what the process has when it starts: RLIMIT_AS
CPU_S, WALL_S = 5.0, 600.0  # of one input; the wall's limit is for what waits for ever: other processes may be busy
FIRST_S = 30.0  # for what a new process builds and imports before its first input
LONGEST = 1000  # characters of an error


class Outcome(NamedTuple):
    """What came of one input: `read`, `refused` or a failure; what was said; seconds of CPU; bytes of memory taken."""

    kind: str
    said: str
    seconds: float
    memory: int


def shares(inputs: int) -> dict[str, int]:
    """How many inputs each target gets, `inputs` in all."""
    total = sum(target.share for target in TARGETS.values())
    counts = {name: max(int(inputs * target.share / total), 1) for name, target in TARGETS.items()}
    counts["weights"] += inputs - sum(counts.values())
    return counts


def inputs_of(name: str, count: int, seed: int) -> list[bytes]:
    """The inputs of a target: its sound files, then half by its grammar if it has one, and damaged files."""
    target, rng = TARGETS[name], random.Random(f"{seed} {name}")
    seeds = target.seeds()
    made = seeds[:count]
    if target.grammar is not None:
        made += _generated(target, (count - len(made)) // 2, seed)
    return made + [mutate(rng.choice(seeds), seeds, rng) for _ in range(count - len(made))]


def _generated(target: Target, count: int, seed: int) -> list[bytes]:
    found: list[bytes] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max(count, 1), database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.given(target.grammar)
    def gather(content: bytes) -> None:
        found.append(content)

    gather()
    return found[:count]


def run_target(name: str, inputs: list[bytes]) -> list[Outcome]:
    """Every input through a target; after a crash or a hang, a new process goes on with the next."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(inputs):
        outcomes += _worker(name, inputs[len(outcomes) :])
    return outcomes


def _worker(name: str, inputs: list[bytes]) -> list[Outcome]:
    """The outcomes of the first of these inputs, up to one that ends or hangs the process."""
    reading, writing = Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        try:
            _work(TARGETS[name], inputs, writing)
        finally:
            os._exit(0)
    writing.close()
    outcomes: list[Outcome] = []
    while len(outcomes) < len(inputs):
        busy, since = _cpu(pid), time.monotonic()
        while not reading.poll(0.5):
            seconds, waited = _cpu(pid) - busy, time.monotonic() - since
            if seconds > 3 * CPU_S + FIRST_S * (not outcomes) or waited > WALL_S:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return [*outcomes, Outcome("hang", f"stopped after {seconds:.0f} s of CPU", seconds, 0)]
        try:
            outcomes.append(reading.recv())
        except EOFError:
            _, status = os.waitpid(pid, 0)
            ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "an early exit"
            return [*outcomes, Outcome("crash", ended, 0.0, 0)]
    os.waitpid(pid, 0)
    return outcomes


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(target: Target, inputs: list[bytes], pipe: Connection) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    shrink()
    top = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.chdir(top)
    try:
        for sound in target.seeds()[:1]:
            _try(target, sound, top / "first")  # what is imported and built at first use is no input's
        limit = _status("VmSize") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for content in inputs:
            pipe.send(_try(target, content, top / "input"))
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _try(target: Target, content: bytes, folder: Path) -> Outcome:
    folder.mkdir()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.process_time()
    try:
        target.call(content, folder)
        kind, said = "read", ""
    except (InputError, FloatingPointError, OSError) as error:
        kind, said = "refused", str(error)
        if "\n" in said or len(said) > LONGEST:
            kind = "no one line"
    except BaseException as error:
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "/gebm/" in f.filename] or [None]
        where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours[-1] else ""
        kind, said = "traceback", f"{type(error).__name__}{where}: {str(error)[:200]}"
    seconds, memory = time.process_time() - start, max(_status("VmHWM") - before, 0)
    shutil.rmtree(folder)
    if kind in ("read", "refused"):
        kind = "slow" if seconds > CPU_S else "memory" if memory > MEMORY else kind
    return Outcome(kind, said, seconds, memory)


def _status(field: str) -> int:
    """Bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    return 0
