"""What a report can know of a run, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gebm.report.memorisation import Closeness

__all__ = ["Chains", "Neighbours", "Report", "Setting", "kale_of"]


class Setting(NamedTuple):
    """A flag of a run: the title of its group, its meaning, its value there and by default, as texts."""

    group: str
    flag: str
    meaning: str
    value: str
    default: str


class Chains(NamedTuple):
    """A set of samples: its title, its summary (`summary.json`), and the folder of its pictures."""

    title: str
    summary: Mapping[str, Any]
    folder: Path


class Neighbours(NamedTuple):
    """Samples and the training images nearest to them.

    space: what distances are taken in; n_train: number of training images; n_searched: of those compared with;
    distances: name -> (role, distances (n,) to the nearest of these); closeness: of the samples against the test
    images; pairs: (distance, sample, training image), the closest of all first, then of the first samples, `closest` of
    the former.
    """

    space: str
    n_train: int
    n_searched: int
    distances: Mapping[str, tuple[str, np.ndarray]]
    closeness: Closeness
    pairs: list[tuple[float, np.ndarray, np.ndarray]]
    closest: int


@dataclass
class Report:
    """What is known of a run; what is not is empty.

    about: rows of (name, value); command: words and flags, each with its value, that would run it again; settings: all
    of them, as they were at the end; changes: checkpoint -> (flag, value before, value from there on) of each that is
    another from there on; rows: those of `stats.jsonl`, thinned; chains: its sets of samples, the main one first;
    evaluation: that of `evaluation.json`; base_images: uint8 (n, C, H, W), of a run without samples; energies: name ->
    (role, energies (n,)); missing: title of a section -> why a part of it cannot be shown.
    """

    name: str
    folder: Path
    about: list[tuple[str, str]]
    command: list[str]
    settings: list[Setting]
    changes: list[tuple[str, list[tuple[str, str, str]]]] = field(default_factory=list)
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    chains: list[Chains] = field(default_factory=list)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    base_images: np.ndarray | None = None
    energies: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)
    neighbours: Neighbours | None = None
    missing: dict[str, str] = field(default_factory=dict)


def kale_of(report: Report) -> Mapping[str, Any] | None:
    """The summary or evaluation that holds KALE and its gap between train and test."""
    summaries = [*(chains.summary for chains in report.chains), report.evaluation]
    return next((summary for summary in summaries if "kale_gap" in summary), None)
