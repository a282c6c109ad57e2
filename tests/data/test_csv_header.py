import numpy as np
import pytest

from gebm.data.csv_header import is_number, names_columns

RNG = np.random.default_rng(0)


def cells(values, form="{}"):
    return [[form.format(x) for x in row] for row in values.tolist()]


DECIMALS = cells(RNG.normal(size=(200, 4)))
COUNTS = cells(RNG.integers(0, 17, size=(200, 4)))
SPECTRA = cells(RNG.uniform(0, 1, size=(200, 4)), "{:.3f}")
MIXED = [[str(i), x] for i, (x, *_) in zip(RNG.integers(20, 70, size=200), DECIMALS)]


CELLS = ["1.5", " -2 ", "\xa03", "+.5e-3", "inf", "nan", "1_000", "\u0661", "\uff11", "1\x1c", "x"]


@pytest.mark.parametrize("cell", CELLS)
def test_a_number_is_what_numpy_reads_as_one(cell):
    try:
        np.loadtxt([f"{cell},0\n"], delimiter=",", comments=None)
    except ValueError:
        assert not is_number(cell)
    else:
        assert is_number(cell)


@pytest.mark.parametrize(
    "first, below",
    [
        ("a b c d", DECIMALS),
        ("0 1 2 3", DECIMALS),  # pandas, of an array
        ("0 1 2 3", COUNTS),
        ("1 2 3 4", COUNTS),  # R
        ("3 0 2 1", DECIMALS),  # pandas, with columns in another order
        ("0 1", [row[:2] for row in DECIMALS]),
        ("0 1", MIXED),
        ("0", [row[:1] for row in DECIMALS]),  # pandas, of a series
        ("2000 2001 2002 2003", COUNTS),
        ("1990 1995 2005 2020", DECIMALS),
        ("400 410 420 430", COUNTS),
        ("400.5 402.1 403.8 407.0", SPECTRA),
        ("907.5 805.5 703.5 601.5", SPECTRA),
        ("-1 0 1 2", DECIMALS),
        ("a 1 2 3", [["x", *row[1:]] for row in DECIMALS]),  # a column of texts says nothing, the numbers do
        (" 0 1 2", [[str(i), *row[1:]] for i, row in enumerate(COUNTS)]),  # pandas, with its index
        ("1 b c d", COUNTS),
    ],
)
def test_a_line_of_names(first, below):
    assert names_columns(first.split(" "), below)


@pytest.mark.parametrize(
    "first, below",
    [
        *((" ".join(below[0]), below[1:]) for below in (DECIMALS, COUNTS, SPECTRA, MIXED)),
        ("5 5 5 5", DECIMALS),
        ("-3 2 8 1", DECIMALS),  # whole by chance, and no labels
        ("0.5 1.5 -2.5 0.25", DECIMALS),
        ("1e39 5 5 5", DECIMALS),  # the odd row that is looked for
        ("99 -99 99 -99", SPECTRA),
        ("1 2", [["3", "4"], ["5", "6"]]),
        ("1 2 3", [["4", "5", "7"]]),  # too few rows to tell
        ("2 3 4 5", [["1", "2", "3", "4"], *COUNTS]),  # others count too
        ("nan 1 2 3", COUNTS[:5] + [["4", "5", "6", "7"]]),
        ("1 x 3 9", COUNTS),  # a slip in a row
        ("NA 2.5 3.1 4.5", DECIMALS),
        ("1 2 3 4", []),
    ],
)
def test_a_line_that_is_a_row(first, below):
    assert not names_columns(first.split(" "), below)


def test_numbers_in_quotes_above_numbers_without_are_names():
    assert names_columns(["7", "3"], [["1", "2"], ["3", "4"]], quoted=True)


def test_rows_of_no_table_are_rarely_taken_for_names():
    """Of tables of 50 rows in many forms, the first row has nothing of its own: at most one in 50 can be unlike all."""
    rng, taken, tables = np.random.default_rng(1), 0, 1000
    for i in range(tables):
        d = int(rng.integers(1, 6))
        values = rng.integers(0, 6, size=(50, d)) if i % 2 else rng.normal(scale=5, size=(50, d)).round(i % 3)
        form = "{:g}" if i % 4 else "{}"
        first, *below = cells(values, form)
        taken += names_columns(first, below)
    assert taken <= tables / 50 + 3 * (tables / 50) ** 0.5
