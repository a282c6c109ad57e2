"""Tables of numbers in files, CSV or .npz of numpy, as they are: neither split nor whitened."""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from gebm.data.arrays import MAX_BYTES, headers, load_npz
from gebm.errors import InputError

__all__ = ["Table", "bounded_lines", "check_size", "numbered", "numbers", "read_csv", "read_npz", "read_rows"]

SEPARATORS = (",", ";", "\t")
SNIFFED = 20  # lines that show the separator
MAX_LINE = 1 << 20  # characters


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as they were read, and what is to be done to them.

    Attributes:
        columns: names of the columns.
        values: float64 (N, d), finite.
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
    n_valid: int = 0
    n_test: int = 0
    paper_test: int = 0
    dequantise: bool = False
    decorrelate: bool = False
    whiten: bool = True


def numbered(count: int) -> tuple[str, ...]:
    """Names x1, x2, ... for columns without any."""
    return tuple(f"x{i + 1}" for i in range(count))


def numbers(title: str, array: np.ndarray) -> np.ndarray:
    """The array as float64 (N, d); raises InputError, which begins with `title`, unless it is one of finite numbers."""
    if array.dtype.kind not in "fiu" or array.ndim != 2 or not array.size:
        raise InputError(f"{title} is {array.dtype} {array.shape}, must be an array of numbers (N, d)")
    array = array.astype(np.float64)
    for row, column in np.argwhere(~np.isfinite(array))[:1]:
        raise InputError(f"{title} is {array[row, column]} in row {row}, column {column} (from 0); remove or fill it")
    return array


def bounded_lines(stream: TextIO, path: Path) -> Iterator[str]:
    """The lines of a text; raises InputError at one of more than `MAX_LINE` characters."""
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), ""), 1):
        if len(line) > MAX_LINE:
            raise InputError(f"{path} line {number}: longer than {MAX_LINE:,} characters, which no row is")
        yield line


def _first(lines: Iterator[str]) -> list[str]:
    """The lines that show the separator: no more than that many, nor than `MAX_LINE` characters after the first."""
    found: list[str] = []
    for line in islice(lines, SNIFFED):
        found.append(line)
        if sum(map(len, found)) > MAX_LINE:
            break
    return found


def check_size(path: Path, size: int) -> None:
    """Raise InputError if a file of that many bytes, unpacked, is too large to be read whole."""
    if size > MAX_BYTES:
        raise InputError(f"{path}: {size:,} bytes unpacked, at most {MAX_BYTES:,} are read; take fewer rows")


def read_csv(path: str | Path) -> Table:
    """Read numbers separated by commas, semicolons or tabs; a first line without any number names the columns.

    Raises:
        InputError: no such file; text, an empty cell, NaN or infinity, or a line of another length: the message names
            the file, the line and the column.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {found}; name a table of numbers (.csv)")
    check_size(path, path.stat().st_size)
    separator, header = ",", False
    columns: tuple[str, ...] = ()
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            lines = _first(line for line in bounded_lines(stream, path) if line.strip())
        if not lines:
            raise InputError(f"{path}: is empty; it must hold rows of numbers")
        separator = _separator(lines)
        first = next(csv.reader(lines, delimiter=separator))
        header = not any(map(_is_number, first))
        if header and len(lines) == 1:
            raise InputError(f"{path}: a header and no rows; it must hold rows of numbers")
        columns = _names(path, first) if header else numbered(len(first))
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rest = bounded_lines(stream, path)
            while header and not next(rest).strip():
                pass  # blank lines before the header, then itself
            values = np.loadtxt(rest, delimiter=separator, quotechar='"', comments=None, ndmin=2)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error.reason}); export it as CSV") from error
    except (ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise _complaint(path, separator, columns, header, str(error)) from error
    if values.shape[1] != len(columns) or not np.isfinite(values).all():
        raise _complaint(path, separator, columns, header, "not a table of finite numbers")
    return Table(columns, values)


def read_npz(path: str | Path) -> Table:
    """Read the only array of an .npz, numbers (N, d), or its arrays `train`, `test` and, if it is there, `valid`.

    Raises:
        InputError: not an .npz, other arrays than these, or a value that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; name an .npz of numpy")
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
    return Table(numbered(widths.pop()), values, n_valid=rows.get("valid", 0), n_test=rows.get("test", 0))


