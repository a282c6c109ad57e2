"""Tables of numbers in text files: which separator they have, which line names their columns, what is read of them."""

import csv
import io
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from gebm.bounded import open_regular
from gebm.data.arrays import MAX_BYTES
from gebm.data.csv_header import has_decimal_comma, is_number, names_columns
from gebm.errors import InputError

__all__ = ["HEADERS", "Sheet", "are_rounded", "as_cell", "as_name", "bounded_lines", "check_size", "numbered"]
__all__ += ["write_csv"]

MAX_COLUMNS = 10_000  # of a table
HEADERS = ("auto", "yes", "no")
SEPARATORS = (",", ";", "\t", "|", " ")
SNIFFED = 500  # lines that show the separator and the header
MAX_LINE = 1 << 20  # characters
EXCEL = re.compile(r'"?sep=."?', re.IGNORECASE)
THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2}\.\d{3}\s*")
LONG = re.compile(r"\s*[+-]?\d{16,}\s*")
UNNAMED = re.compile(r"Unnamed: \d+")  # what pandas calls a column without a name
FORMULA = ("=", "+", "-", "@")  # what a cell must not begin with, lest a spreadsheet runs it


def numbered(count: int) -> tuple[str, ...]:
    """Names x1, x2, ... for columns without any."""
    return tuple(f"x{i + 1}" for i in range(count))


def _text_of(path: Path) -> TextIO:
    return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="")


def bounded_lines(stream: TextIO, path: Path) -> Iterator[str]:
    """The lines of a text; raises InputError at one of more than `MAX_LINE` characters."""
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), ""), 1):
        if len(line) > MAX_LINE:
            raise InputError(f"{path} line {number}: longer than {MAX_LINE:,} characters, which no row is")
        yield line


def check_size(path: Path, size: int) -> None:
    """Raise InputError if a file of that many bytes, unpacked, is too large to be read whole."""
    if size > MAX_BYTES:
        raise InputError(f"{path}: {size:,} bytes unpacked, at most {MAX_BYTES:,} are read; take fewer rows")


