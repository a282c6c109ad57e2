import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from gebm.metrics.scores import classifier_score


def normal(n: int, classes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score(logits: torch.Tensor) -> float:
    return float(classifier_score(logits).mean())


def test_unsure_of_all():
    assert score(torch.full((50, 7), -3.0)) == pytest.approx(1)
    assert score(normal(1, 7).expand(50, 7)) == pytest.approx(1)  # or as sure of each


@pytest.mark.parametrize("classes", [2, 10])
def test_sure_of_balanced_classes(classes):
    sure = 1e4 * torch.eye(classes).repeat(13, 1)
    assert score(sure) == pytest.approx(classes)
    uneven = torch.cat([sure, sure[:1].expand(13 * classes, classes)])  # half more of the first class
    part = np.full(classes, 1 / classes / 2) + 0.5 * np.eye(classes)[0]
    assert score(uneven) == pytest.approx(np.exp(entropy(part)))


def test_against_the_definition():
    logits = 2 * normal(300, 10)
    p = softmax(logits.numpy(), axis=1)
    expected = np.exp(np.mean([entropy(row, p.mean(0)) for row in p]))
    assert score(logits.float() + 1e4) == pytest.approx(expected, rel=1e-3)
    assert score(logits) == pytest.approx(expected, rel=1e-12) and classifier_score(logits).dtype == torch.float64


def test_standard_error_is_the_spread_of_repetitions():
    n, repeats = 400, 300
    values = [classifier_score(2 * normal(n, 10, seed)) for seed in range(repeats)]
    spread = torch.stack([v.mean() for v in values]).std()
    stated = torch.stack([v.std() for v in values]).mean() / n**0.5
    assert abs(spread / stated - 1) < 4 / (2 * repeats) ** 0.5