def read_rows(path: str | Path, columns: Sequence[str], width: int = 0) -> np.ndarray:
    """The rows of a CSV or .npz file as float64 (N, d), its columns ordered as `columns`.

    Columns are found by name; others are left out. Where the file or `columns` have no names (but x1, x2, ...) there
    must be as many as are wanted, or `width`, of which these are the columns of those numbers.

    Raises:
        InputError: as of `read_csv` and `read_npz`, or a column is missing.
    """
    path = Path(path)
    table = read_npz(path) if path.suffix == ".npz" else read_csv(path)
    found, wanted = len(table.columns), len(columns)
    unnamed = table.columns == numbered(found), set(columns) <= set(numbered(width or wanted))
    if (not any(unnamed) or (all(unnamed) and found == width)) and set(columns) <= set(table.columns):
        return table.values[:, [table.columns.index(name) for name in columns]]
    if any(unnamed) and found == wanted:
        return table.values
    count = f"{path}: {found} column{'s' if found > 1 else ''}, where {wanted} are needed"
    if unnamed[1]:
        raise InputError(f"{count}, in the order of those trained on, which had no names; leave the others out")
    missing = [name for name in columns if name not in table.columns]
    raise InputError(f"{count}, and none named {', '.join(missing[:5])}; name them in a header")


def _separator(lines: list[str]) -> str:
    """The one that makes most of the cells numbers, and of those the one that makes most cells."""

    def score(separator: str) -> tuple[float, int]:
        try:
            cells = [cell for row in csv.reader(lines, delimiter=separator) for cell in row]
        except csv.Error:  # a field is too long: the line has another separator
            return -1.0, 0
        numeric = sum(_is_number(cell) or (separator != "," and _has_decimal_comma(cell)) for cell in cells)
        return numeric / len(cells), len(cells)

    return max(SEPARATORS, key=score)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _has_decimal_comma(cell: str) -> bool:
    return _is_number(cell.replace(",", ".", 1))


def _names(path: Path, header: list[str]) -> tuple[str, ...]:
    names = tuple(name.strip() or default for name, default in zip(header, numbered(len(header))))
    if len(set(names)) < len(names):
        (twice, _), *_ = Counter(names).most_common(1)
        raise InputError(f"{path} line 1: two columns are named {twice[:40]!r}; rename one")
    return names


def _complaint(path: Path, separator: str, columns: tuple[str, ...], header: bool, reason: str) -> InputError:
    """What is wrong with the first bad line; read once more, as the fast reader does not say where it failed."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            for line, row in islice(_lines(stream, separator), int(header), None if columns else 0):
                if len(row) != len(columns):
                    found = f"{len(row)} columns, the first line has {len(columns)}"
                    if columns[0].startswith("#"):
                        found = f"{len(row)} columns, after a first line that is no row of names"
                    return InputError(f"{path} line {line}: {found}; mend or remove it")
                for name, cell in zip(columns, row):
                    if not (_is_number(cell) and math.isfinite(float(cell))):
                        found = f"is {cell.strip()[:40]!r}, not a finite number" if cell.strip() else "is empty"
                        advice = "mend or remove it" if len(row) > 1 else "separate columns by comma, semicolon or tab"
                        if separator != "," and _has_decimal_comma(cell):
                            advice = "write decimals with a point"
                        return InputError(f"{path} line {line}, column {name[:40]}: {found}; {advice}")
    except csv.Error as error:
        reason = str(error)
    return InputError(f"{path}: cannot be read as a table ({' '.join(reason.split())[:200]}); export it again")


def _lines(stream: Iterator[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(stream, delimiter=separator)
    return ((reader.line_num, row) for row in reader if row)
