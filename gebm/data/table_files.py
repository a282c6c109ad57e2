"""Tables of numbers in files, CSV or .npz of numpy, as they are: neither split nor whitened."""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gebm.data.arrays import headers, load_npz
from gebm.data.csv_files import Sheet, are_rounded, numbered
from gebm.data.csv_header import is_number
from gebm.errors import InputError
from gebm.text import hint

__all__ = ["Table", "chosen", "names_of", "numbers", "read_csv", "read_npz", "read_rows"]

ROWS = 20  # fewer that are numbered 1, 2, 3, ... may be so by chance

log = logging.getLogger("gebm")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as they were read, and what is to be done to them.

    Attributes:
        columns: names of the columns.
        values: float64 (N, d), finite.
        named: whether the names are the columns' own, not numbers.
        width: columns of the file, of which these may be some; 0: these are all.
        notes: lines on how it was read.
        n_valid, n_test: that many rows at the end are for validation and, last, for testing; 0: to be drawn.
        paper_test: test rows to draw under the paper's protocol; 0: a tenth.
        dequantise: whether values are rounded, so that they need noise of the width of a bin to have a density.
        decorrelate: whether columns that nearly copy another are to be dropped.
        whiten: whether it is to be whitened.
    """

    columns: tuple[str, ...]
    values: np.ndarray
    notes: tuple[str, ...] = ()
    named: bool = True
    width: int = 0
    n_valid: int = 0
    n_test: int = 0
    paper_test: int = 0
    dequantise: bool = False
    decorrelate: bool = False
    whiten: bool = True


def numbers(title: str, array: np.ndarray) -> np.ndarray:
    """The array as float64 (N, d); raises InputError, which begins with `title`, unless it is one of finite numbers."""
    if array.dtype.kind not in "fiu" or array.ndim != 2 or not array.size:
        raise InputError(f"{title} is {array.dtype} {array.shape}, must be an array of numbers (N, d)")
    array = array.astype(np.float64)
    for row, column in np.argwhere(~np.isfinite(array))[:1]:
        raise InputError(f"{title} is {array[row, column]} in row {row}, column {column} (from 0); remove or fill it")
    return array


def names_of(text: str) -> tuple[str, ...]:
    """The names in a text with commas between them; one that has a comma stands in double quotes."""
    names = next(csv.reader([text], skipinitialspace=True), [])
    return tuple(name.strip() for name in names if name.strip())


def chosen(title: str, names: Sequence[str], columns: Sequence[str], drop: Sequence[str]) -> list[int]:
    """Places of the columns to take: those named, or all but those to drop, in the order of the table.

    Raises:
        InputError: no column of that name, or none is left.
    """
    if columns and drop:
        raise InputError("--columns and --drop: give one of the two")
    flag, named, known_names = "columns" if columns else "drop", set(columns or drop), set(names)
    for name in columns or drop:
        if name not in known_names:
            known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise InputError(f"--{flag} {name}: {title} has no such column{hint(name, names)}; it has {known}")
    taken = [i for i, name in enumerate(names) if (name in named) == bool(columns)]
    if not taken:
        raise InputError(f"--drop {', '.join(drop)}: are all columns of {title}; leave one")
    return taken


def read_csv(path: str | Path, columns: Sequence[str] = (), drop: Sequence[str] = (), header: str = "auto") -> Table:
    """Read numbers separated by commas, semicolons, tabs, | or blanks.

    A first column without a name that counts, or labels, the rows is left out unless it is among `columns`.

    Arguments:
        columns: names of the columns to read; empty: all.
        drop: names of those to leave out, which may hold anything.
        header: yes or no: whether the first line names the columns; auto: by what it looks like.

    Raises:
        InputError: no such file or column; text, an empty cell, NaN or infinity, or a line of another length: the
            message names the file, the line and the column.
    """
    sheet = Sheet.open(path, header)
    path, notes = sheet.path, list(sheet.notes)
    used = [i for i in chosen(str(path), sheet.columns, columns, drop) if i not in sheet.twins]
    taken = set(used)
    if twice := [sheet.columns[i] for i, first in sheet.twins.items() if first in taken]:
        notes.append(f"columns of the same name and values as an earlier one left out: {', '.join(twice)}")
    labels = 0 in used and not columns and len(used) > 1
    if labels and 0 in sheet.unnamed and not all(row and is_number(row[0]) for row in sheet.sample):
        used, labels = used[1:], False
        notes.append("first column left out: it has no name and labels the rows")
    values = sheet.read(used, "mend or remove it, or leave the column out with --drop")
    if labels and (0 in sheet.unnamed or not sheet.header) and _counts(values[:, 0], strictly=not sheet.header):
        used, values = used[1:], values[:, 1:]
        notes.append(f"first column left out: it has no name and numbers the rows (--columns {_list(sheet)} keeps it)")
    for i, column in zip(used, values.T):
        if sheet.header and _counts(column, strictly=True):
            name = sheet.columns[i]
            notes.append(f"column {name} counts the rows and is learnt like any other; --drop {name} leaves it out")
    for i in used:
        if are_rounded(row[i] for row in sheet.sample if i < len(row)):
            name = sheet.columns[i]
            notes.append(f"column {name} has whole numbers above 2^53, which are rounded; --drop {name} leaves it out")
    names = tuple(sheet.columns[i] for i in used)
    return Table(names, values, tuple(notes), named=sheet.header, width=len(sheet.columns))


def _list(sheet: Sheet) -> str:
    return ",".join(sheet.columns) if len(sheet.columns) < 5 else f"{sheet.columns[0]},..."


def _counts(column: np.ndarray, strictly: bool) -> bool:
    """Whether a column numbers the rows: 0, 1, 2, ... or 1, 2, 3, ...; or, not `strictly`, by numbers of their own."""
    if strictly:
        return len(column) >= ROWS and bool((np.diff(column) == 1).all()) and column[0] in (0, 1)
    whole = bool((column == np.floor(column)).all()) and len(np.unique(column)) == len(column)
    return whole or bool((np.diff(column) > 0).all())


def read_npz(path: str | Path) -> Table:
    """Read the only array of an .npz, numbers (N, d), or its arrays `train`, `test` and, if it is there, `valid`.

    Raises:
        InputError: not an .npz, other arrays than these, or a value that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {found}; name one .npz of numpy")
    there = list(headers(path))
    names: list[str] = [name for name in ("train", "valid", "test") if name in there]
    if not {"train", "test"} <= set(names):
        names = there
        if len(names) != 1:
            held = ", ".join(names) or "no arrays"
            raise InputError(f"{path}: holds {held:.200}; it must hold train and test (and valid), or one array")
    arrays = load_npz(path, names)
    arrays = {name: numbers(f"{path}: {name}", arrays[name]) for name in names}
    widths = {array.shape[1] for array in arrays.values()}
    if len(widths) != 1:
        raise InputError(f"{path}: its arrays have {' and '.join(map(str, sorted(widths)))} columns; they must agree")
    rows = {name: len(array) for name, array in arrays.items()} if len(arrays) > 1 else {}
    values = np.concatenate(list(arrays.values()))
    return Table(numbered(widths.pop()), values, named=False, n_valid=rows.get("valid", 0), n_test=rows.get("test", 0))


