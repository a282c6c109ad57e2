"""Schedules: plain functions from a step's number (from 0) to a factor."""

from collections.abc import Callable

__all__ = ["ramp", "step_decay"]


def step_decay(factor: float = 0.1, every: int = 200) -> Callable[[int], float]:
    """Factor on the step size that shrinks by `factor` after every `every` steps (0: never), down to 1e-30.

    Example:

        >>> [step_decay(0.1, 200)(step) for step in (0, 199, 200)]
        [1.0, 1.0, 0.1]
    """
    return lambda step: max(factor ** (step // every), 1e-30) if every else 1.0  # a step size is above 0


def ramp(steps: int, levels: int = 20) -> Callable[[int], float]:
    """Factor on the inverse temperature that rises to 1 over the first `steps` steps, in `levels` equal stairs.

    Example:

        >>> [round(ramp(100, levels=4)(step), 1) for step in (0, 25, 99, 100)]
        [0.2, 0.4, 0.8, 1.0]
    """
    return lambda step: 1.0 if step >= steps else (step * levels // steps + 1) / (levels + 1)
