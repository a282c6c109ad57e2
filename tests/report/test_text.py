"""Rows of text about chains and likelihoods."""

import json

import pytest
import torch

from gebm.importance import importance_sampling
from gebm.metrics import Frechet, Reference
from gebm.metrics.partition import evaluate_kale
from gebm.report import ess_row, estimate, kale_rows, metric_note, mixing_warning, nll_rows, partition_rows


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


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


@pytest.mark.parametrize("se, said", [(0.0, False), (0.5, False), (0.6, True), (None, True), (float("nan"), True)])
def test_a_population_of_few_starts_is_told_by_the_error_of_its_log_partition(se, said):
    """Which is 0 where the energy changes nothing."""
    summary = {"steps": 5, "mixed": False, "sampler": "smc", "diagnostics": {}, "importance_relative_ess": 1.0}
    text = mixing_warning({**summary, "log_partition": {"se": se}})
    assert text.startswith("most particles descend from few starts") == said and bool(text) == said


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


def test_a_log_partition_has_its_tail_and_its_warning_beside_it():
    good, bad = importance_sampling(torch.zeros(1000)).summary(), importance_sampling(3 * normal(1000)).summary()
    stored = {"value": 1.0, "se": 0.5, "relative_ess": 0.5, "n": 9}  # by an earlier version
    rows = partition_rows({"partition": {"smc": json.loads(json.dumps(bad)), "ais": {**good, "pareto_k": None}}})
    names, texts = zip(*rows)
    assert names == ("log-partition, smc", "warning", "log-partition, ais")
    assert f"1000 particles, relative ESS {bad['relative_ess']:.3f}, Pareto k-hat {bad['pareto_k']:.2f}" in texts[0]
    assert "few of the 1,000 weights" in texts[1] and texts[2] == "0.000 +- 0.000, 1000 particles, relative ESS 1.000"
    assert partition_rows({"partition": {"smc": stored}}) == [
        ("log-partition, smc", "1.000 +- 0.500, 9 particles, relative ESS 0.500")
    ]


def test_a_kale_whose_log_partition_cannot_be_trusted_says_so():
    of_split = evaluate_kale(torch.zeros(9), 3 * normal(1000), 0.0)._asdict()
    rows = dict(kale_rows({"kale": {"train": of_split, "test": of_split}, "kale_gap": {"value": 0.0, "se": 1.0}}))
    assert "Pareto k-hat" in rows["relative ESS of exp(-E)"] and "few of the 1,000 weights" in rows["warning"]


@pytest.mark.parametrize("said", [True, False])
def test_fewer_images_than_features_are_told(said):
    summary = {"n_fake": 9, "n_real": 9, "split": "digits test", "metrics": {}, "left_out": []}
    caution = Frechet(Reference.of(normal(9, 16)), "FD(pixels)").caution(9) if said else ""
    assert ("FD(pixels) is mostly bias" in metric_note({**summary, "distance_caution": caution})) == said
    assert "bias" not in metric_note(summary)  # of an earlier version


def test_no_figure_is_minus_nought():
    assert estimate({"value": -1e-9, "ci": (-0.004, 1.0)}) == "0.0 (0.0 to 1.0)"
    entry = {"value": -1e-9, "se": 0.0, "n": 3}
    assert nll_rows({"nll": {"test": {"base": entry, "gebm": entry, "gain": entry}}})[1][3] == "0.0000 +- 0.0000"
