"""Tables of rows: which weights are kept, likelihoods, and what is written of them."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm.bounded import read_json
from gebm.commands.setup import log
from gebm.config import Config
from gebm.data import TableData
from gebm.data.csv_files import write_csv
from gebm.data.units import exported, load_units
from gebm.errors import InputError
from gebm.files import atomic_write, write_json
from gebm.metrics.likelihood import NLL, base_log_prob, log_partition, model_log_prob, nll
from gebm.metrics.partition import LogPartition, energies, importance_sampling
from gebm.model import GEBM
from gebm.networks.common import evaluating
from gebm.pictures import save_pairs
from gebm.pretrained import CONFIG
from gebm.report import nll_rows, table, tail_text
from gebm.sampling import Draws
from gebm.seeds import stream
from gebm.training.trainer import Trainer

__all__ = ["ValidationNLL", "check_split", "evaluate_table", "mean_over_splits"]
__all__ += ["LIKELIHOOD", "likelihood_notes", "partition_of", "partition_texts", "text_of"]
__all__ += ["units_of", "validation_log_prob", "write_rows", "write_table"]

LIKELIHOOD = "likelihood.json"
SPLITS = ("train", "valid", "test")
VALIDATION_SAMPLES = 20_000  # of the base, for the log-partition of a validation likelihood
WIDE = 0.1  # standard error of a log-partition, in nats, from which on it is warned of


class ValidationNLL:
    """Mean negative log-likelihood of validation rows under a trainer's model: of the base alone in its own stage.

    The log-partition is estimated from the same latents every time, so that differences between looks are the model's;
    while the base is frozen its samples and its densities are computed once.

    Arguments:
        rows: validation rows (N, d), on the model's device and in its dtype.
        shift: what makes log-densities of them those of whitened rows (`TableData`).
        seed: of the latents.
    """

    def __init__(self, rows: Tensor, shift: float, seed: int):
        self.rows, self.shift, self.seed = rows, shift, seed
        self._frozen: tuple[Tensor, Tensor | None] | None = None

    def __call__(self, trainer: Trainer) -> float:
        model = trainer.sampled_model
        if trainer.counters.stage == "base":
            return nll(base_log_prob(model, self.rows)).value - self.shift
        if trainer.counters.stage != "refine":
            log_g, samples = self._base(model)
        else:
            log_g, samples = self._frozen = self._frozen or self._base(model)
        log_z: Any = getattr(model.energy, "known_log_partition", None)
        if samples is not None:
            log_z = importance_sampling(-energies(model.energy, samples)).value
        return float((energies(model.energy, self.rows) - log_g).mean() + log_z) - self.shift

    def _base(self, model: GEBM) -> tuple[Tensor, Tensor | None]:
        """Log-densities of the rows under the base, and samples of it where they are needed."""
        log_g = base_log_prob(model, self.rows)
        if getattr(model.energy, "known_log_partition", None) is not None:
            return log_g, None
        generator = torch.Generator(model.log_partition.device).manual_seed(stream(self.seed, "validation"))
        with evaluating(model.base):
            return log_g, model.generate(VALIDATION_SAMPLES, generator)


def evaluate_table(model: GEBM, data: TableData, config: Config) -> dict[str, Any]:
    """Likelihoods of base and GEBM on all splits, in nats a whitened row, and the log-partition they take."""
    if not model.has_density:
        raise InputError(f"--g_model {config.g_model}: has no density, so its model has no likelihood; take a flow")
    c = model.log_partition.detach()
    generator = torch.Generator(c.device).manual_seed(stream(config.seed, "partition"))
    partition = log_partition(model, config.partition_samples, generator)
    found = {}
    for split in SPLITS:
        rows = _tensor(getattr(data, split), c)
        base, gebm = (
            log_prob + data.shift
            for log_prob in (base_log_prob(model, rows), model_log_prob(model, rows, partition.value))
        )
        found[split] = {
            "base": nll(base)._asdict(), "gebm": nll(gebm)._asdict(), "gain": nll(base - gebm)._asdict(),
        }  # fmt: skip
    return {
        "dataset": data.name, "protocol": data.protocol, "seed": data.seed, "notes": list(data.notes),
        "columns": list(data.columns), "log_det": data.log_det - data.shift, "nll": found,
        "log_partition": partition.summary(), "c": float(c),
    }  # fmt: skip


def likelihood_notes(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of those rows must know."""
    text, warning = partition_texts(summary["log_partition"])
    notes = ["+-: standard errors over rows; of whitened rows"]
    notes[0] += f" (original units: add {0.0 - summary['log_det']:.4f})"
    notes.append(f"log-partition {text}; the learnt c is {summary['c']:.4f}")
    notes += [f"warning: {warning}"] if warning else []
    return notes + [f"note: {note}" for note in summary["notes"]]


