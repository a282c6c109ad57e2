"""Whether samples lie closer to the training images than images do that were not trained on."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from gebm.errors import InputError

__all__ = ["Closeness", "closeness", "nearest"]


def nearest(queries: Tensor, references: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Euclidean distance (n,) of queries (n, d) to the nearest row of references, batches of (B, d), and its index."""
    least = queries.new_full((len(queries),), torch.inf)
    index = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    first = 0
    for batch in references:
        found, where = torch.cdist(queries, batch).min(1)
        # cdist goes through products, which leave copies at a small distance and not at none
        found = (queries - batch[where]).norm(dim=1)
        closer = found < least
        least[closer], index[closer] = found[closer], where[closer] + first
        first += len(batch)
    return least, index


class Closeness(NamedTuple):
    """Samples against test images, by the distances to their nearest training images.

    probability: that a sample lies closer to its nearest training image than a test image does to its own, with its
    95 % interval ci: 1/2 where the samples are as new as the test images, more where they copy; ratio: of the median
    distances, sample to test; below: fraction of samples closer than 5 % of the test images are.
    """

    probability: float
    ci: tuple[float, float]
    ratio: float
    below: float


def closeness(samples: Tensor, test: Tensor) -> Closeness:
    """Compare distances (n,) of samples with distances (m,) of test images.

    The probability is that of the Mann-Whitney statistic, ties counting half, with its standard error from the
    placements of each value among the others (DeLong, DeLong and Clarke-Pearson 1988); as a test for copied data, over
    the whole space as one cell, it is that of Meehan, Chaudhuri and Dasgupta, *A non-parametric test to detect
    data-copying in generative models*, 2020.

    Raises:
        InputError: fewer than two of either.
    """
    if min(len(samples), len(test)) < 2:
        raise InputError(f"{len(samples)} samples and {len(test)} test images: at least 2 of each can be compared")
    samples, test = samples.double(), test.double()
    wins = (samples[:, None] < test).double() + 0.5 * (samples[:, None] == test).double()
    of_samples, of_test = wins.mean(1), wins.mean(0)
    probability = float(wins.mean())
    se = float(of_samples.var() / len(samples) + of_test.var() / len(test)) ** 0.5
    return Closeness(
        probability,
        (max(probability - 1.96 * se, 0.0), min(probability + 1.96 * se, 1.0)),
        float(samples.median() / test.median()),
        float((samples < test.quantile(0.05)).double().mean()),
    )
