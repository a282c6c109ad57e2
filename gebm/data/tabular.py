"""Tables of rows: split, cleaned and whitened for density models."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gebm.data import toy, uci
from gebm.data.table_files import Table, numbered, numbers, read_csv, read_npz
from gebm.errors import InputError
from gebm.registry import resolve
from gebm.seeds import stream

__all__ = ["PROTOCOLS", "SCALINGS", "TABLES", "TableData", "load_table"]

PROTOCOLS, SCALINGS = ("standard", "paper"), ("whiten", "standardise")
FORMAT = 1  # raise it when the same table, protocol and seed come to mean other arrays
MOST_VALID = 1000  # rows
LARGEST = 1e100  # value: the squares of larger ones have no sum
CORRELATION = 0.98  # from which on a column is a copy of another
SINGULAR = 1e-10  # least eigenvalue of a correlation matrix that can be whitened
PAPER_SVD_ROWS = 10_000

log = logging.getLogger("gebm")


@dataclass(frozen=True, eq=False)
class TableData:
    """Three splits of whitened, or standardised, rows, and the way back to the original columns.

    Attributes:
        name: of the data set, for reports.
        columns: names of the original columns that are kept, in the order of the file.
        train, valid, test: rows as models see them, float32 (N, d), read-only.
        mean, whitening: float64 (d,) and (d, d); a row x of `columns` becomes (x - mean) @ whitening.
        shift: added to a log-density of such a row, it is that of the whitened row, the unit of published likelihoods:
            log-determinant of `whitening` less that of the map that whitens; 0 where `whitening` is that map.
        exact, noise: training rows before uniform noise was added to them, float32 (N, d), and the map (d, d) of the
            noise, so that exact + u @ noise, u uniform on [-1, 1]^d, are such rows with other noise; None: none was.
        protocol, seed: what the splits were made by.
        key: hash of content, protocol, scaling and seed; equal keys mean equal arrays.
        notes: lines on what was done to the rows, for reports.
        width: columns of the file, kept or not.
    """

    name: str
    columns: tuple[str, ...]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    mean: np.ndarray
    whitening: np.ndarray
    protocol: str
    seed: int
    key: str
    notes: tuple[str, ...]
    shift: float = 0.0
    exact: np.ndarray | None = None
    noise: np.ndarray | None = None
    width: int = 0

    @property
    def shape(self) -> tuple[int]:
        """(d,) of one row."""
        return (len(self.columns),)

    @property
    def log_det(self) -> float:
        """Log-determinant of `whitening`: what the log-density of a row in original units has over the whitened's."""
        return float(np.linalg.slogdet(self.whitening)[1])

    def whiten(self, rows: np.ndarray) -> np.ndarray:
        """Rows of `columns` in original units, (N, d), whitened, float32; infinite where that has no number."""
        with np.errstate(over="ignore", invalid="ignore"):
            whitened: np.ndarray = (rows - self.mean) @ self.whitening
            return whitened.astype(np.float32)

    def with_noise(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """Whitened rows (N, d) with the noise that makes those of rounded values rows of a density; float32."""
        if self.noise is None:
            return rows
        u = np.random.default_rng(seed).uniform(-1, 1, rows.shape).astype(np.float32)
        noisy: np.ndarray = rows + u @ self.noise
        return noisy

    def unwhiten(self, rows: np.ndarray) -> np.ndarray:
        """Whitened rows (N, d) in original units, float64."""
        original: np.ndarray = np.linalg.solve(self.whitening.T, np.asarray(rows, np.float64).T).T + self.mean
        return original


TABLES: dict[str, Callable[[Path], Table]] = {
    "redwine": uci.redwine,
    "whitewine": uci.whitewine,
    "parkinsons": uci.parkinsons,
    "hepmass": uci.hepmass,
    "miniboone": uci.miniboone,
}
FILES: dict[str, Callable[[str], Table]] = {"csv": read_csv, "npz": read_npz}


def load_table(
    dataset: str,
    data_path: str | Path = "data",
    *,
    protocol: str = "standard",
    scaling: str = "whiten",
    seed: int = 0,
) -> TableData:
    """Loads a table and prepares it.

    `standard`: the seed draws 10 % test rows and 10 % of the rest (at most 1,000) for validation; rounded values get
    uniform noise within their own bin; constant columns, and of Parkinsons those that copy another, are dropped; mean
    and covariance of the training rows whiten all. `paper`: the procedure behind the published figures, whose one split
    is that of seed 1: noise of twice the bin's width, columns in random order, whitening fitted on all rows, test rows
    included. The order of the columns is folded into `whitening`.

    Args:
        dataset: a name in `TABLES`; `csv:PATH`; `npz:PATH`, one array (N, d) or train and test (and valid); `toy:NAME`,
            drawn by the seed and left as it is; or a dotted path `package.module:factory` to a function of (data_path,
            seed) that returns an array (N, d) or a `TableData`.
        scaling: `whiten`, or `standardise`: each column to mean 0 and variance 1, on its own axis.
        data_path: where the files of the sets in `TABLES` lie, or its folder `uci`; else they are downloaded to that.

    Raises:
        InputError: an unknown data set or protocol; a file that is missing, damaged or holds anything but finite
            numbers; too few rows; columns that depend on each other linearly.

    Example:

        >>> moons = load_table("toy:moons", seed=1)
        >>> moons.train.shape, moons.valid.shape, moons.test.shape
        ((4050, 2), (450, 2), (500, 2))
    """
    data_path = Path(data_path)
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol {protocol!r}: choose {' or '.join(PROTOCOLS)}")
    if scaling not in SCALINGS:
        raise InputError(f"--scaling {scaling!r}: choose {' or '.join(SCALINGS)}")
    kind, _, rest = dataset.partition(":")
    name = dataset
    if rest and kind in FILES:
        name, table = f"{kind}:{Path(rest).resolve().name}", FILES[kind](rest)
    elif rest and kind == "toy":
        table = toy.table(rest, seed)
    elif dataset in TABLES:
        table = TABLES[dataset](data_path)
    else:
        known = TABLES | dict.fromkeys(("csv:PATH", "npz:PATH", "toy:NAME"))  # these for the error message
        made = resolve(dataset, known, "--dataset")(data_path, seed)
        if isinstance(made, TableData):
            return made
        values = numbers(f"--dataset {dataset}: what it made", np.asarray(made))
        table = Table(numbered(values.shape[1]), values)
    return _prepared(name, table, protocol, scaling, seed)


def _prepared(name: str, table: Table, protocol: str, scaling: str, seed: int) -> TableData:
    paper = protocol == "paper"
    # The legacy generator, whose streams never change; the paper's takes its draws from one stream in this order.
    rng = np.random.RandomState(seed if paper else stream(seed, "table"))
    n_train, n_valid, n_test = _sizes(name, table, paper)
    if not np.abs(table.values).max() < LARGEST:
        raise InputError(f"--dataset {name}: has a value of {np.abs(table.values).max():.3g}, {LARGEST:g} is too large")
    free = len(table.values) - table.n_valid - table.n_test  # the others are the file's own validation and test rows
    rows = table.values[np.concatenate([rng.permutation(free), np.arange(free, len(table.values))])]
    splits = slice(n_train), slice(n_train, n_train + n_valid), slice(n_train + n_valid, None)
    notes = [*table.notes, *_shared(rows, splits)]

    fitted = slice(None) if paper else splits[0]
    kept, dropped = _kept(name, rows[fitted], table)
    notes += dropped
    rows, columns = rows[:, kept], tuple(table.columns[i] for i in kept)
    exact, width = rows[splits[0]].copy(), None
    if table.dequantise:
        width = _dequantise(rows, rng, bins=2 if paper else 1)
        noise = "twice the bin's width, as published" if paper else "one bin's width"
        notes.append(f"uniform noise added, {noise} (bin: median gap between a column's values)")
    notes += _discrete(rows, columns)

    if table.whiten:
        order = rng.permutation(len(columns)) if paper else np.arange(len(columns))
        _check_rank(name, rows[fitted], columns, n_train)
        mean, whitening = _whitening(rows[fitted], order, PAPER_SVD_ROWS if paper else None)
        if paper:
            notes.append("whitening fitted on all rows, test included, as published")
    else:
        mean, whitening = np.zeros(len(columns)), np.eye(len(columns))
    shift = 0.0
    if table.whiten and scaling == "standardise":
        standard = np.diag(1 / rows[fitted].std(0))
        shift = float(np.linalg.slogdet(standard)[1] - np.linalg.slogdet(whitening)[1])
        whitening = standard
    scaled = ((rows - mean) @ whitening).astype(np.float32)
    scaled.flags.writeable = False
    train, valid, test = (scaled[split] for split in splits)
    return TableData(
        name, columns, train, valid, test, mean, whitening, protocol, seed, _key(table, protocol, scaling, seed),
        tuple(notes), shift,
        exact=None if width is None else ((exact - mean) @ whitening).astype(np.float32),
        noise=None if width is None else (width[:, None] * whitening).astype(np.float32),
        width=len(table.columns),
    )  # fmt: skip


def _sizes(name: str, table: Table, paper: bool) -> tuple[int, int, int]:
    """Numbers of training, validation and test rows."""
    count = len(table.values)
    n_test = table.n_test or (paper and table.paper_test) or int(0.1 * count)
    n_valid = table.n_valid or min(int(0.1 * (count - n_test)), MOST_VALID)
    n_train = count - n_test - n_valid
    if n_train < 1 or min(n_valid, n_test) < 2:
        parts = f"{max(n_train, 0)} to train on, {max(n_valid, 0)} for validation and {n_test} for testing"
        raise InputError(f"--dataset {name}: {count} rows are too few ({parts}; 1, 2 and 2 at least); give more")
    return n_train, n_valid, n_test


def _kept(name: str, rows: np.ndarray, table: Table) -> tuple[list[int], list[str]]:
    """The columns to keep, by what they are on `rows`, and notes on those dropped."""
    spread = rows.min(0) < rows.max(0)
    kept, notes = np.flatnonzero(spread).tolist(), []
    if not kept:
        raise InputError(f"--dataset {name}: all {len(spread)} columns are constant; there is nothing to learn")
    if len(kept) < len(spread):
        constant = ", ".join(table.columns[i] for i in np.flatnonzero(~spread))
        notes.append(f"constant columns dropped: {constant}")
        log.warning("%s: %s", name, notes[-1])
    if table.decorrelate and (copies := [kept[i] for i in _copies(rows[:, kept])]):
        names = ", ".join(table.columns[i] for i in copies)
        notes.append(f"columns dropped, correlation above {CORRELATION} with another: {names}")
        kept = [i for i in kept if i not in copies]
    return kept, notes


def _copies(rows: np.ndarray) -> list[int]:
    """The columns to drop, first one first, until no two are closer than `CORRELATION`."""
    close = np.abs(np.atleast_2d(np.corrcoef(rows.T))) > CORRELATION
    copies = []
    while (copied := close.sum(0) > 1).any():  # each is close to itself
        copies.append(int(copied.argmax()))
        close[copies[-1]] = close[:, copies[-1]] = False
    return copies


def _dequantise(rows: np.ndarray, rng: np.random.RandomState, bins: int) -> np.ndarray:
    """Add uniform noise, `bins` bins wide, to each column in place; returns half its width, (d,).

    A bin is the median gap between a column's values, over all rows: it belongs to how the column was measured, not to
    a split.
    """
    width = np.array([np.median(np.diff(np.unique(column))) * bins / 2 for column in rows.T])
    for column, half in zip(rows.T, width):
        column += (rng.rand(len(column)) * 2 - 1) * half
    return width


def _whitening(rows: np.ndarray, order: np.ndarray, first: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the rows and the map to the principal axes of the `first` of them, at unit variance.

    The axes are found with the columns in `order`, the map is of the columns as they are.
    """
    mean = rows.mean(0)
    centred = (rows - mean)[:first, order]
    _, s, axes = np.linalg.svd(centred, full_matrices=False)
    whitening = np.empty((len(order), len(order)))
    whitening[order] = axes.T / s * np.sqrt(len(centred))
    return mean, whitening


def _check_rank(name: str, rows: np.ndarray, columns: tuple[str, ...], n_train: int) -> None:
    if n_train <= len(columns):
        raise InputError(f"--dataset {name}: {n_train} training rows of {len(columns)} columns; more rows are needed")
    values, vectors = np.linalg.eigh(np.atleast_2d(np.corrcoef(rows.T)))
    if values[0] < SINGULAR:
        weights = np.abs(vectors[:, 0])
        named = ", ".join(columns[i] for i in np.flatnonzero(weights > 0.01 * weights.max())[:6])
        raise InputError(f"--dataset {name}: the columns {named} depend on each other linearly; remove one of them")


def _shared(rows: np.ndarray, splits: tuple[slice, slice, slice]) -> list[str]:
    """Notes on held-out rows that equal a training row."""
    train, valid, test = (list(map(bytes, rows[split] + 0.0)) for split in splits)  # + 0.0: -0 equals 0
    seen, notes = set(train), []
    for what, held in (("validation", valid), ("test", test)):
        if count := sum(row in seen for row in held):
            notes.append(f"{count:,} of {len(held):,} {what} rows equal a training row in every column")
    return notes


def _discrete(rows: np.ndarray, columns: tuple[str, ...]) -> list[str]:
    """A note on columns with few distinct values."""
    few = [name for name, column in zip(columns, rows.T) if 10 * len(np.unique(column)) <= len(rows)]
    if not few:
        return []
    return [f"few distinct values, so no density and a likelihood without bound: {', '.join(few)}"]


def _key(table: Table, protocol: str, scaling: str, seed: int) -> str:
    flags = table.dequantise, table.decorrelate, table.whiten
    recipe = FORMAT, table.columns, table.values.shape, table.n_valid, table.n_test, flags, protocol, scaling, seed
    return hashlib.sha256(repr(recipe).encode() + np.ascontiguousarray(table.values).tobytes()).hexdigest()[:16]
