"""Rows of text about chains and likelihoods."""

import pytest

from gebm.report import ess_row, kale_rows, nll_rows


@pytest.mark.parametrize(
    "ess, n, says",
    [
        (0.5, 1000, "0.500, 1,000 base samples"),
        (0.05, 20, "below 0.25: of 20 base samples some 1 count, too few to tell it"),
        (0.001, 1000, "below 0.005: of 1,000 base samples some 1 count"),
    ],
)
def test_relative_ess_is_not_told_of_too_few_effective_samples(ess, n, says):
    """Its least value is one over their number, which says nothing of the energy."""
    assert ess_row({"importance_relative_ess": ess, "n_fake": n})[1].startswith(says)


@pytest.mark.parametrize("c, said", [(0.0, False), (0.09, True), (-0.09, True)])
def test_a_c_that_is_off_is_told(c, said):
    of_split = {
        "donsker_varadhan": 1.0, "fenchel": 1.0, "n_real": 9, "c": c, "log_partition": 0.0, "log_partition_se": 0.003,
        "n_fake": 99, "relative_ess": 0.9,
    }  # fmt: skip
    rows = kale_rows({"kale": {"train": of_split, "test": of_split}, "kale_gap": {"value": 0.0, "se": 1.0}})
    assert any("off the log-partition" in text for _, text in rows) == said


def test_a_likelihood_that_is_not_finite_is_said():
    infinite, finite = {"value": float("inf"), "se": float("nan"), "n": 9}, {"value": 1.0, "se": 0.5, "n": 9}
    unknown = {**infinite, "value": None, "se": None}  # as JSON has it
    _, row = nll_rows({"nll": {"test": {"base": finite, "gebm": infinite, "gain": unknown}}})
    assert row == ("test, 9 rows", "1.0000 +- 0.5000", "infinite", "infinite")