def partition_texts(found: Mapping[str, Any]) -> tuple[str, str]:
    """A log-partition with its error in words, and why it is not to be trusted; the latter empty if it is."""
    if not found["n"]:
        return f"{found['value'] + 0.0:.4f}, known exactly", ""
    text = "{value:.4f} +- {se:.4f}, from {n:,} base samples, relative ESS {relative_ess:.3f}".format(**found)
    why = found.get("warning") or ("the log-partition is hardly known" if found["se"] > WIDE else "")
    advice = "likelihoods of the GEBM come out too good by it; give more --partition_samples, or train the energy less"
    return text + tail_text(found), f"{why}; {advice}" if why else ""


def mean_over_splits(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard error over splits of the mean negative log-likelihoods: split -> model -> value, se, n."""
    found = {}
    for split in SPLITS:
        values = {which: [s["nll"][split][which]["value"] for s in summaries] for which in ("base", "gebm", "gain")}
        values = {which: [math.inf if x is None else x for x in v] for which, v in values.items()}
        found[split] = {
            which: NLL(fmean(v), stdev(v) / math.sqrt(len(v)) if math.inf not in v else math.inf, len(v))._asdict()
            for which, v in values.items()
        }
    return {"dataset": summaries[0]["dataset"], "seeds": [s["seed"] for s in summaries], "nll": found}


def write_table(folder: Path, summary: Mapping[str, Any], text: str) -> None:
    """Write `likelihood.txt` and `likelihood.json`, which so tells that both are there, and print the former."""
    with atomic_write(folder / "likelihood.txt") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_json(folder / LIKELIHOOD, summary)
    log.info("\n%s", text)


def validation_log_prob(model: GEBM, units: TableData, base: Path, energy: Path, partition: float) -> np.ndarray:
    """Log-densities of the run's validation rows under the model, in the units it works in, sorted: (N,), float64.

    Of an exported folder, which holds no rows, they are those it was written with.
    """
    export = exported(base)
    if export is None:
        rows = torch.from_numpy(np.array(units.valid)).to(model.log_partition)
        return np.sort(model_log_prob(model, rows, partition).numpy())
    if base != energy:
        raise InputError(f"{base}: holds no validation rows to judge {energy} by; score with both of one run or export")
    try:
        found = np.array(export["table"]["valid_log_density"], np.float64)
    except (KeyError, TypeError, ValueError):
        found = np.empty(0)
    if found.ndim != 1 or not len(found) or np.isnan(found).any():
        raise InputError(f"{base / CONFIG}: no log-densities of validation rows; export the run again")
    return np.sort(found) - partition


def partition_of(
    model: GEBM, config: Config, given: frozenset[str], base: Path, energy: Path, device: torch.device
) -> LogPartition:
    """The log-partition: the one measured of these weights at the end of their run, unless a number of samples is given
    or there is none."""
    export = exported(base)
    if export is not None and base == energy and "log_partition" in export and "partition_samples" not in given:
        with suppress(TypeError, KeyError, ValueError, OverflowError):  # else it is measured again
            return _measured(export["log_partition"])
    stored = base.parent.parent / LIKELIHOOD
    if export is None and base == energy and stored.is_file() and "partition_samples" not in given:
        try:
            found = read_json(stored)
            if found["checkpoint"] == base.name:
                return _measured(found["log_partition"])
        except (ValueError, TypeError, KeyError, OverflowError):
            log.info("%s: not readable, so the log-partition is measured again", stored)
    generator = torch.Generator(device).manual_seed(stream(config.seed, "partition"))
    return log_partition(model, config.partition_samples, generator)


def _measured(found: Any) -> LogPartition:
    """A stored log-partition; TypeError, KeyError, ValueError or OverflowError if it is none."""
    value, se, ess = (float(found[key]) for key in ("value", "se", "relative_ess"))
    if not all(map(math.isfinite, (value, se, ess))):
        raise ValueError("not a log-partition")
    k = found.get("pareto_k")
    if k is None and found.get("warning"):
        k = math.inf  # for which JSON has no number
    return LogPartition(value, se, ess, int(found["n"]), None if k is None else float(k))


def write_rows(folder: Path, draws: Draws, units: TableData, n: int) -> None:
    """Write `samples.csv` and `base.csv` in original units, `samples.npz` as drawn, and `pairs.png`."""
    samples, base = (units.unwhiten(rows[:n]) for rows in (draws.images, draws.start))
    for name, rows in (("samples", samples), ("base", base)):
        with atomic_write(folder / f"{name}.csv") as temporary:
            write_csv(temporary, units.columns, rows.tolist())
    with atomic_write(folder / "samples.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, samples=samples, base=base, latents=draws.latents[:n].numpy(), energies=draws.energies[:n].numpy()
        )
    if whole := whole_columns(units):
        log.info("whole in training, not so in samples: %s; round them where you need whole numbers", ", ".join(whole))
    valid = {f"validation rows of {units.name}": units.unwhiten(units.valid)} if len(units.valid) else {}
    save_pairs(folder / "pairs.png", {**valid, "base": base, "GEBM": samples}, units.columns)


def whole_columns(units: TableData) -> list[str]:
    """The columns that hold whole numbers alone, by the validation rows: float32 ones, to which that can be seen."""
    rows = units.unwhiten(units.valid)
    if not len(rows) or units.noise is not None:
        return []
    error = 1e-6 * np.abs(rows).max(0)
    whole = (np.abs(rows - np.rint(rows)).max(0) <= error + 1e-6) & (error < 0.01)
    return [name for name, is_whole in zip(units.columns, whole) if is_whole]


def text_of(summary: Mapping[str, Any], title: str) -> str:
    """The table of one split with its notes."""
    return "\n".join([table(nll_rows(summary), f"negative log-likelihood, {title}"), *likelihood_notes(summary)])


def units_of(model: GEBM, base: Path, energy: Path) -> TableData:
    """The units of a pair on a table, which agree where they are known (`GEBM.load`).

    Raises:
        InputError: those of one of the two are not known.
    """
    return model.units or [load_units(weights) for weights in (base, energy)][0]


def check_split(weights: Path, data: TableData) -> None:
    """Raise InputError if weights of a run on a table were trained on another split of it, or on other units."""
    trained = load_units(weights)
    if trained.key == data.key:
        return
    made, asked = ((t.name, t.protocol, f"seed {t.seed}") for t in (trained, data))
    if made == asked:
        raise InputError(
            f"{weights}: was trained on {' '.join(made)}, whose rows, or --scaling, --columns, --drop or --header, "
            "have changed since; evaluate with those that it was trained on, or train again"
        )
    raise InputError(
        f"{weights}: was trained on {' '.join(made)}, in other rows or units than these, {' '.join(asked)}, of which "
        "some test rows were its training rows; leave --seed, --protocol and --scaling as they were in its config.yaml"
    )


def _tensor(rows: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(rows)).to(like)
