"""The split by content."""

import numpy as np
import pytest

from gebm.data.splits import by_content

RNG = np.random.default_rng(0)


def hashes(count: int) -> np.ndarray:
    return RNG.integers(2**64, size=count, dtype=np.uint64)


def test_a_tenth_is_for_testing():
    train, test = by_content(hashes(100_000))
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(100_000))
    assert abs(len(test) - 10_000) < 4 * 95  # standard deviation sqrt(100,000 x 0.1 x 0.9)


def test_an_image_added_or_removed_moves_none_of_the_others():
    for count in (100, 101, 150, 500):
        found = hashes(count)
        if (found < 2**64 // 10).sum() < 3:
            continue  # a few of the lowest are taken then
        testing = set(found[by_content(found)[1]].tolist())
        fewer = set(found[:-1][by_content(found[:-1])[1]].tolist())
        assert fewer == testing - {int(found[-1])}


@pytest.mark.parametrize("count", range(4, 30))
def test_an_image_added_to_a_few_moves_none_into_the_test_images(count):
    """As that would have been trained on."""
    for _ in range(50):
        found = hashes(count + 1)
        before, after = (set(found[:n][by_content(found[:n])[1]].tolist()) for n in (count, count + 1))
        assert after <= before | {int(found[-1])}


@pytest.mark.parametrize("count", [3, 4, 5, 8, 30])
@pytest.mark.parametrize("different", [2, 3, 5])
@pytest.mark.parametrize("low", [False, True])
def test_copies_stay_together(count, different, low):
    for _ in range(50):
        values = hashes(different) // np.uint64(100 if low else 1)
        found = RNG.permutation(np.concatenate([values[:count], RNG.choice(values, max(count - different, 0))]))
        train, test = by_content(found)
        assert len(train) and len(test) and len(train) + len(test) == len(found)
        assert not set(found[train].tolist()) & set(found[test].tolist())


@pytest.mark.parametrize("count", range(4, 12))
def test_a_copy_added_to_a_few_moves_none_into_the_test_images(count):
    for _ in range(50):
        values = hashes(3) | np.array([2**63, 0, 0], np.uint64)  # not all in the lowest tenth
        found = np.concatenate([values, RNG.choice(values, count - 3), RNG.choice(np.append(values, hashes(1)), 1)])
        before, after = (set(found[:n][by_content(found[:n])[1]].tolist()) for n in (count, count + 1))
        assert after <= before | ({int(found[-1])} - set(values.tolist()))


@pytest.mark.parametrize("value", [0, 2**64 - 1])
@pytest.mark.parametrize("count", [2, 3, 4, 10])
def test_both_splits_have_images_where_all_are_the_same(value, count):
    train, test = by_content(np.full(count, value, np.uint64))
    assert len(train) and len(test) and len(train) + len(test) == count
