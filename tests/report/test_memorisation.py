"""The memorisation check: found neighbours, and what is said of copies, of fresh data and of data far away."""

import pytest
import torch

from gebm.errors import InputError
from gebm.report import closeness, nearest


def normal(n: int, seed: int, d: int = 5) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_nearest_agrees_with_all_pairs_whatever_the_batches():
    queries, references = normal(30, 0), normal(101, 1)
    distances = (queries[:, None] - references).norm(dim=2)
    for size in (7, 101):
        found, index = nearest(queries, references.split(size))
        assert torch.equal(index, distances.argmin(1))
        assert torch.allclose(found, distances.min(1).values)


def test_a_copy_lies_at_no_distance():
    references = 100 + normal(500, 2, 192)  # far from the origin, where products lose digits
    found, index = nearest(references[40:50].clone(), references.split(64))
    assert found.eq(0).all() and index.tolist() == list(range(40, 50))


def distances(samples: torch.Tensor) -> torch.Tensor:
    return nearest(samples, [normal(1000, 3)])[0]


def test_fresh_samples_are_as_near_as_test_images():
    """The 95 % interval holds 1/2 in 95 of 100 trials, 3 standard errors: 2.2 % each."""
    trials = [closeness(distances(normal(80, 10 + i)), distances(normal(60, 500 + i))) for i in range(100)]
    held = sum(low <= 0.5 <= high for _, (low, high), *_ in trials)
    assert held >= 88
    below = torch.tensor([trial.below for trial in trials]).mean()
    assert below == pytest.approx(0.05, abs=0.02)  # the 5 % quantile of 60 is itself uncertain


def test_copies_are_closer_and_strangers_further():
    test = distances(normal(200, 5))
    copies = closeness(distances(normal(1000, 3)[:200] + 0.05 * normal(200, 6)), test)
    assert copies.ci[0] > 0.9 and copies.ratio < 0.5 and copies.below > 0.9
    strangers = closeness(distances(2 * normal(200, 7)), test)
    assert strangers.ci[1] < 0.5 and strangers.ratio > 1


def test_ties_count_half_and_too_few_are_refused():
    same = torch.ones(10)
    assert closeness(same, same).probability == 0.5
    with pytest.raises(InputError, match="at least 2"):
        closeness(same[:1], same)
