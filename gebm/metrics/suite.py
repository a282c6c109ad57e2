"""Sample metrics behind one interface: each a figure with its interval, and the gain of a model over its base."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from gebm.errors import InputError
from gebm.metrics.features import Extractor, Reference, metric_name
from gebm.metrics.frechet import Moments, frechet_pseudo_values, whiten
from gebm.metrics.mmd import kernel_distance
from gebm.metrics.neighbours import Neighbours, NeighbourValues
from gebm.metrics.scores import classifier_score

__all__ = ["ClassifierScore", "Comparison", "Estimate", "Frechet", "Kernel", "Metric", "Neighbourhood"]
__all__ += ["sample_metrics"]

Interval = tuple[float, float]

ROWS = 2500  # of the reference, by which its part of a Fréchet distance's error is told, to 3 %; more cost time


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    ci: Interval


class Comparison(NamedTuple):
    """The figures of base and model and the gain, by how much the model is better, with its paired 95 % interval."""

    base: Estimate
    model: Estimate
    gain: float
    gain_ci: Interval


class Influences(NamedTuple):
    """What each row contributes to a figure.

    samples: pseudo-values, whose mean is the figure; reference: influences (k,) of reference rows, of mean zero, none
    where the metric takes its reference as fixed; bias: by how much the figure is expected to exceed that of infinitely
    many rows, where the metric knows it.
    """

    samples: Tensor
    reference: Tensor
    bias: float = 0.0


class Metric(ABC):
    """A figure of features (n, d) of samples: the mean of pseudo-values that are as good as independent.

    The pseudo-value of a row is the figure plus the row's influence on it; for a plain mean, the row's own term. Their
    spread gives the standard error. Rows of base and model are paired (they start from one latent), so the spread of
    the differences of their pseudo-values gives that of the gain, in which what both share cancels. The reference rows'
    influences, where a metric has them, add their own variance, and are paired as well: base and model are compared
    with the same rows. An interval is Student's (Welch's of two sets of rows) and covers the expected figure at these
    numbers of rows; what it takes as fixed, each metric says. Where a metric knows its bias, the interval of a gain is
    widened by the difference of the two biases, so that it covers the gain between the populations as well.

    References: Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 11 (pseudo-values); Welch, *The
    generalization of "Student's" problem when several different population variances are involved*, 1947.

    Attributes:
        name: as printed, with the features it is on.
        better: "lower" or "higher".
        range: least and largest possible figure.
        least: the fewest samples, and real images, it takes.
        padding: pseudo-values added to those of base and of model for the intervals alone, which then keep a width
            where all rows agree (Agresti and Coull, 1998).
    """

    name: str
    better: Literal["lower", "higher"] = "lower"
    range: Interval = (-math.inf, math.inf)
    least: int = 2
    padding: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    @abstractmethod
    def pseudo_values(self, features: Tensor) -> Tensor:
        """Pseudo-values, float64; sets of as many features give as many."""

    def influences(self, features: Tensor) -> Influences:
        """The pseudo-values, and what else the metric knows of its figure."""
        values = self.pseudo_values(features)
        return Influences(values, values.new_empty(0))

    def estimate(self, features: Tensor) -> Estimate:
        """The figure of features (n, d); raises InputError if they are too few or not finite."""
        return self._estimate(self._influences(features))

    def compare(self, base: Tensor, model: Tensor) -> Comparison:
        """The figures of base and model features, both (n, d), rows paired, and the gain; raises InputError as well."""
        if base.shape != model.shape:
            shapes = f"{tuple(base.shape)} and {tuple(model.shape)}"
            raise InputError(f"{self.name}: base and model features must be paired, not {shapes}")
        found = [self._influences(x) for x in (base, model)]
        of_base, of_model = map(self._estimate, found)
        sign = 1 if self.better == "higher" else -1
        gain = sign * (of_model.value - of_base.value)
        samples = [_padded(values.samples, padding) for values, padding in zip(found, self.padding)]
        low, high = _interval(sign * (samples[1] - samples[0]), sign * (found[1].reference - found[0].reference))
        by_numbers = sign * (found[1].bias - found[0].bias)  # a gain that infinitely many rows would not show
        return Comparison(of_base, of_model, gain, (low - max(by_numbers, 0.0), high - min(by_numbers, 0.0)))

    def _influences(self, features: Tensor) -> Influences:
        if len(features) < self.least:
            raise InputError(f"{self.name}: needs at least {self.least} samples, got {len(features)}: use more")
        if not features.isfinite().all():
            raise InputError("features hold NaN or infinite values: check the images and the feature extractor")
        return self.influences(features)

    def _estimate(self, found: Influences) -> Estimate:
        def clip(x: float) -> float:
            return min(max(x, self.range[0]), self.range[1])

        low, high = _interval(_padded(found.samples, self.padding[0]), found.reference)
        return Estimate(clip(float(found.samples.mean())), (clip(low), clip(high)))


class Frechet(Metric):
    """The Fréchet distance to all real features; see `frechet_pseudo_values`.

    Of a `Reference` the intervals include that the real images are a sample too; bare `Moments` count as known exactly,
    as those of a population would be. How often two models equally far from the data were told apart, 1000 runs each of
    2000 samples and 400 real rows in 64 dimensions, base and model paired, Gaussian / multivariate Student-t(5) rows
    (standard errors 0.6 to 0.8 %, of the last 1.2 %): two shifts 4.5 % / 4.4 %, two scales 7.1 % / 6.1 %, a scale and a
    shift 4.4 % / 18.4 %. With the reference as fixed it was 42 to 47 % and, of the last kind, 98 %. Gains between
    models of unlike kinds need samples and real rows of some six times d: see the bias in `frechet_pseudo_values`.

    Arguments:
        reference: of the real images, or their moments alone.
        name: as printed.
    """

    range = (0, math.inf)

    def __init__(self, reference: Reference | Moments, name: str = "FD"):
        self.name = name
        self.reference = reference if isinstance(reference, Moments) else reference.moments
        self.rows = None if isinstance(reference, Moments) else reference.features[:ROWS]
        self._whitened: Tensor | None = None

    def caution(self, n: int) -> str:
        """What a reader of the distance of n samples must know: that a number is below that of features, or nothing."""
        d = len(self.reference.mean)
        few = [f"{k:,} {what}" for k, what in ((n, "samples"), (self.reference.n, "real images")) if k < d]
        if not few:
            return ""
        note = f"are fewer than the {d:,} features: {self.name} is mostly bias, compare it at these numbers only"
        return f"{' and '.join(few)} {note}"

    def pseudo_values(self, features: Tensor) -> Tensor:
        return self.influences(features).samples

    def influences(self, features: Tensor) -> Influences:
        if self.rows is not None and self._whitened is None:
            self._whitened = whiten(self.rows, self.reference)
        return Influences(*frechet_pseudo_values(features, self.reference, self.rows, self._whitened))


class Kernel(Metric):
    """The unbiased kernel distance to real features (N, d); its pseudo-values are blocks, so the interval is over both.

    Measured coverage of 95 % intervals of values and gains as for `Neighbours`: 0.89 to 1.00.
    """

    least = 20  # ten blocks

    def __init__(self, real: Tensor, name: str = "KD"):
        self.real, self.name = real, name

    def pseudo_values(self, features: Tensor) -> Tensor:
        return kernel_distance(features.to(self.real), self.real).blocks


class Neighbourhood(Metric):
    """One of precision, recall, density and coverage, as `Neighbours` defines them; the real features are fixed."""

    better = "higher"
    least = 100  # of fewer, the balls that reach to the third and fifth neighbour cover nearly everything
    padding = ((0, 0, 1, 1), (0, 1, 0, 1))

    def __init__(self, neighbours: Neighbours, what: str, name: str):
        self.neighbours, self.what, self.name = neighbours, what, name
        self.range = (0, math.inf if what == "density" else 1)

    def pseudo_values(self, features: Tensor) -> Tensor:
        values: Tensor = getattr(self.neighbours.pseudo_values(features), self.what)
        return values


@runtime_checkable
class Classifier(Protocol):
    """An extractor with a class head: from features (B, d) to class logits (B, classes)."""

    def classify(self, features: Tensor) -> Tensor: ...


class ClassifierScore(Metric):
    """The classifier score of the extractor's own class head, `extractor.classify`; there is no reference."""

    better = "higher"
    range = (1, math.inf)

    def __init__(self, extractor: Classifier, name: str = "classifier score"):
        self.extractor, self.name = extractor, name

    def pseudo_values(self, features: Tensor) -> Tensor:
        return classifier_score(self.extractor.classify(features))


