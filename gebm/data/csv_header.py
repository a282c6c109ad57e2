"""Whether the first line of a table names its columns."""

import re
from collections.abc import Sequence

import numpy as np

__all__ = ["has_decimal_comma", "is_number", "names_columns"]

MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "?", "."}  # what stands for a value that is not there
WHOLE, SIGNED = re.compile(r"\d+"), re.compile(r"[+-]?\d+")
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")
FEW = 20  # rows: below so many, a line that is unlike them all may be one of them


def is_number(cell: str) -> bool:
    """Whether numpy reads a cell as a number, which takes neither 1_000 nor other digits than 0 to 9."""
    bare = cell.strip()
    try:
        float(bare)
    except ValueError:
        return False
    return bare.isascii() and "_" not in bare


def has_decimal_comma(cell: str) -> bool:
    return DECIMAL_COMMA.fullmatch(cell) is not None


def names_columns(first: Sequence[str], below: Sequence[Sequence[str]], quoted: bool = False) -> bool:
    """Whether a line holds names rather than one more row.

    It does where texts stand above numbers, where its numbers are in quotes and those below are not, and where its
    numbers are labels: unlike all rows below, as pandas' 0, 1, 2, years or wavelengths are.

    Arguments:
        first: the cells of the line.
        below: those of the lines that follow it, of as many cells.
        quoted: whether its numbers are in quotes and those below are not.
    """
    numbers = [i for i, cell in enumerate(first) if is_number(cell) and not _is_missing(cell)]
    known = set(numbers)
    texts = [i for i, cell in enumerate(first) if i not in known and not _is_missing(cell)]
    if not numbers or quoted:
        return bool(texts) or quoted
    above_numbers = [i for i in texts if below and all(is_number(row[i]) for row in below)]
    if len(above_numbers) > len(numbers):
        return True
    rows = [[row[i].strip() for i in numbers] for row in below]
    return _are_labels([first[i].strip() for i in numbers], [row for row in rows if all(map(is_number, row))])


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING


def _are_labels(first: list[str], below: list[list[str]]) -> bool:
    """Whether a line of numbers is unlike all rows of numbers below it, in the way that labels are."""
    values, rows, d = np.array(first, float), np.array(below, float), len(first)
    if not len(rows) or not np.isfinite(values).all():
        return False
    steps, many = np.diff(values), len(rows) >= FEW
    whole = all(map(WHOLE.fullmatch, first)) and len(set(first)) == d and (d > 1 or first == ["0"])
    counting = whole and values[0] in (0, 1) and bool((steps == 1).all())
    # Whole numbers above columns that are written with decimals.
    decimals = [not any(SIGNED.fullmatch(row[i]) for row in below) for i in range(d)]
    if whole and ((all(decimals) and (counting or len(rows) > 4)) or (any(decimals) and (counting or many))):
        return True
    if d < 3:
        return False
    if counting or _is_even(steps, steps[0]):  # equal steps from column to column, which no row has
        like = (rows == values).all(1) if counting else [_is_even(np.diff(row), steps[0]) for row in rows]
        return (many or d > 4) and not any(like)
    # In order, and in every column farther from all rows than they are from one another.
    low, high = rows.min(0), rows.max(0)
    outside = np.maximum(low - values, values - high) > high - low
    return many and bool((steps > 0).all() or (steps < 0).all()) and bool(outside.all())


def _is_even(steps: np.ndarray, step: float) -> bool:
    return bool(step) and bool(np.abs(steps - step).max() <= 1e-9 * abs(step))
