"""Timing of alternatives on a machine whose speed drifts: interleaved, compared pair by pair."""

import ctypes
import gc
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from gebm.precision import Operations

__all__ = ["Comparison", "compare", "environment", "interleave", "matmul_rate", "operations", "peak_bytes"]
__all__ += ["synchronise"]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Comparison(NamedTuple):
    """Wall time of one alternative and its speed relative to the baseline.

    ms: median milliseconds a call; ratio: median over rounds of baseline time / own time; low, high: tenth and
    ninetieth percentile of that ratio over rounds, which says how noisy the machine was; rounds: number of them.
    """

    ms: float
    ratio: float
    low: float
    high: float
    rounds: int


def interleave(calls: dict[str, Callable[[], object]], seconds: float, warm_up: int = 2) -> dict[str, list[float]]:
    """Time the calls in turn, A B C A B C ..., for about `seconds` and at least one round: name -> seconds a round.

    On a GPU a call ends when the device has done its work.
    """
    for call in calls.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while True:
        for name, call in calls.items():
            synchronise()
            begin = time.perf_counter()
            call()
            synchronise()
            times[name].append(time.perf_counter() - begin)
        if time.perf_counter() >= end:
            return times


def compare(baseline: list[float], times: list[float]) -> Comparison:
    """Compare two columns of `interleave`. A ratio is taken within a round, where both saw the same machine."""
    ratios = sorted(b / t for b, t in zip(baseline, times, strict=True))
    tail = len(ratios) // 10
    return Comparison(1e3 * median(times), median(ratios), ratios[tail], ratios[-1 - tail], len(ratios))


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Memory that a call takes above what is there before it; None where the system does not tell.

    On a CPU the resident set, whose greatest size Linux forgets when asked to: what an allocator keeps from earlier
    calls and uses again does not show, so it is made to give that back first.
    """
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    if not CLEAR.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products that a call does."""
    with Operations() as counted:
        call()
    return counted.total


def matmul_rate(dtype: torch.dtype, device: str = "cpu", n: int = 2048) -> float:
    """Operations a second of the fastest of some products of two n x n matrices: what this machine can do."""
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    times = interleave({"matmul": lambda: a @ b}, 0.5)["matmul"]
    return 2 * n**3 / min(times)


def synchronise() -> None:
    """Return when a GPU, if one is in use, has done its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _status(key: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def environment() -> dict[str, str | int]:
    """What the figures depend on: processor, its vector instructions as torch uses them, threads, versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_initialized() else "none"
    return {
        "machine": _processor(),
        "gpu": gpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
