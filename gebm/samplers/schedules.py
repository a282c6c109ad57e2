"""Schedules: plain functions from a step's number (from 0) to a factor."""

from collections.abc import Callable

__all__ = ["ramp", "step_decay"]


def step_decay(factor: float = 0.1, every: int = 200) -> Callable[[int], float]:
    """Factor on the step size that shrinks by `factor` after every `every` steps (0: never)."""
    return lambda step: factor ** (step // every) if every else 1.0


def ramp(steps: int, levels: int = 20) -> Callable[[int], float]:
    """Factor on the inverse temperature that rises to 1 over the first `steps` steps, in `levels` equal stairs."""
    return lambda step: 1.0 if step >= steps else (step * levels // steps + 1) / (levels + 1)
