"""Checks of the numbers that a caller gives: one line that names the argument, before any work."""

import math
import operator
from numbers import Real
from typing import Any

from torch import Tensor

from gebm.errors import InputError
from gebm.text import show

__all__ = ["check_number", "check_whole"]


def check_whole(least: int, **named: Any) -> None:
    """Raise InputError for an argument that is not a whole number of `least` or more; True and False are none.

    Example:

        >>> check_whole(1, n=10, steps=1)
        >>> check_whole(1, n=-1)
        Traceback (most recent call last):
        gebm.errors.InputError: n must be a whole number of 1 or more, not -1
    """
    for name, value in named.items():
        try:
            fits = not isinstance(value, bool) and operator.index(value) >= least
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise InputError(f"{name} must be a whole number of {least} or more, not {show(value)}")


def check_number(least: float, **named: Any) -> None:
    """Raise InputError for an argument that is not a finite number of `least` or more; a tensor of one counts as one.

    Example:

        >>> check_number(0, beta=float("nan"))
        Traceback (most recent call last):
        gebm.errors.InputError: beta must be a finite number of 0 or more, not nan
    """
    for name, value in named.items():
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(value, bool) or not isinstance(number, Real) or not least <= float(number) < math.inf:
            raise InputError(f"{name} must be a finite number of {least} or more, not {show(value)}")
