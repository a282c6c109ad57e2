"""Tables of rows: split, cleaned and whitened for density models."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gebm.data import toy, uci
from gebm.data.columns import CORRELATION, Dropped, constant, copies, dependent, discrete, dropped, sentinels
from gebm.data.csv_files import HEADERS, numbered
from gebm.data.table_files import Table, chosen, numbers, read_csv, read_npz
from gebm.errors import InputError
from gebm.registry import resolve
from gebm.seeds import stream

__all__ = ["PROTOCOLS", "SCALINGS", "TABLES", "TableData", "load_table"]

PROTOCOLS, SCALINGS = ("standard", "paper"), ("whiten", "standardise")
FORMAT = 1  # raise it when the same table, protocol and seed come to mean other arrays
MOST_VALID = 1000  # rows
LARGEST = 1e100  # value: the squares of larger ones have no sum
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
        named: whether the names of the columns are their own; None: not known, of a run from before it was kept.
        dropped: columns that those kept determine, constant ones among them; None: not known.
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
    named: bool | None = None
    dropped: Dropped | None = None

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

    def rounded_by(self, rows: np.ndarray, dtype: np.dtype) -> float:
        """The largest error that a type gives to rows (N, d), finite and in original units, once they are whitened."""
        if dtype.kind != "f" or dtype.itemsize >= 8 or not len(rows):
            return 0.0
        most = np.abs(rows).max(0, where=np.isfinite(rows), initial=0)
        return float((most * np.finfo(dtype).eps / 2 @ np.abs(self.whitening)).max())

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


def load_table(
    dataset: str,
    data_path: str | Path = "data",
    *,
    protocol: str = "standard",
    scaling: str = "standardise",
    seed: int = 0,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    header: str = "auto",
) -> TableData:
    """Loads a table and prepares it.

    `standard`: the seed draws 10 % test rows and 10 % of the rest (at most 1,000) for validation; rounded values get
    uniform noise within their own bin; constant columns, those that others determine linearly, and of Parkinsons those
    that copy another, are dropped; mean and covariance of the training rows whiten all. `paper`: the procedure behind
    the published figures, whose one split is that of seed 1: noise of twice the bin's width, columns in random order,
    whitening fitted on all rows, test rows included. The order of the columns is folded into `whitening`.

    Args:
        dataset: a name in `TABLES`; `csv:PATH`; `npz:PATH`, one array (N, d) or train and test (and valid); `toy:NAME`,
            drawn by the seed and left as it is; or a dotted path `package.module:factory` to a function of (data_path,
            seed) that returns an array (N, d) or a `TableData`.
        scaling: `standardise`: each column to mean 0 and variance 1, on its own axis; or `whiten`. Training takes the
            same default.
        data_path: where the files of the sets in `TABLES` lie, or its folder `uci`; else they are downloaded to that.
        columns, drop: names of the columns to take, or of those to leave out, which in a CSV may hold anything.
        header: of a CSV, whether its first line names the columns: yes, no, or auto, by what it looks like.

    Raises:
        InputError: an unknown data set, protocol or column; a file that is missing, damaged or holds anything but
            finite numbers; too few rows.

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
    if kind in ("csv", "npz"):
        rest = os.path.expanduser(rest)
    name = dataset
    if header not in HEADERS:
        raise InputError(f"--header {header!r}: choose {', '.join(HEADERS)}")
    if header != "auto" and kind != "csv":
        raise InputError(f"--header {header}: is of CSV files, and --dataset {dataset} is none; leave it out")
    if rest and kind == "csv":
        name, table = f"csv:{Path(rest).resolve().name}", read_csv(rest, columns, drop, header)
        for note in table.notes:
            log.warning("%s: %s", name, note)
        return _prepared(name, table, protocol, scaling, seed)
    if rest and kind == "npz":
        name, table = f"npz:{Path(rest).resolve().name}", read_npz(rest)
    elif rest and kind == "toy":
        table = toy.table(rest, seed)
    elif dataset in TABLES:
        table = TABLES[dataset](data_path)
    else:
        known = TABLES | dict.fromkeys(("csv:PATH", "npz:PATH", "toy:NAME"))  # these for the error message
        made = resolve(dataset, known, "--dataset")(data_path, seed)
        if isinstance(made, TableData):
            if columns or drop:
                raise InputError(f"--columns, --drop: --dataset {dataset} has chosen its columns; leave them out")
            return made
        values = numbers(f"--dataset {dataset}: what it made", np.asarray(made))
        table = Table(numbered(values.shape[1]), values, named=False)
    taken = chosen(dataset, table.columns, columns, drop)
    if len(taken) < len(table.columns):
        names = tuple(table.columns[i] for i in taken)
        table = replace(table, columns=names, values=table.values[:, taken], width=len(table.columns))
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
    kept, determined, dropping = _kept(name, rows[fitted], table, n_train)
    rest = dropped([table.columns[i] for i in determined], rows[fitted][:, kept], rows[fitted][:, determined])
    dropping += _news(rest, rows[n_train:][:, kept], rows[n_train:][:, determined])
    dropping += sentinels(rows[:, kept], [table.columns[i] for i in kept])
    for note in dropping:
        log.warning("%s: %s", name, note)
    notes += dropping
    rows, columns = rows[:, kept], tuple(table.columns[i] for i in kept)
    exact, width = rows[splits[0]].copy(), None
    if table.dequantise:
        width = _dequantise(rows, rng, bins=2 if paper else 1)
        noise = "twice the bin's width, as published" if paper else "one bin's width"
        notes.append(f"uniform noise added, {noise} (bin: median gap between a column's values)")
    notes += discrete(rows, columns)

    if table.whiten:
        order = rng.permutation(len(columns)) if paper else np.arange(len(columns))
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
        width=table.width or len(table.columns), named=table.named, dropped=rest,
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


