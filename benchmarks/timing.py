"""Timing of alternatives on a machine whose speed drifts: interleaved, compared pair by pair."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

__all__ = ["Comparison", "compare", "environment", "interleave"]


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
    """Time the calls in turn, A B C A B C ..., for about `seconds` and at least one round: name -> seconds a round."""
    for call in calls.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while True:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
        if time.perf_counter() >= end:
            return times


def compare(baseline: list[float], times: list[float]) -> Comparison:
    """Compare two columns of `interleave`. A ratio is taken within a round, where both saw the same machine."""
    ratios = sorted(b / t for b, t in zip(baseline, times, strict=True))
    tail = len(ratios) // 10
    return Comparison(1e3 * median(times), median(ratios), ratios[tail], ratios[-1 - tail], len(ratios))


def environment() -> dict[str, str | int]:
    """What the figures depend on: processor, its vector instructions as torch uses them, threads, versions."""
    return {
        "machine": _processor(),
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