def sample_metrics(reference: Reference, extractor: Extractor, n: int | None = None) -> list[Metric]:
    """All metrics that the extractor's features allow: distances, neighbours, and a score where it has a class head.

    Arguments:
        reference: of the same extractor, on the device where the metrics are to be computed.
        extractor: names the metrics.
        n: how many samples there will be; None is enough for all. Metrics that need more, of these or of the real
            images, are left out.
    """
    neighbours = Neighbours(reference.features)
    metrics: list[Metric] = [
        Frechet(reference, metric_name("FD", extractor)),
        Kernel(reference.features, metric_name("KD", extractor)),
        *(Neighbourhood(neighbours, what, metric_name(what, extractor)) for what in NeighbourValues._fields),
    ]
    if isinstance(extractor, Classifier):
        metrics.append(ClassifierScore(extractor, metric_name("classifier score", extractor)))
    smaller = len(reference.features) if n is None else min(n, len(reference.features))
    return [metric for metric in metrics if smaller >= metric.least]


def _padded(values: Tensor, padding: tuple[float, ...]) -> Tensor:
    return torch.cat([values, values.new_tensor(padding)])


def _interval(values: Tensor, of_reference: Tensor) -> Interval:
    """95 % interval of the mean of values, to whose variance that of the mean of a reference's influences is added."""
    from scipy.special import stdtrit  # not at the top: a sixth of a second of every start

    parts = [(float(v.var()) / len(v), len(v) - 1) for v in (values, of_reference) if len(v) > 1]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts) if variance else 1.0
    mean, half = float(values.mean()), float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return mean - half, mean + half
