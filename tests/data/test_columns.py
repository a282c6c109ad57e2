import numpy as np
import pytest

from gebm.data import load_table
from gebm.data.columns import constant, decimal_unit, dependent, dropped, sentinels

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(300, 4)) * [1, 100, 1e-3, 1] + [0, 1e6, 0, 5]


@pytest.mark.parametrize(
    "columns, follow",
    [
        (ROWS, []),
        (ROWS[:, [0, 1, 0]], [2]),  # a duplicate
        (ROWS[:, [0, 0, 0, 1, 1]], [1, 2, 4]),
        (np.column_stack([ROWS, 2 * ROWS[:, 0] + 3]), [4]),
        (np.column_stack([ROWS[:, 0], -ROWS[:, 0], ROWS[:, 1]]), [1]),
        (np.column_stack([ROWS[:, 0] + ROWS[:, 3], ROWS[:, [0, 3]]]), [2]),  # a total
        (np.eye(4)[np.arange(300) % 4], [3]),  # shares of one
    ],
)
def test_columns_that_others_determine(columns, follow):
    assert dependent(columns) == follow


def test_what_follows_is_kept_in_mind():
    total = np.column_stack([ROWS[:, 0] + 2 * ROWS[:, 3] - 1, np.full(300, 7.0)])
    rest = dropped(("total", "flag"), ROWS, total)
    assert not rest.differ(ROWS, total).any()
    new = 1e3 * RNG.normal(size=(300, 4))  # far away, it holds still
    follows = np.column_stack([new[:, 0] + 2 * new[:, 3] - 1, np.full(300, 7.0)])
    assert not rest.differ(new, follows).any()
    assert rest.differ(new, follows + [0, 1e-6]).tolist() == [[False, True]] * 300
    assert rest.differ(new, follows + [0.01, 0]).tolist() == [[True, False]] * 300
    assert not rest.differ(new, np.full((300, 2), np.nan)).any()


def test_rounded_totals_still_follow():
    rows = RNG.uniform(0, 1e4, size=(400, 2)).round(2)
    total = rows.sum(1, keepdims=True).round(1)
    assert dependent(np.column_stack([rows, total])) == [2]
    rest = dropped(("total",), rows[:300], total[:300])
    assert not rest.differ(rows, total).any() and rest.differ(rows, total + 1).all()


def test_the_last_digits_do_not_make_a_column():
    column = np.where(np.arange(50) % 2, 0.1 + 0.2, 0.3)
    assert constant(np.column_stack([column, np.arange(50), 1e9 + np.arange(50) / 64])).tolist() == [True, False, False]


def test_tables_lose_such_columns_with_a_note(tmp_path, caplog):
    rows = np.column_stack([ROWS, ROWS[:, 0], ROWS[:, 0] - ROWS[:, 3], np.full(300, 7.0)])
    rows[-1, 6] = 8  # a test row that differs
    np.savez(tmp_path / "t.npz", train=rows[:250], test=rows[250:])
    data = load_table(f"npz:{tmp_path / 't.npz'}")
    assert data.columns == ("x1", "x2", "x3", "x4") and data.dropped.columns == ("x7", "x5", "x6")
    assert data.notes[:3] == (
        "constant columns dropped: x7",
        "columns dropped, which others determine linearly: x5, x6",
        "held-out rows that do not follow it, judged by the other columns alone: x7 (1)",
    )
    assert all(note in caplog.text for note in data.notes[:3])


def test_chosen_columns_of_any_table(tmp_path):
    np.savez(tmp_path / "t.npz", ROWS)
    data = load_table(f"npz:{tmp_path / 't.npz'}", drop=["x2"])
    assert data.columns == ("x1", "x3", "x4") and data.width == 4 and data.named is False
    assert load_table("toy:moons", columns=["x2"]).shape == (1,)


def test_a_file_rounded_to_fewer_decimals_follows_up_to_these():
    rows = RNG.uniform(0, 100, size=(400, 2))
    rest = dropped(("total", "same"), rows, np.column_stack([rows.sum(1), np.full(400, 5.123456)]))
    rounded, others = rows.round(3), np.column_stack([rows.sum(1).round(3), np.full(400, 5.123)])
    assert not rest.differ(rounded, others).any()
    assert rest.differ(rounded, others + 0.002).all()
    assert rest.differ(rounded, others + [1e-4, 0]).any()  # in 15 decimals nothing is rounded
    assert rest.differ(rounded[:5], others[:5]).any()  # few rows may have few decimals by chance


def test_whole_numbers_are_not_taken_for_rounded_ones():
    counts = RNG.integers(100, size=(400, 2)).astype(float)
    rest = dropped(("total",), counts, counts.sum(1, keepdims=True))
    assert rest.differ(counts, counts.sum(1, keepdims=True) + 1).all()


def test_decimals_are_counted():
    rows = np.array([[1.0, 0.25, 1e6 + 0.001, 1 / 3, -0.1], [2.0, 0.5, 7.0, 0.5, np.nan]])
    np.testing.assert_allclose(decimal_unit(rows), [1, 1e-2, 1e-3, 1e-12, 1e-1])


def test_a_value_far_from_all_others_that_comes_again_is_told_of():
    column = RNG.normal(size=1000)
    missing = np.where(np.arange(1000) % 20 == 0, -999.0, column)
    once = np.where(np.arange(1000) == 3, -999.0, column)
    rows = np.column_stack([missing, once, column > 0, np.abs(column).round()])
    (note,) = sentinels(rows, ("m999", "once", "flag", "count"))
    assert note.startswith("column m999 is -999 in 50 rows, far from all others; if that stands for a missing value")