def _kept(name: str, rows: np.ndarray, table: Table, n_train: int) -> tuple[list[int], list[int], list[str]]:
    """The columns to keep, those that these determine, by what they are on `rows`, and notes on those dropped."""
    same, notes = constant(rows), []
    kept = np.flatnonzero(~same).tolist()
    if not kept:
        raise InputError(f"--dataset {name}: all {len(same)} columns are constant; there is nothing to learn")
    if same.any():
        notes.append(f"constant columns dropped: {_listed(table, np.flatnonzero(same))}")
    if table.decorrelate and (copied := [kept[i] for i in copies(rows[:, kept])]):
        names = ", ".join(table.columns[i] for i in copied)
        notes.append(f"columns dropped, correlation above {CORRELATION} with another: {names}")
        kept = [i for i in kept if i not in copied]
    determined = np.flatnonzero(same).tolist()
    if table.whiten:
        if n_train <= len(kept):
            raise InputError(f"--dataset {name}: {n_train} training rows of {len(kept)} columns; more rows are needed")
        if follow := [kept[i] for i in dependent(rows[:, kept])]:
            notes.append(f"columns dropped, which others determine linearly: {_listed(table, follow)}")
            kept = [i for i in kept if i not in follow]
            determined += follow
    return kept, determined, notes


def _listed(table: Table, places: Iterable[int]) -> str:
    return ", ".join(table.columns[i] for i in places)


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


def _shared(rows: np.ndarray, splits: tuple[slice, slice, slice]) -> list[str]:
    """Notes on held-out rows that equal a training row."""
    train, valid, test = (list(map(bytes, rows[split] + 0.0)) for split in splits)  # + 0.0: -0 equals 0
    seen, notes = set(train), []
    for what, held in (("validation", valid), ("test", test)):
        if count := sum(row in seen for row in held):
            notes.append(f"{count:,} of {len(held):,} {what} rows equal a training row in every column")
    return notes


def _news(rest: Dropped, kept: np.ndarray, values: np.ndarray) -> list[str]:
    """A note on held-out rows that are new in a dropped column, of which likelihoods say nothing."""
    counts = dict(zip(rest.columns, rest.differ(kept, values).sum(0).tolist()))
    found = [f"{name} ({count:,})" for name, count in counts.items() if count]
    return [f"held-out rows that do not follow it, judged by the other columns alone: {', '.join(found)}"] * bool(found)


def _key(table: Table, protocol: str, scaling: str, seed: int) -> str:
    flags = table.dequantise, table.decorrelate, table.whiten
    recipe = FORMAT, table.columns, table.values.shape, table.n_valid, table.n_test, flags, protocol, scaling, seed
    return hashlib.sha256(repr(recipe).encode() + np.ascontiguousarray(table.values).tobytes()).hexdigest()[:16]
