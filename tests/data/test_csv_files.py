import csv
import gzip
import sys
from functools import partial

import numpy as np
import pytest

from gebm.data import csv_files, read_rows
from gebm.data.csv_files import Sheet, as_cell, as_name, write_csv
from gebm.data.table_files import names_of, read_csv
from gebm.errors import InputError

ROWS = np.random.default_rng(0).normal(size=(60, 3)) * [1, 10, 0.1]
LINES = [",".join(f"{x:.4f}" for x in row) for row in ROWS]


@pytest.fixture
def file(tmp_path):
    """Writes lines as t.csv; returns its path."""

    def write(*lines):
        (tmp_path / "t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / "t.csv"

    return write


VALUES = [1.7e9 + 0.123456, 5.0, -3, 0.1, 1 / 3, 1e300, 5e-324, 2.0**53 - 1, 2.0**60, -0.0, 1e16]


@pytest.mark.parametrize("value", VALUES)
def test_a_number_reads_back_as_itself(value):
    assert float(as_cell(value)) == value


def test_whole_numbers_have_no_point():
    assert [as_cell(x) for x in (1_700_000_003.0, 5.0, -2.0, 2.5)] == ["1700000003", "5", "-2", "2.5"]


NAMES = ['he said "x"', "a,b", "=1+2", "@x", "-1", "$x$ and $", "plain", "two  blanks", "'quoted'", "é;|"]


def test_names_read_back_as_themselves_and_none_is_a_formula(tmp_path):
    rows = np.random.default_rng(1).normal(size=(30, len(NAMES)))
    write_csv(tmp_path / "t.csv", NAMES, rows.tolist())
    table = read_csv(tmp_path / "t.csv")
    assert table.columns == tuple(NAMES) and table.named
    np.testing.assert_array_equal(table.values, rows)
    np.testing.assert_array_equal(read_rows(tmp_path / "t.csv", NAMES[::-1]), rows[:, ::-1])
    with open(tmp_path / "t.csv", newline="") as stream:
        header = next(csv.reader(stream))
    assert not [cell for cell in header if cell[0] in "=+@" or (cell[0] == "-" and cell != "-1")]


def test_a_header_of_several_lines(file):
    table = read_csv(file('"height\n(m)","b ""c""",x', *LINES))
    assert table.columns == ("height (m)", 'b "c"', "x") and len(table.values) == 60


@pytest.mark.parametrize("name", ["a", "'a'", "=a", "two words"])
def test_names_are_what_they_were(name):
    assert as_name(f" {name} ") == name


@pytest.mark.parametrize("header, named", [("0,1,2", True), ("1990,2000,2005", True), ("1.5,2.5,0.5", False)])
def test_a_first_line_of_numbers_is_told_of(file, header, named):
    path = file(header, *LINES)
    table = read_csv(path)
    assert table.named is named and len(table.values) == 60 + (not named)
    assert table.columns == (tuple(header.split(",")) if named else ("x1", "x2", "x3"))
    (note,) = table.notes
    assert header.split(",")[0] in note and ("--header no" in note) is named
    assert len(read_csv(path, header="yes").values) == 60 and read_csv(path, header="yes").notes == ()
    assert len(read_csv(path, header="no").values) == 61


def test_a_header_in_quotes_is_one(file):
    assert read_csv(file('"7","3","9"', "1,2,3", "3,4,3")).columns == ("7", "3", "9")


def test_names_that_are_known_make_a_header(file):
    """Two rows show nothing, the model's columns do."""
    path = file("5,6,7", "1,2,4", "2,2,9")
    assert len(read_rows(path, ("5", "7"), named=True)) == 2
    assert len(read_rows(path, ("x1", "x2", "x3"))) == 3


def test_an_index_of_pandas_is_left_out(file):
    for first, labels in (
        ("", range(60)),
        ("", np.random.default_rng(0).permutation(60)),  # of a part of the rows
        ("Unnamed: 0", range(1, 61)),
        ("", [f"row {i}" for i in range(60)]),
        ("", [f"2020-01-01 {i // 60:02}:{i % 60:02}" for i in range(60)]),
        ("", np.linspace(0, 1, 60)),
    ):
        table = read_csv(file(f"{first},a,b,c", *(f"{label},{line}" for label, line in zip(labels, LINES))))
        assert table.columns == ("a", "b", "c")
        (note,) = table.notes
        assert "left out" in note and "no name" in note
        np.testing.assert_allclose(table.values, ROWS, atol=1e-4)


def test_an_index_above_a_header_of_numbers(file):
    table = read_csv(file(",0,1,2", *(f"{i},{line}" for i, line in enumerate(LINES))))
    assert table.columns == ("0", "1", "2") and len(table.notes) == 2


@pytest.mark.parametrize("quote", ['"', ""])
def test_row_names_of_r(file, quote):
    names = [f"{quote}{i if quote else f'r{i}'}{quote}" for i in range(60)]
    for header in ('"a" "b" "c"', '"" "a" "b" "c"'):  # write.table, and write.csv
        lines = [header, *(f"{name} {line.replace(',', ' ')}" for name, line in zip(names, LINES))]
        for text in (lines, [line.replace(" ", ",") for line in lines]):
            table = read_csv(file(*text))
            assert table.columns == ("a", "b", "c")
            np.testing.assert_allclose(table.values, ROWS, atol=1e-4)


def test_numbered_rows_without_a_header_are_left_out(file):
    numbered = [f"{i},{line}" for i, line in enumerate(LINES, 1)]
    table = read_csv(file(*numbered))
    assert table.columns == ("x2", "x3", "x4") and table.width == 4 and "left out" in table.notes[-1]
    path = file(*numbered)
    np.testing.assert_array_equal(read_rows(path, table.columns, table.width, named=False), table.values)
    np.testing.assert_array_equal(read_rows(file(*LINES), table.columns, table.width, named=False), table.values)
    assert read_csv(path, columns=["x1", "x2"]).columns == ("x1", "x2")
    assert read_csv(file(*numbered[:10])).columns == ("x1", "x2", "x3", "x4")  # by chance?


def test_other_columns_without_a_name_stay(file):
    table = read_csv(file(",a,b", *LINES))
    assert table.columns == ("x1", "a", "b")
    table = read_csv(file(",x1,b", *LINES), columns=["x1_", "x1"])
    assert table.columns == ("x1_", "x1")
    table = read_csv(file("a,,b", *(f"{x},{i},{y}" for i, (x, y, _) in enumerate(ROWS))))
    assert table.columns == ("a", "x2", "b")


def test_a_named_column_that_counts_is_told_of(file):
    table = read_csv(file("id,a,b,c", *(f"{i},{line}" for i, line in enumerate(LINES))))
    assert table.columns == ("id", "a", "b", "c") and "--drop id" in table.notes[0]


def test_columns_are_chosen_and_others_not_read(file):
    lines = [f'n{i},{line},"some, text\nof two lines"' for i, line in enumerate(LINES)]
    path = file("id,a,b,c,text", *lines)
    np.testing.assert_allclose(read_csv(path, drop=["id", "text"]).values, ROWS, atol=1e-4)
    table = read_csv(path, columns=["c", "a"])
    assert table.columns == ("a", "c")  # in the order of the file
    np.testing.assert_allclose(table.values, ROWS[:, [0, 2]], atol=1e-4)
    np.testing.assert_allclose(read_rows(path, ("c", "a")), ROWS[:, [2, 0]], atol=1e-4)
    for options, says in (
        ({}, "line 2, column id: is 'n0', not a finite number; .*--drop"),
        ({"drop": ["ID"]}, "no such column; did you mean id.*it has id, a, b"),
        ({"columns": ["d"]}, "--columns d"),
        ({"columns": ["a"], "drop": ["b"]}, "give one of the two"),
        ({"drop": ["id", "a", "b", "c", "text"]}, "leave one"),
    ):
        with pytest.raises(InputError, match=says):
            read_csv(path, **options)


def test_lines_of_another_length_are_refused_where_columns_are_chosen(file):
    path = file("id,a,b,c", *(f"n{i},{line}" for i, line in enumerate(LINES)), "n,1,2")
    with pytest.raises(InputError, match="line 62: 3 columns, the first line has 4"):
        read_csv(path, columns=["a", "b"])


def test_columns_of_one_name(file):
    twice = [f"{line},{line.split(',')[0]}" for line in LINES]
    table = read_csv(file("a,b,c,a", *twice))
    assert table.columns == ("a", "b", "c") and "left out: a" in table.notes[0]
    late = [*(f"{line}" for line in twice for _ in range(20)), "1,2,3,4"]  # after those that are looked at first
    for lines in (["1,2,3,4", *twice], late):
        with pytest.raises(InputError, match="two columns are named 'a', of other values"):
            read_csv(file("a,b,c,a", *lines))


@pytest.mark.parametrize("separator", [" ", ",", "\t", ";"])
@pytest.mark.parametrize("header", ["auto", "yes"])
@pytest.mark.parametrize("names", ["a b c", "5 -2.5 7"])
def test_a_header_as_numpy_writes_it(tmp_path, separator, header, names):
    file, names = tmp_path / "t.csv", names.split()
    np.savetxt(file, ROWS, header=separator.join(names), delimiter=separator)
    table = read_csv(file, header=header)
    assert table.columns == tuple(names) and table.named
    np.testing.assert_array_equal(table.values, ROWS)
    np.testing.assert_array_equal(read_rows(file, names[::-1], 3, named=True), ROWS[:, ::-1])
    with pytest.raises(InputError, match="line 1"):
        read_csv(file, header="no")


@pytest.mark.parametrize("first, names", [("#,a,b", ("#", "a", "b")), ("#a,b,c", ("#a", "b", "c"))])
def test_a_name_may_begin_with_a_hash(file, first, names):
    assert read_csv(file(first, *LINES)).columns == names


def test_a_comment_is_no_header(file):
    with pytest.raises(InputError, match="line 2: 3 columns, after a first line that is no row of names"):
        read_csv(file("# made on Monday", *LINES))


@pytest.mark.parametrize("cell", ["1_000", "\u0661\u0662", "\uff11"])
@pytest.mark.parametrize("place", [0, 7])
def test_a_cell_that_only_python_takes_for_a_number_is_named(file, cell, place):
    lines = LINES.copy()
    lines[place] = f"1.5,{cell},2"
    with pytest.raises(InputError, match=f"line {place + 1}, column x2: is '{cell}', not a finite number"):
        read_csv(file(*lines))


@pytest.mark.parametrize("separator", ["\t", ";", "|", " ; ", "\t "])
def test_an_empty_cell_is_not_closed_over(file, separator):
    """Where every row lacks one, in another column, those that are left make columns of their own."""
    rows = [["1.5", "-2", "3.25", "4"] for _ in range(30)]
    for i, row in enumerate(rows):
        row[i % 4] = ""
    with pytest.raises(InputError, match="t.csv line 1, column x1: is empty"):
        read_csv(file(*map(separator.join, rows)), header="no")


@pytest.mark.parametrize("lines", [["1 2.5", "2 3.5"], ["1\t2.5", "2  3.5"]])
def test_runs_of_blanks_separate(file, lines):
    np.testing.assert_array_equal(read_csv(file(*lines)).values, [[1, 2.5], [2, 3.5]])


def test_blanks_in_texts_do_not_separate(file):
    table = read_csv(file("first name,b c,d", *(f"{line}" for line in LINES)))
    assert table.columns == ("first name", "b c", "d")
    path = file("name,a,b", *(f"Jo Ann Lee,{line.split(',')[0]},2 " for line in LINES))
    assert read_csv(path, drop=["name"]).values.shape == (60, 2)


class Name(str):
    """A name that counts its comparisons."""

    compared = 0

    def __eq__(self, other):
        Name.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def work(call) -> int:
    """Function calls and comparisons of names, which is the same on every machine."""
    calls, Name.compared = 0, 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return calls + Name.compared


@pytest.mark.parametrize("what", ["all", "columns", "drop", "unnamed", "by name"])
def test_the_work_grows_with_the_columns_and_not_with_their_square(file, monkeypatch, what):
    monkeypatch.setattr(csv_files, "as_name", Name)
    counts = []
    for width in (100, 400):
        names = [Name(f"c{i}") for i in range(width)]
        header = [""] * width if what == "unnamed" else names
        path = file(",".join(["last", *header]), *[",".join(["1.5"] * (width + 1))] * 2)
        chosen = {what: names[::2]} if what in ("columns", "drop") else {}
        call = partial(read_rows, path, names[::-1]) if what == "by name" else partial(read_csv, path, **chosen)
        counts.append(work(call))
    assert counts[1] < 6 * counts[0]


def test_names_on_the_command_line():
    assert names_of('a, "b,c" ,d') == ("a", "b,c", "d") and names_of("") == ()


# --- columns called x1, x2, ... ---------------------------------------------------------------------------------------


def test_columns_that_are_named_by_numbers_are_found_by_name(file):
    path = file("x3,x1,x2", *LINES)
    expected = Sheet.open(path).read([1, 2, 0])
    for named in (True, False, None):  # of a run from before it was kept, or of a headerless file with our own header
        np.testing.assert_array_equal(read_rows(path, ("x1", "x2", "x3"), 3, named=named), expected)
    with pytest.raises(InputError, match="none named x4"):
        read_rows(path, ("x1", "x2", "x4"), 4, named=True)
    with pytest.raises(InputError, match="none named x1, x2"):
        read_rows(file("p,q,r", *LINES), ("x1", "x2", "x3"), 3, named=True)


def test_optional_columns(file):
    path = file("c,a,flag,id", *(f"{line},{i}x" for i, line in enumerate(LINES)))
    rows = read_rows(path, ("a", "c"), 4, optional=("flag", "gone"), named=True)
    np.testing.assert_allclose(rows[:, :3], ROWS[:, [1, 0, 2]], atol=1e-4)
    assert np.isnan(rows[:, 3]).all()
    path = file(*LINES)
    rows = read_rows(path, ("x1", "x3"), 3, optional=("x2",), named=False)
    np.testing.assert_allclose(rows, ROWS[:, [0, 2, 1]], atol=1e-4)


def test_an_index_before_columns_taken_in_order(file):
    path = file(",p,q,r", *(f"{i},{line}" for i, line in enumerate(LINES)))
    np.testing.assert_allclose(read_rows(path, ("x1", "x2", "x3"), 3, named=False), ROWS, atol=1e-4)


@pytest.mark.parametrize(
    "rows, told",
    [
        (["9.934;1.250", "984;2.125", "1.203;-3.500", "12;17"], True),
        (["9.934;1.25", "984;2.125", "1.203;-3.500", "12;17"], False),  # other decimals
        (["0.934;1.250", "0.984;2.125", "0.203;-3.500"], False),  # no thousands begin with 0
        (["9;1", "984;2", "1;3"], False),
    ],
)
def test_points_that_may_separate_thousands_are_told_of(rows, told, file):
    notes = read_csv(file("a;b", *rows)).notes
    assert any("if they separate thousands, write the numbers without them" in note for note in notes) == told


def test_whole_numbers_that_are_rounded_are_told_of(file):
    rows = [f"{2**53 + 2 * i + 1},{2**53 + 4 * i},{i / 7}" for i in range(30)]
    (note,) = read_csv(file("id,even,x", *rows)).notes
    assert note == "column id has whole numbers above 2^53, which are rounded; --drop id leaves it out"


def test_row_numbers_as_r_writes_them_without_quotes(file):
    table = read_csv(file("a\tb\tc", *(f"{i + 1}\t" + line.replace(",", "\t") for i, line in enumerate(LINES))))
    assert table.columns == ("a", "b", "c") and "it has no name" in table.notes[0]
    np.testing.assert_allclose(table.values, ROWS, atol=1e-4)


@pytest.mark.parametrize(
    "content, says",
    [
        (gzip.compress(b"a,b", mtime=0), "packed by gzip: unpack it"),
        ("a,b\n1,2\n".encode("utf-16"), "it is UTF-16: save it as CSV UTF-8"),
        ("gr\u00f6\u00dfe,b\n1,2\n".encode("latin-1"), "another encoding, as Latin-1, save it as CSV UTF-8"),
        (b"sep=;\na;b\n1;2\n", "line 1: sep=; is a word to Excel, no row; remove the line"),
        (b"1,25;-3,5\n2,5;1\n", "line 1, column x1: is '1,25', not a finite number; write decimals with a point"),
    ],
    ids=["gzip", "utf-16", "latin-1", "excel", "decimal commas"],
)
def test_other_texts_are_told_what_they_are(content, says, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_csv(tmp_path / "t.csv")
    assert says in str(error.value)


def test_a_column_in_other_capitals_is_suggested(file):
    with pytest.raises(InputError, match="none named a, b, c2; did you mean A\\?"):
        read_rows(file("A,B,C", *LINES), ("a", "b", "c2"), named=True)
