"""Columns that a density cannot be of, constants and those that others determine: found, left out, kept in mind."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Dropped", "constant", "copies", "decimal_unit", "dependent", "discrete", "dropped", "sentinels"]

CORRELATION = 0.98  # from which on a column is a copy of another
RARE = 0.005  # share of rows from which on a value far from all others is told of
SINGULAR = 1e-10  # least eigenvalue of a correlation matrix that can be whitened
DECIMALS = 12  # that are told apart
FEW = 20  # rows: fewer may have few decimals by chance
ROUNDING = 1e-9  # relative error of a value that others determine


@dataclass(frozen=True, eq=False)
class Dropped:
    """Columns that those kept determine: offset + kept @ weights, up to the tolerance; constants have weights of 0.

    Attributes:
        columns: their names.
        offset, tolerance: float64 (k,).
        weights: float64 (d, k).
        unit: of the last decimal of those kept and of these, float64 (d + k,); 0: not known.
    """

    columns: tuple[str, ...]
    offset: np.ndarray
    weights: np.ndarray
    tolerance: np.ndarray
    unit: np.ndarray

    def differ(self, kept: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Which values (N, k) of these columns are not what rows (N, d) of those kept say, bool; NaN is not told of.

        Rows that are rounded, in all columns, to fewer decimals than those these were found on may differ by as much.
        """
        now = decimal_unit(np.hstack([kept, values])).min() if len(kept) >= FEW else 0.0
        rounded = np.where(self.unit > 0, np.maximum(now - self.unit, 0), 0) / 2
        d = len(self.weights)
        with np.errstate(over="ignore", invalid="ignore"):
            away = np.abs(values - self.offset - kept @ self.weights)
            scale = np.abs(self.offset) + np.abs(kept) @ np.abs(self.weights)
            scale = scale * ROUNDING + rounded[d:] + rounded[:d] @ np.abs(self.weights)
            wrong: np.ndarray = away > self.tolerance + scale
        return wrong


def dropped(names: Sequence[str], kept: np.ndarray, values: np.ndarray) -> Dropped:
    """How columns `values` (N, k) follow from those kept (N, d), by least squares."""
    mean, scale = kept.mean(0), kept.std(0)
    standard, middle = (kept - mean) / scale, values.mean(0)
    weights = np.linalg.lstsq(standard, values - middle, rcond=None)[0] / scale[:, None]
    weights[:, constant(values)] = 0.0
    offset = np.where(constant(values), values[0], middle - mean @ weights)
    tolerance = 2 * np.abs(values - offset - kept @ weights).max(0)
    return Dropped(tuple(names), offset, weights, tolerance, decimal_unit(np.hstack([kept, values])))


def decimal_unit(rows: np.ndarray) -> np.ndarray:
    """The unit (d,) of the last decimal of each column of rows (N, d): 0.01 where none has more than two decimals."""
    unit = np.full(rows.shape[1], 10.0**-DECIMALS)
    left = np.arange(rows.shape[1])
    for decimals in range(DECIMALS):
        part = rows[:, left]
        done = ((part == np.round(part, decimals)) | np.isnan(part)).all(0)
        unit[left[done]] = 10.0**-decimals
        left = left[~done]
    return unit


def constant(rows: np.ndarray) -> np.ndarray:
    """Which columns of rows (N, d) have one value alone, up to the last digits of a float64: bool (d,)."""
    same: np.ndarray = rows.max(0) - rows.min(0) <= 1e-13 * np.abs(rows).max(0)
    return same


def copies(rows: np.ndarray) -> list[int]:
    """The columns to drop, first one first, until no two are closer than `CORRELATION`."""
    close = np.abs(np.atleast_2d(np.corrcoef(rows.T))) > CORRELATION
    found = []
    while (copied := close.sum(0) > 1).any():  # each is close to itself
        found.append(int(copied.argmax()))
        close[found[-1]] = close[:, found[-1]] = False
    return found


def dependent(rows: np.ndarray) -> list[int]:
    """The columns to drop until none is a linear function of others; of equal ones the first stays."""
    correlation = np.atleast_2d(np.corrcoef(rows.T))
    found, left = list[int](), correlation.copy()
    for j in range(len(left)):  # elimination: what of each column those before it do not say
        if left[j, j] < SINGULAR:
            found.append(j)
        else:
            left[j + 1 :, j + 1 :] -= np.outer(left[j + 1 :, j], left[j, j + 1 :]) / left[j, j]
    kept = [j for j in range(len(correlation)) if j not in set(found)]
    while True:  # several that are each nearly determined
        values, vectors = np.linalg.eigh(correlation[np.ix_(kept, kept)])
        if values[0] >= SINGULAR:
            return sorted(found)
        weights = np.abs(vectors[:, 0])
        found.append(kept.pop(int(np.flatnonzero(weights > 0.1 * weights.max())[-1])))


def discrete(rows: np.ndarray, columns: Sequence[str]) -> list[str]:
    """A note on columns with few distinct values."""
    few = [name for name, column in zip(columns, rows.T) if 10 * len(np.unique(column)) <= len(rows)]
    if not few:
        return []
    return [f"few distinct values, so no density and a likelihood without bound: {', '.join(few)}"]


def sentinels(rows: np.ndarray, columns: Sequence[str]) -> list[str]:
    """Notes on a value that comes again and again far from all others of its column, as -999 for what is missing."""
    notes = []
    for name, column in zip(columns, rows.T):
        for value in (column.min(), column.max()):
            rest = column[column != value]
            count = len(column) - len(rest)
            if count >= max(3, RARE * len(column)) and len(np.unique(rest)) > 2:
                away = np.abs(rest - value).min()
                if away > rest.max() - rest.min():
                    notes.append(
                        f"column {name} is {value:g} in {count:,} rows, far from all others; if that stands for a "
                        "missing value, leave these rows out"
                    )
    return notes