def read_rows(
    path: str | Path,
    columns: Sequence[str],
    width: int = 0,
    *,
    optional: Sequence[str] = (),
    named: bool | None = None,
    header: str = "auto",
) -> np.ndarray:
    """The rows of a CSV or .npz file as float64 (N, d + k): `columns`, then those of `optional`, NaN where missing.

    Columns are found by name; others are not read. Where the file has no names, or `columns` have none, there must be
    as many as are wanted, or `width`, of which x1, x2, ... are the columns of those numbers.

    Arguments:
        named: whether `columns` are names of the table they are of, not numbers; None: by what they look like.
        header: as in `read_csv`.

    Raises:
        InputError: as of `read_csv` and `read_npz`, or a column is missing.
    """
    path = Path(path)
    if named is None:
        named = not set(columns) <= set(numbered(width or len(columns)))
    if path.suffix == ".npz":
        table = read_npz(path)
        names, by_name, blank = table.columns, False, False
    else:
        sheet = Sheet.open(path, header, columns)
        names, by_name, blank = sheet.columns, sheet.header, 0 in sheet.unnamed
        for note in sheet.notes:
            log.info("%s: %s", path, note)
    if set(columns) <= set(names) and by_name:
        place = {name: i for i, name in reversed(list(enumerate(names)))}  # of one name, the first
        places = {name: place[name] for name in (*columns, *optional) if name in place}
    elif not named and width and len(names) - width in (0, int(blank)):
        places = {name: int(name[1:]) - 1 + len(names) - width for name in (*columns, *optional)}
    elif not (named and by_name) and len(names) - len(columns) in (0, int(blank)):
        places = {name: i + len(names) - len(columns) for i, name in enumerate(columns)}
    else:
        raise _not_there(path, names, columns, named)
    if (named or by_name) and not (by_name and set(columns) <= set(names)):
        log.info("%s: its columns are taken in the order of those trained on", path)
    used = list(places.values())
    values = table.values[:, used] if path.suffix == ".npz" else sheet.read(used)
    rows = np.full((len(values), len(columns) + len(optional)), np.nan)
    rows[:, [i for i, name in enumerate((*columns, *optional)) if name in places]] = values
    return rows


def _not_there(path: Path, names: Sequence[str], columns: Sequence[str], named: bool) -> InputError:
    count = f"{path}: {len(names)} column{'s' if len(names) > 1 else ''}, where {len(columns)} are needed"
    if not named:
        return InputError(f"{count}, in the order of those trained on, which had no names; leave the others out")
    there = set(names)
    missing = [name for name in columns if name not in there]
    like = hint(missing[0], names) if missing else ""
    return InputError(f"{count}, and none named {', '.join(missing[:5])}{like}; name them in a header")
