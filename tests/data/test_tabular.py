import logging

import numpy as np
import pytest

from gebm.data import Batches, TableData, csv_files, load_table, read_rows
from gebm.errors import InputError

ROWS = np.random.default_rng(0).normal(size=(400, 3)) @ [[2.0, 0.1, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.01]]
ROWS += [10, 0, -5]


@pytest.fixture
def table(tmp_path):
    """Writes rows, or a text, as t.csv; returns the name of the data set."""

    def write(content=ROWS, separator=",", header="a,b,c"):
        if isinstance(content, str):
            (tmp_path / "t.csv").write_bytes(content.encode())
        else:
            np.savetxt(tmp_path / "t.csv", content, "%.17g", separator, header=header, comments="")
        return f"csv:{tmp_path / 't.csv'}"

    return write


@pytest.fixture
def refused(tmp_path):
    def refused(dataset, says, **options):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match=says) as error:
            load_table(dataset, tmp_path, **options)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
        assert sorted(tmp_path.rglob("*")) == before

    return refused


def splits(data: TableData) -> np.ndarray:
    return np.concatenate([data.train, data.valid, data.test])


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("protocol", ["standard", "paper"])
def test_every_row_is_in_one_split_and_comes_back(table, protocol):
    data = load_table(table(), protocol=protocol, seed=3)
    assert data.name == "csv:t.csv" and data.columns == ("a", "b", "c") and data.shape == (3,)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [324, 36, 40]
    assert {split.dtype for split in (data.train, data.valid, data.test)} == {np.dtype(np.float32)}
    assert not data.train.flags.writeable
    np.testing.assert_allclose(in_order(data.unwhiten(splits(data))), in_order(ROWS), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(data.whiten(data.unwhiten(data.test)), data.test, atol=1e-5)


def test_whitening_is_of_the_training_rows_alone(table):
    data = load_table(table(), scaling="whiten")
    np.testing.assert_allclose(data.train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(data.train.T @ data.train / len(data.train), np.eye(3), atol=1e-5)
    # Held-out rows that change change nothing of it.
    held = data.unwhiten(np.concatenate([data.valid, data.test]))
    moved = ROWS.copy()
    moved[[np.abs(ROWS - row).sum(1).argmin() for row in held]] += 100
    other = load_table(table(moved), scaling="whiten")
    assert np.array_equal(other.train, data.train) and np.array_equal(other.whitening, data.whitening)
    paper = load_table(table(), protocol="paper", scaling="whiten")
    assert "whitening fitted on all rows, test included, as published" in paper.notes
    np.testing.assert_allclose(splits(paper).mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(splits(paper).T @ splits(paper) / len(ROWS), np.eye(3), atol=1e-5)


def test_log_det_is_the_change_of_volume(table):
    data = load_table(table(), protocol="paper")
    corner = data.unwhiten(np.zeros((1, 3)))
    edges = data.unwhiten(np.eye(3)) - corner
    assert data.log_det == pytest.approx(-np.log(abs(np.linalg.det(edges))), abs=1e-9)


def test_same_content_and_seed_same_arrays(table):
    first, again = load_table(table(), seed=5), load_table(table(ROWS, ";", "a;b;c"), seed=5)
    assert first.key == again.key and np.array_equal(splits(first), splits(again))
    changed = ROWS.copy()
    changed[7, 1] += 1e-9
    others = [load_table(table(), seed=6), load_table(table(), seed=5, protocol="paper")]
    others.append(load_table(table(changed), seed=5))
    assert len({first.key, *(other.key for other in others)}) == 4
    assert not np.array_equal(first.test, others[0].test)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " ", "   "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("header", ["", '"a b"{0}b{0}c', '\ufeff"a b"{0}b{0}c'])
def test_forms_of_csv(table, separator, end, header, tmp_path):
    lines = [header.format(separator)] if header else []
    lines += [separator.join(f"{x:.6g}" for x in row) for row in ROWS] + ["", ""]
    data = load_table(table(end.join(lines)), scaling="whiten")
    assert data.columns == (("a b", "b", "c") if header else ("x1", "x2", "x3"))
    np.testing.assert_allclose(in_order(data.unwhiten(splits(data))), in_order(ROWS), atol=2e-4)


NUMBERS = "".join(f"{a},{a**2},{a**3 % 7}\n" for a in range(1, 31))


@pytest.mark.parametrize(
    "content, says",
    [
        ("a,b,c\n" + NUMBERS + "1,x,3\n", "t.csv line 32, column b: is 'x', not a finite number"),
        ("a,b,c\n" + NUMBERS + "1,,3\n", "line 32, column b: is empty"),
        ("a,b,c\n" + NUMBERS + "1,nan,3\n", "line 32, column b: is 'nan'"),
        ("a,b,c\n\n" + NUMBERS + "1,2,-inf\n", "line 33, column c: is '-inf'"),
        (NUMBERS + "1,2\n" + NUMBERS, "line 31: 2 columns, the first line has 3"),
        (NUMBERS + "1,2,3,4\n", "line 31: 4 columns, the first line has 3"),
        ("a\n" + NUMBERS, "line 2: 3 columns, the first line has 1"),
        ("1,2,c\n" + NUMBERS, "line 1, column x3: is 'c'"),
        (NUMBERS.replace(",", ":"), "line 2, column 1:1:1: is '2:4:1', .*comma, semicolon, tab"),
        ("id,a\n" + "".join(f"row{i},{i}\n" for i in range(30)), "line 2, column id: is 'row0'"),
        ("a;b\n" + "1,5;2\n" * 30, "line 2, column a: is '1,5', .*decimals with a point"),
        ("# a note\n" + NUMBERS, "line 2: 3 columns, after a first line that is no row of names"),
        ("a,a,b\n" + NUMBERS, "two columns are named 'a'"),
        ("a,b,c\n", "a header and no rows"),
        ("\n", "is empty"),
        ("1,2\n" * 19, "19 rows are too few"),
        ("1,2\n" * 30, "all 2 columns are constant"),
        ('a,b\n"1,5","2,5"\n', "line 2, column a: is '1,5', .*decimals with a point"),
        ("a,b\n" + "1,5,2,5\n" * 30, "line 2: 4 columns, the first line has 2 .*a decimal comma"),
        ("".join(",".join(str((i * j) % 37) for j in range(1, 31)) + "\n" for i in range(30)), "25 training rows of"),
        (b"\xff\xfe1\x00,\x00".decode("latin1"), "t.csv"),
    ],
)
def test_bad_csv(table, refused, content, says):
    refused(table(content), says)


def test_bad_files_and_names(table, refused, tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_bytes(b"a,b\n\xff\xfe,2\n")
    refused(f"csv:{tmp_path / 't.csv'}", "not a text file in UTF-8")
    refused("csv:nowhere.csv", "nowhere.csv: no such file")
    refused("whitewin", "did you mean whitewine")
    refused("toy:moon", "toy:moon: choose line, .*did you mean moons")
    refused(table(), "choose standard or paper", protocol="papers")
    monkeypatch.setattr(csv_files, "MAX_BYTES", 1000)
    refused(table(), "at most 1,000 are read")
    monkeypatch.setattr("gebm.data.arrays.MAX_BYTES", 1000)
    np.savez_compressed(tmp_path / "t.npz", np.zeros((1000, 1000)))
    refused(f"npz:{tmp_path / 't.npz'}", "bytes unpacked")


def test_constant_and_discrete_columns_are_told_of(table, caplog):
    rows = np.column_stack([ROWS, np.full(400, 7.0), np.arange(400) % 4])
    with caplog.at_level(logging.WARNING, "gebm"):
        data = load_table(table(rows, header="a,b,c,same,few"))
    assert data.columns == ("a", "b", "c", "few")
    assert "constant columns dropped: same" in caplog.text
    assert data.notes[0] == "constant columns dropped: same"
    assert data.notes[1].endswith("few") and "distinct" in data.notes[1]
    np.testing.assert_allclose(np.unique(data.unwhiten(splits(data))[:, 3].round(4)), [0, 1, 2, 3])  # untouched


def test_nearly_equal_columns_of_a_users_table_are_kept(table):
    rows = np.column_stack([ROWS[:, 0], ROWS[:, 0] + 0.01 * ROWS[:, 1]])
    assert load_table(table(rows, header="a,b")).shape == (2,)


def test_shared_rows_are_counted(table):
    rows = ROWS.copy()
    rows[:200, 0] = 0.0
    twins = np.where(rows == 0, -0.0, rows)  # equal, though not in their bits
    data = load_table(table(np.concatenate([rows, twins])), seed=2)
    raw = [set(map(bytes, (data.unwhiten(split).round(5) + 0.0))) for split in (data.train, data.valid, data.test)]
    for note, held, n, what in zip(data.notes, raw[1:], (72, 80), ("validation", "test")):
        seen = len(held & raw[0])
        assert seen > 10 and note.startswith(f"{seen} of {n} {what} rows equal a training row")


def test_npz(tmp_path, refused):
    np.savez(tmp_path / "one.npz", anything=ROWS)
    one = load_table(f"npz:{tmp_path / 'one.npz'}", seed=1)
    assert one.columns == ("x1", "x2", "x3") and len(one.test) == 40
    parts = {"train": ROWS[:300], "valid": ROWS[300:340], "test": ROWS[340:]}
    np.savez(tmp_path / "three.npz", **parts, labels=np.array(["a"]))
    three = load_table(f"npz:{tmp_path / 'three.npz'}", seed=1)
    for name, rows in parts.items():
        np.testing.assert_allclose(in_order(three.unwhiten(getattr(three, name))), in_order(rows), atol=1e-5)
    np.savez(tmp_path / "two.npz", train=ROWS[:300], test=ROWS[300:])
    two = load_table(f"npz:{tmp_path / 'two.npz'}", seed=1)
    assert len(two.train) == 270 and len(two.valid) == 30
    np.testing.assert_allclose(in_order(two.unwhiten(two.test)), in_order(ROWS[300:]), atol=1e-5)
    for arrays, says in [
        ({"a": ROWS, "b": ROWS}, "holds a, b; it must hold"),
        ({"a": ROWS[:, 0]}, r"a is float64 \(400,\), must be"),
        ({"a": np.array([[None, 1]])}, "cannot be read"),
        ({"a": np.array([["x", "y"]])}, "must be an array of numbers"),
        ({"a": np.where(ROWS[3, 1] == ROWS, np.nan, ROWS)}, "is nan in row 3, column 1"),
        ({"train": ROWS, "test": ROWS[:, :2]}, "2 and 3 columns; they must agree"),
    ]:
        np.savez(tmp_path / "bad.npz", **arrays)
        refused(f"npz:{tmp_path / 'bad.npz'}", f"bad.npz.*{says}")
    (tmp_path / "bad.npz").write_bytes(b"no")
    refused(f"npz:{tmp_path / 'bad.npz'}", "2 bytes, not a readable zip")


def rows_of(data_path, seed):
    return ROWS[:, : 1 + seed]


def strings_of(data_path, seed):
    return [["a", "b"]]


def data_of(data_path, seed):
    return load_table("toy:moons", seed=seed)


def test_factories(refused):
    assert load_table(f"{__name__}:rows_of", seed=1).shape == (2,)
    assert load_table(f"{__name__}:rows_of", seed=0).shape == (1,)  # one column is a table too
    assert load_table(f"{__name__}:data_of").name == "toy:moons"
    refused(f"{__name__}:strings_of", "must be an array of numbers")


def test_read_rows(table, tmp_path):
    table(ROWS[:, [2, 0, 1]], header="c,a,b")
    np.testing.assert_array_equal(read_rows(tmp_path / "t.csv", ("a", "b", "c")), ROWS)
    np.testing.assert_array_equal(read_rows(tmp_path / "t.csv", ("b",)), ROWS[:, [1]])
    np.savetxt(tmp_path / "bare.csv", ROWS, "%.17g", ",")
    np.testing.assert_array_equal(read_rows(tmp_path / "bare.csv", ("a", "b", "c")), ROWS)
    np.savez(tmp_path / "a.npz", ROWS[:1])
    np.testing.assert_array_equal(read_rows(tmp_path / "a.npz", ("a", "b", "c")), ROWS[:1])
    with pytest.raises(InputError, match="3 columns, where 2 are needed, and none named d"):
        read_rows(tmp_path / "t.csv", ("a", "d"))
    with pytest.raises(InputError, match="a folder; name a table"):
        read_rows(tmp_path, ("a", "d"))


def test_read_rows_without_names_takes_no_more_columns_than_are_wanted(table, tmp_path):
    table(ROWS[:, [2, 0, 1]], header="c,a,b")
    np.testing.assert_array_equal(read_rows(tmp_path / "t.csv", ("x1", "x2", "x3")), ROWS[:, [2, 0, 1]])
    np.savetxt(tmp_path / "bare.csv", ROWS, "%.17g", ",")
    for file in ("t.csv", "bare.csv"):
        with pytest.raises(InputError, match="3 columns, where 2 are needed, in the order of those trained on"):
            read_rows(tmp_path / file, ("x1", "x2"))
    with pytest.raises(InputError, match="3 columns, where 2 are needed, and none named a, b"):
        read_rows(tmp_path / "bare.csv", ("a", "b"))
    for columns in (("x1", "x3"), ("x1", "x2")):  # of a table whose other column was constant: one of all three has it
        kept = [int(name[1:]) - 1 for name in columns]
        np.testing.assert_array_equal(read_rows(tmp_path / "bare.csv", columns, width=3), ROWS[:, kept])
        np.savetxt(tmp_path / "two.csv", ROWS[:, kept], "%.17g", ",")
        np.testing.assert_array_equal(read_rows(tmp_path / "two.csv", columns, width=3), ROWS[:, kept])


def test_noise_of_rounded_values_is_that_of_the_validation_rows(shared_data):
    """New rows get what the held-out ones have, uniform within a bin in original units; other tables nothing."""
    data = load_table("redwine", shared_data)
    rows = data.valid[:100]
    moved = data.unwhiten(data.with_noise(rows, seed=1)) - data.unwhiten(rows)
    half = np.abs(data.unwhiten(data.noise) - data.mean).sum(0)  # rows of `noise`: half a bin of each column
    assert (np.abs(moved) <= half * 1.001).all() and (np.abs(moved).max(0) > 0.9 * half).all()
    np.testing.assert_array_equal(data.with_noise(rows, seed=1), data.with_noise(rows, seed=1))
    plain = load_table("toy:moons")
    assert plain.with_noise(plain.valid, seed=1) is plain.valid


def test_batches_of_rows(table):
    data = load_table(table())
    batches = Batches(data.train, 100)
    drawn = np.concatenate([next(batches).numpy() for _ in range(81)])  # 25 epochs
    assert np.array_equal(in_order(drawn), in_order(np.repeat(data.train, 25, axis=0)))
    with pytest.raises(InputError, match="of torch.int64"):
        Batches(ROWS.astype(int), 10)
    with pytest.raises(InputError, match="324 rows, this data set has 36"):
        Batches(data.valid, 10).load_state_dict(batches.state_dict())
