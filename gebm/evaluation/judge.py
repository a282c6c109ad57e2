"""How far a pair is from held-out data, beside its base alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gebm.data.given import as_items, note_on_levels, seen
from gebm.errors import InputError
from gebm.evaluation.features import Features, features_of
from gebm.metrics import Extractor, Reference, sample_metrics
from gebm.metrics.partition import KALEEstimate, base_energies, energies, evaluate_kale
from gebm.metrics.suite import Comparison
from gebm.model import GEBM
from gebm.networks.common import evaluating
from gebm.report.text import estimate, table
from gebm.samples import Samples, sample
from gebm.seeds import stream

__all__ = ["Figures", "evaluate"]

REAL = 10_000  # held-out samples that are compared with, and base samples of KALE
N = 2000  # draws, where none are given


@dataclass(eq=False)
class Figures:
    """What `evaluate` found.

    Attributes:
        metrics: name of a metric, with the features it is on -> figures of base and model with 95 % intervals, and the
            gain, by how much the model is better, with its paired interval (`gebm.metrics.suite.Comparison`).
        better: name -> 'lower' or 'higher'.
        kale: KALE on the held-out data, in nats, with c and with the Monte-Carlo log-partition.
        verdict: one sentence. A gain counts only where no set of features shows a significant loss of distance.
        samples: the draws that were judged.
        n_real: number of held-out samples.
        notes: what must be known of the distances.

    Example:

        >>> import gebm
        >>> from torch import nn
        >>> model = gebm.GEBM(nn.Identity(), lambda x: (x - 1).square().sum(1) / 2, gebm.GaussianPrior(2))
        >>> figures = evaluate(model, torch.randn(500, 2) / 2**0.5 + 0.5)
        >>> figures.metrics["FD(values)"].gain_ci[0] > 0, sorted(figures.to_dict())[:3]
        (True, ['are_draws', 'beta', 'kale'])
    """

    metrics: dict[str, Comparison]
    better: dict[str, str]
    kale: KALEEstimate
    verdict: str
    samples: Samples
    n_real: int
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        metrics = {
            name: {
                "better": self.better[name], "base": c.base._asdict(), "model": c.model._asdict(), "gain": c.gain,
                "gain_ci": c.gain_ci,
            }
            for name, c in self.metrics.items()
        }  # fmt: skip
        return {
            "verdict": self.verdict, "metrics": metrics, "kale": self.kale._asdict(), "n": len(self.samples),
            "n_real": self.n_real, "beta": self.samples.setting.beta, "steps": self.samples.setting.steps,
            "sampler": repr(self.samples.kernel), "are_draws": self.samples.are_draws, "notes": self.notes,
        }  # fmt: skip

    def to_frame(self) -> Any:
        """A pandas DataFrame, a row a metric; InputError where pandas is not installed."""
        try:
            import pandas  # type: ignore[import-untyped,unused-ignore]  # where its stubs are not installed
        except ImportError:
            raise InputError("to_frame: needs pandas: pip install pandas; to_dict() does without") from None
        rows = {
            name: {
                "base": c.base.value, "model": c.model.value, "gain": c.gain, "gain_low": c.gain_ci[0],
                "gain_high": c.gain_ci[1],
            }
            for name, c in self.metrics.items()
        }  # fmt: skip
        return pandas.DataFrame.from_dict(rows, orient="index")

    def __repr__(self) -> str:
        rows = [("", "base", "model", "gain")]
        for name, c in self.metrics.items():
            gain = estimate({"value": c.gain, "ci": c.gain_ci})
            rows.append((name, estimate(c.base._asdict()), estimate(c.model._asdict()), gain))
        k = self.kale
        lines = [
            f"{len(self.samples)} samples, {self.n_real} held-out samples; 95 % intervals; gain: by how much the model "
            "is better",
            f"KALE {k.donsker_varadhan:.3f} nats, with c {k.fenchel:.3f}; relative ESS of exp(-E) {k.relative_ess:.3f}",
            repr(self.samples),
            *self.notes,
            self.verdict,
        ]
        return "\n".join([table(rows), "", *lines])


def evaluate(
    model: GEBM,
    data: Any,
    samples: Samples | None = None,
    *,
    features: Extractor | str | None = None,
    data_path: str | Path = "data",
    seed: int = 0,
) -> Figures:
    """Compare a pair and its base alone with held-out data, on several sets of features, with intervals.

    Arguments:
        model: the pair.
        data: data that neither network was trained on, of any kind that `gebm.fit` takes (of a data set by name, its
            test split).
        samples: what `gebm.sample` drew; None: 2,000 draws from the model itself.
        features: one set of features; None: several (`gebm.evaluation.features.features_of`).
        data_path: where the weights of classifiers are looked for.
        seed: of the choice of held-out samples and of the samples drawn here.

    Raises:
        InputError: data of another shape than the samples, or too few of them.

    Example:

        >>> import gebm
        >>> from torch import nn
        >>> model = gebm.GEBM(nn.Identity(), lambda x: (x - 1).square().sum(1) / 2, gebm.GaussianPrior(2))
        >>> data = torch.randn(1000, 2) / 2**0.5 + 0.5  # exactly what this pair draws
        >>> evaluate(model, data).verdict
        'Better than its base on values.'
    """
    if samples is not None and not isinstance(samples, Samples):
        raise InputError(f"samples: must be what gebm.sample returns, not a {type(samples).__name__}")
    items = as_items(data, split="test")
    if len(items) < 2:
        raise InputError("data: a distance needs at least 2 samples")
    if samples is None:
        with evaluating(model):
            made = tuple(model.generate(1, torch.Generator(model.log_partition.device)).shape[1:])
        if made != tuple(items.shape[1:]):
            raise InputError(f"data: of shape {tuple(items.shape[1:])}, the base makes {made}")
        samples = sample(model, N, seed=seed)
    if tuple(samples.samples.shape[1:]) != tuple(items.shape[1:]):
        shapes = f"{tuple(items.shape[1:])}, the samples of {tuple(samples.samples.shape[1:])}"
        raise InputError(f"data: of shape {shapes}")
    order = np.random.default_rng(stream(seed, "evaluate")).permutation(len(items))[:REAL]
    real = seen(items, torch.from_numpy(order))
    metrics: dict[str, Comparison] = {}
    better: dict[str, str] = {}
    notes: list[str] = []
    if note := note_on_levels(items, samples.base_samples):
        notes.append(f"Note: {note}.")
    for chosen in features_of(items, features, data_path):
        found, note = _compared(chosen, real, samples)
        for name, (comparison, way) in found.items():
            metrics[name], better[name] = comparison, way
        notes += [note] if note else []
    verdict = _verdict({name: comparison.gain_ci for name, comparison in metrics.items()}, samples)
    return Figures(metrics, better, _kale(model, real, seed), verdict, samples, len(real), notes)


def _compared(
    features: Features, real: torch.Tensor, samples: Samples
) -> tuple[dict[str, tuple[Comparison, str]], str]:
    """Every metric on one set of features, the distance first, and what must be known of it."""
    reference = Reference.of(features.of(real))
    base, drawn = features.of(samples.base_samples), features.of(samples.samples)
    metrics = sample_metrics(reference, features.extractor, len(drawn))
    caution = getattr(metrics[0], "caution", lambda n: "")(len(drawn))
    return {metric.name: (metric.compare(base, drawn), metric.better) for metric in metrics}, caution


def _kale(model: GEBM, real: torch.Tensor, seed: int) -> KALEEstimate:
    like = model.log_partition.detach()
    generator = torch.Generator(like.device).manual_seed(stream(seed, "kale"))
    e_fake = base_energies(model, REAL, generator)
    e_real = torch.cat([energies(model.energy, part.to(like)) for part in torch.split(real, 1000)])
    return evaluate_kale(e_real, e_fake, float(like))


def _verdict(gains: dict[str, tuple[float, float]], samples: Samples) -> str:
    """One sentence from the intervals of the gains: a gain of Fréchet distance counts where no distance shows a loss.

    Losses of the other metrics, as recall, are named beside it.
    """
    sets = {name: ci for name, ci in gains.items() if name.startswith(("FD(", "FID"))}
    won = [_features(name) for name, (low, _) in sets.items() if low > 0]
    lost = [name for name, (_, high) in gains.items() if high < 0]
    far = [name for name in lost if name.startswith(("FD(", "KD(", "FID", "KID"))]
    if far and won:
        said = f"Better than its base on {' and '.join(won)}, worse by {' and '.join(far)}: no gain can be claimed."
    elif far:
        said = f"Worse than its base by {' and '.join(far)}."
    elif won:
        rest = [_features(name) for name in sets if _features(name) not in won]
        undecided = f", undecided on {' and '.join(rest)}" if rest else ""
        worse = f", but worse in {', '.join(lost)}" if lost else ""
        said = f"Better than its base on {' and '.join(won)}{undecided}{worse}."
    else:
        worse = f", and is worse in {', '.join(lost)}" if lost else ""
        said = f"It cannot be told from its base by any Fréchet distance{worse}."
    caveat = samples.caveat
    return f"{said} {caveat[:1].upper()}{caveat[1:]}." if caveat else said


def _features(name: str) -> str:
    """The features that a metric is on."""
    return name[name.index("(") + 1 : -1] if "(" in name else "inception"