def as_cell(value: float) -> str:
    """A number as text that reads back as the same float64; whole numbers without a point."""
    value = float(value)
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def as_name(cell: str) -> str:
    """The name of a column from a cell of a header: on one line, and without the mark of `write_csv`."""
    name = re.sub(r"\s*[\r\n]+\s*", " ", cell.strip())
    return name[1:] if name.startswith("'") and name[1:].startswith(FORMULA) else name


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[float]]) -> None:
    """Write numbers under the names of their columns, so that `Sheet` reads both back as they are.

    A name that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    names = [f"'{name}" if name.startswith(FORMULA) and not is_number(name) else name for name in columns]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(map(as_cell, row) for row in rows)


@dataclass(frozen=True)
class Sheet:
    """A text file of rows, whose form is known and whose rows are not read yet.

    Attributes:
        columns: names of all columns; x1, x2, ... where they have none.
        header: whether the first line names them.
        skipped: lines to the end of that one.
        unnamed: the columns that the header leaves without a name.
        sample: cells of the first rows.
        notes: lines on how it is read.
    """

    path: Path
    separator: str
    columns: tuple[str, ...]
    header: bool
    skipped: int
    unnamed: frozenset[int]
    sample: list[list[str]]
    notes: tuple[str, ...]

    @cached_property
    def twins(self) -> dict[int, int]:
        """Columns that have the name, and so the values, of an earlier one -> that one."""
        first: dict[str, int] = {}
        return {i: first[name] for i, name in enumerate(self.columns) if first.setdefault(name, i) < i}

    @classmethod
    def open(cls, path: str | Path, header: str = "auto", known: Collection[str] = ()) -> "Sheet":
        """Look at the first lines of a file.

        Arguments:
            header: yes or no: whether the first line names the columns; auto: by what it looks like.
            known: names of which a first line that holds them all is the header.

        Raises:
            InputError: no such file, not a text, an empty one, or a header that names two columns alike.
        """
        path = Path(path)
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no such file"
            raise InputError(f"{path}: {found}; name a table of numbers, one file (.csv)")
        check_size(path, path.stat().st_size)
        with _complaints(path):
            with _text_of(path) as stream:
                lines = _first(line for line in bounded_lines(stream, path) if line.strip())
            if not lines:
                raise InputError(f"{path}: is empty; it must hold rows of numbers")
            if EXCEL.fullmatch(lines[0].strip()):
                raise InputError(f"{path} line 1: {lines[0].strip()} is a word to Excel, no row; remove the line")
            separator = _separator(lines)
            with _text_of(path) as stream:
                reader = csv.reader(_lines(bounded_lines(stream, path), separator), delimiter=separator)
                first = next(row for row in reader if row)
                skipped = reader.line_num
            _, *below = _cells(lines, separator)
        if len(first) > MAX_COLUMNS:
            raise InputError(
                f"{path}: {len(first):,} columns; a density is of at most {MAX_COLUMNS:,}: leave some out of the file"
            )
        commas = [i for i, cell in enumerate(first) if has_decimal_comma(cell)]
        if header != "yes" and commas and all(i in commas or is_number(cell) for i, cell in enumerate(first)):
            raise InputError(f"{path} line 1, column x{commas[0] + 1}: {_wrong(first, commas[0], '')}")
        first, marked = _without_mark(first, below) if header != "no" else (first, False)
        names = [as_name(cell) for cell in first]
        named, notes = header == "yes" or (header == "auto" and marked), []
        if header == "auto" and not marked:
            alike = [row for row in below if len(row) == len(first)]
            quoted = _only_first_is_quoted(lines, separator)
            named = (bool(known) and set(known) <= set(names)) or names_columns(first, alike, quoted)
            if any(map(is_number, first)):
                shown = ", ".join(first[:4]) + (", ..." if len(first) > 4 else "")
                what, other = ("names of columns", "no") if named else ("a row, not as names of columns", "yes")
                notes.append(f"first line ({shown:.80}) taken as {what}; --header {other} says otherwise")
        if separator == ";" and _may_be_thousands(below):
            notes.append(
                "every point has three digits behind it: taken as decimal points; if they separate thousands, write "
                "the numbers without them"
            )
        if not named:
            return cls(path, separator, numbered(len(first)), False, 0, frozenset(), [first, *below], tuple(notes))
        if not below:
            raise InputError(f"{path}: a header and no rows; it must hold rows of numbers")
        if all(len(row) == len(names) + 1 for row in below) and _are_row_names(lines[1:], separator):
            names = ["", *names]
        unnamed = frozenset(i for i, name in enumerate(names) if not name or UNNAMED.fullmatch(name))
        taken = set(names)
        columns = tuple(name or _default(i, taken) for i, name in enumerate(names))
        _check_names(path, columns, below)
        return cls(path, separator, columns, True, skipped, unnamed, below, tuple(notes))

    def read(self, used: Sequence[int], advice: str = "mend or remove it") -> np.ndarray:
        """Those columns as float64 (N, d); the cells of others are not read.

        Raises:
            InputError: text, an empty cell, NaN or infinity, or a line of another length: the message names the file,
                the line and the column, and ends with `advice`.
        """
        read = set(used)
        twins = {i: first for i, first in self.twins.items() if first in read}
        read |= set(twins)
        unread: dict[int | str, Callable[[str], float]] = {
            i: _nothing for i in range(len(self.columns)) if i not in read
        }
        try:
            with _complaints(self.path), _text_of(self.path) as stream:
                rows = islice(self._lines(stream), self.skipped, None)
                values: np.ndarray = np.loadtxt(
                    rows, delimiter=self.separator, quotechar='"', comments=None, ndmin=2, encoding=None,
                    converters=unread or None,
                )  # fmt: skip
        except (ValueError, csv.Error) as error:
            if isinstance(error, InputError):
                raise
            raise self._complaint(used, advice, str(error)) from error
        if values.shape[1] != len(self.columns):
            raise self._complaint(used, advice, "not a table of numbers")
        for i, first in twins.items():
            if not np.array_equal(values[:, i], values[:, first]):
                raise _two_named(self.path, self.columns[i])
        values = values[:, list(used)]
        if not np.isfinite(values).all():
            raise self._complaint(used, advice, "not a table of finite numbers")
        return values

    def _lines(self, stream: TextIO) -> Iterator[str]:
        return _lines(bounded_lines(stream, self.path), self.separator)

    def _complaint(self, used: Sequence[int], advice: str, reason: str) -> InputError:
        """What is wrong with the first bad line; read once more, as the fast reader does not say where it failed."""
        count = len(self.columns)
        try:
            with _text_of(self.path) as stream:
                reader = csv.reader(self._lines(stream), delimiter=self.separator)
                line = 0
                for row in reader:
                    where, line = f"{self.path} line {line + 1}", reader.line_num
                    if not row or line <= self.skipped:
                        continue
                    if len(row) != count:
                        found = f"{len(row)} columns, the first line has {count}"
                        if self.columns[0].startswith("#"):
                            found = f"{len(row)} columns, after a first line that is no row of names"
                        elif self.separator == "," and len(row) == 2 * count:
                            found += " (a decimal comma splits a number: write decimals with a point)"
                        return InputError(f"{where}: {found}; mend or remove it")
                    for i in used:
                        if not (is_number(row[i]) and math.isfinite(float(row[i].strip()))):
                            return InputError(f"{where}, column {self.columns[i][:40]}: {_wrong(row, i, advice)}")
        except csv.Error as error:
            reason = str(error)
        return InputError(f"{self.path}: cannot be read as a table ({' '.join(reason.split())[:200]}); export it again")


def _wrong(row: Sequence[str], i: int, advice: str) -> str:
    """What is wrong with a cell, and what to do about it."""
    cell = row[i].strip()
    if len(row) == 1:
        advice = "separate columns by comma, semicolon, tab, | or blank"
    if has_decimal_comma(cell):
        advice = "write decimals with a point"
    return f"{f'is {cell[:40]!r}, not a finite number' if cell else 'is empty'}; {advice}"


def _nothing(cell: str) -> float:
    return 0.0


@contextmanager
def _complaints(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({_other_text(path, error.reason)})") from error
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as a table ({' '.join(str(error).split())[:200]})") from error


def _other_text(path: Path, reason: str) -> str:
    """What a file that is no UTF-8 seems to be, and what to do about it."""
    with open_regular(path) as file:
        start = file.read(4)
    if start.startswith(b"\x1f\x8b"):
        return "it is packed by gzip: unpack it"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it is UTF-16: save it as CSV UTF-8"
    return f"{reason}; if it is text of another encoding, as Latin-1, save it as CSV UTF-8"


def _first(lines: Iterator[str]) -> list[str]:
    """The lines that show what a file is: no more than that many, nor than `MAX_LINE` characters after the first."""
    found: list[str] = []
    length = 0
    for line in islice(lines, SNIFFED):
        found.append(line)
        length += len(line)
        if length > MAX_LINE:
            break
    return found


def _lines(lines: Iterable[str], separator: str) -> Iterator[str]:
    """The lines with one separator between cells, where that is any number of blanks."""
    for line in lines:
        blank = not line.strip(" \r\n")
        yield "\n" if blank else " ".join(line.split()) + "\n" if separator == " " else line


def _cells(lines: Iterable[str], separator: str, raw: bool = False) -> list[list[str]]:
    """The cells of the lines; `raw`: with their quotes."""
    lines = _lines(lines, separator)
    if raw:
        return [row for row in csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE) if row]
    return [row for row in csv.reader(lines, delimiter=separator) if row]


def _separator(lines: list[str]) -> str:
    """The one that makes most of the cells numbers, and of those the one that makes most cells.

    A blank is none where every line has one of the others but the comma, which may be of decimals: runs of blanks count
    as one, so an empty cell would be closed over.
    """
    others = [mark for mark in ("\t", ";", "|") if all(mark in line for line in lines)]

    def score(separator: str) -> tuple[float, int]:
        try:
            cells = [cell for row in _cells(lines, separator) for cell in row]
        except csv.Error:  # a field is too long: the line has another separator
            return -1.0, 0
        return sum(is_number(cell) or has_decimal_comma(cell) for cell in cells) / len(cells), len(cells)

    return max((separator for separator in SEPARATORS if separator != " " or not others), key=score)


def _without_mark(first: list[str], below: Sequence[Sequence[str]]) -> tuple[list[str], bool]:
    """The cells of a first line without the "# " that numpy writes before a header, and whether it was there; as they
    are where no line below has as many, which makes the line a comment."""
    mark, blank, name = first[0].partition("#")
    if mark.strip() or (name and not name.startswith(" ")):
        return first, False
    bare = [name.strip(), *first[1:]] if name.strip() else first[1:]
    return (bare, True) if any(len(row) == len(bare) for row in below) else (first, False)


def _only_first_is_quoted(lines: list[str], separator: str) -> bool:
    """Whether numbers of the first line are in quotes, and those below them are not."""
    first, *below = _cells(lines, separator, raw=True)
    alike = [row for row in below if len(row) == len(first)]
    quoted = [i for i, cell in enumerate(first) if cell.startswith('"') and is_number(cell.strip('"'))]
    return bool(alike) and any(not any(row[i].startswith('"') for row in alike) for i in quoted)


def _default(i: int, names: Collection[str]) -> str:
    """A name for a column without one, that no other has."""
    name = f"x{i + 1}"
    while name in names:
        name += "_"
    return name


def _are_row_names(lines: list[str], separator: str) -> bool:
    """Whether each line begins with a name, of which R writes none in the header: quoted, no number, or 1, 2, 3, ..."""
    names = [row[0] for row in _cells(lines, separator, raw=True)]
    counted = [str(i + 1) for i in range(len(names))]
    return names == counted or all(name.startswith('"') or not is_number(name) for name in names)


def _may_be_thousands(rows: Sequence[Sequence[str]]) -> bool:
    """Whether each number with a point is one that may have it between thousands, and there are several."""
    pointed = [cell for row in rows for cell in row if "." in cell]
    return len(pointed) > 4 and all(map(THOUSANDS.fullmatch, pointed))


def are_rounded(cells: Iterable[str]) -> bool:
    """Whether there are whole numbers among some that no float64 is."""
    return any(int(cell) != int(float(cell)) for cell in cells if LONG.fullmatch(cell))


def _check_names(path: Path, columns: Sequence[str], below: Sequence[Sequence[str]]) -> None:
    """Refuse two columns of one name whose first cells differ."""
    seen: dict[str, int] = {}
    for i, name in enumerate(columns):
        first = seen.setdefault(name, i)
        if first < i and not all(i < len(row) and row[i] == row[first] for row in below):
            raise _two_named(path, name)


def _two_named(path: Path, name: str) -> InputError:
    return InputError(f"{path} line 1: two columns are named {name[:40]!r}, of other values; rename one")
