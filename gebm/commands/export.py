"""`gebm export`: a trained run as a folder to share, or as ONNX files."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gebm.bounded import read_json, read_json_lines, reason
from gebm.checkpoints import settings_beside
from gebm.commands.density import LIKELIHOOD, likelihood_notes, units_of
from gebm.commands.pairs import find_pair, folder_of, hashes_of, load_pair
from gebm.commands.records import carry_images
from gebm.commands.setup import log, start_log
from gebm.commands.tables import of_table
from gebm.config import Config
from gebm.data.units import as_json
from gebm.errors import InputError
from gebm.files import check_writable
from gebm.metrics.likelihood import model_log_prob
from gebm.model import GEBM
from gebm.onnx import check_packages, export_onnx
from gebm.pretrained import check_new
from gebm.report import kale_rows, metric_note, metric_rows, nll_rows, sampler_row

__all__ = ["main"]

DATA = ("dataset", "dataset_type", "image_size")
TABLE_DATA = (*DATA, "protocol", "columns", "drop", "header", "seed")  # which with --scaling say split and units
TRAINING = ("criterion", "penalty_type", "penalty_lambda", "b_size", "optimizer", "lr", "lr_generator", "ema", "seed")
COUNTERS = {
    "ml_step": "likelihood_steps",
    "g_step": "base_steps",
    "e_step": "energy_steps",
    "refine_step": "of_which_refinement",
}
SAMPLER = {  # key of a sampling run's summary -> flag
    "sampler": "latent_sampler", "beta": "temperature", "steps": "num_sampler_steps", "gamma": "lmc_gamma",
    "kappa": "lmc_kappa", "splitting": "lmc_splitting", "leapfrog": "num_leapfrog", "beta_ramp": "beta_ramp",
}  # fmt: skip


def main(config: Config, given: frozenset[str], words: list[str]) -> Path:
    """Export the run, checkpoint or sampling run that the words name; returns the new folder."""
    start_log()
    if len(words) not in (1, 2):
        raise InputError("gebm export: write gebm export RUN [OUT], RUN the folder of a run or of a checkpoint")
    run = Path(words[0])
    if not run.exists():
        raise InputError(f"{run}: no such run; give the folder of a run or of a checkpoint")
    onnx = config.format == "onnx"
    out = Path(words[1]) if len(words) == 2 else run.with_name(f"{run.resolve().name}-{'onnx' if onnx else 'export'}")
    check_new(out)
    check_writable(out.parent, "OUT")
    if onnx:
        check_packages()
    config, given = _pair_of(run, config, given)
    model, base, energy = load_pair(config, given)
    about = _about(run, model, base, energy)
    if onnx:
        for line in export_onnx(model, out, about):
            log.info("%s", line)
    else:
        model.save_pretrained(out, about)
        carry_images(out, base, energy)
    log.info("exported %s\n  base   %s\n  energy %s", out, base, energy)
    return out


def _pair_of(run: Path, config: Config, given: frozenset[str]) -> tuple[Config, frozenset[str]]:
    """The configuration that names the weights of a run, and their precision."""
    config = replace(config, g_path=str(run), d_path=str(run))
    file = run / "config.yaml"
    if file.is_file():
        stored = Config.load(file)
        if stored.mode == "sample":
            config = replace(config, g_path=stored.g_path, d_path=stored.d_path, no_trunc=stored.no_trunc)
            given |= {"no_trunc"}
            if stored.from_untrusted:  # still is; the networks are those that were named to sample from it
                named = replace(config, from_untrusted=stored.from_untrusted)
                config = replace(named, g_model=stored.g_model, d_model=stored.d_model)
                given |= {"g_model", "d_model"}
    trained = _trained(find_pair(config, given)[1])
    if trained is not None and "dtype" not in given:
        config = replace(config, dtype=trained.dtype, precision=trained.precision)
    return config, given


def _trained(weights: Path) -> Config | None:
    """The configuration beside weights."""
    file = settings_beside(folder_of(weights))
    return Config.load(file) if file.is_file() else None


def _about(run: Path, model: GEBM, base: Path, energy: Path) -> dict[str, Any]:
    """What the run's own files say of it; what they do not say is left out."""
    about: dict[str, Any] = {}
    trained = _trained(energy)
    if trained is not None:
        values = {flag: getattr(trained, flag) for flag in (TABLE_DATA if of_table(trained) else DATA)}
        values = {flag: value for flag, value in values.items() if value != getattr(Config, flag) or flag == "dataset"}
        if of_table(trained):
            values["scaling"] = trained.scaling  # always, as its default was another
        about["data"] = {flag: _public(value) for flag, value in values.items()}
        about["training"] = {flag: getattr(trained, flag) for flag in TRAINING} | _counters(energy)
    hashes = hashes_of(base, energy)
    found = {name: _json(run / name) for name in ("evaluation.json", "summary.json", LIKELIHOOD)}
    if found["evaluation.json"].get("weights", hashes) != hashes:  # it was trained further since
        found["evaluation.json"] = {}
    found[LIKELIHOOD] = found[LIKELIHOOD] or _json(folder_of(energy).parent.parent / LIKELIHOOD)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "figures": lambda: _figures(found, energy), "sampler": lambda: _sampler(found["summary.json"])
    }  # fmt: skip
    for title, make in parts.items():
        try:
            about |= {title: part} if (part := make()) else {}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:  # whatever a damaged file lacks
            log.warning("%s: its %s cannot be read (%s), so the card has none", run, title, reason(error))
    if len(model.built_as.shape) == 1:
        about |= _table(model, base, energy, found[LIKELIHOOD])
    return about


def _public(value: Any) -> Any:
    """A data set's name without the folders of this machine."""
    kind, colon, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    return f"{kind}:{Path(rest).name}" if colon and kind in ("csv", "npz", "folder") else value


def _counters(energy: Path) -> dict[str, int]:
    """Steps done, from the line of the training log at the checkpoint, or the last before it."""
    stage, _, step = folder_of(energy).name.partition("-")
    key = {"base": "ml_step", "joint": "g_step", "refine": "refine_step"}.get(stage)
    file = folder_of(energy).parent.parent / "stats.jsonl"
    if key is None or not step.isdigit() or not file.is_file():
        return {}
    last: dict[str, Any] = {}
    for row in read_json_lines(file):
        if row.get("stage") == stage and row.get(key) == int(step):
            last = row
    return {name: last[counter] for counter, name in COUNTERS.items() if last.get(counter)}


def _figures(found: Mapping[str, Mapping[str, Any]], energy: Path) -> dict[str, Any]:
    """Header, rows and notes of what was measured of the run: likelihoods, or distances, or KALE."""
    likelihood = found[LIKELIHOOD]
    if likelihood and likelihood.get("checkpoint") == folder_of(energy).name:
        known = likelihood["log_partition"]["value"] is not None
        return {"rows": nll_rows(likelihood), "notes": likelihood_notes(likelihood) if known else []}
    for summary in (found["evaluation.json"], found["summary.json"]):
        for measured in (summary, summary.get("samples", {})):
            if measured.get("metrics"):
                notes = [metric_note(measured)]
                if "sampler" in measured:
                    notes.append(f"GEBM: {sampler_row(measured)[1]}")
                return {"rows": metric_rows(measured), "notes": notes}
        if summary.get("kale"):
            return {"rows": [("", ""), *kale_rows(summary)], "notes": []}
    return {}


def _sampler(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The setting of a sampling run as flags of `gebm sample`."""
    if "sampler" not in summary:
        return {}
    flags = {flag: summary[key] for key, flag in SAMPLER.items() if summary.get(key) not in (None, 0)}
    if summary.get("step_decay") and "lmc_gamma" in flags:
        flags["step_decay"], flags["step_decay_every"] = summary["step_decay"]
    if summary.get("adapted"):
        flags |= {"adapt": True, "adapt_steps": summary["adapted"]["steps"]}
    return {"num_sampler_steps": 0} | flags


def _table(model: GEBM, base: Path, energy: Path, likelihood: Mapping[str, Any]) -> dict[str, Any]:
    """Units of the columns, and how likely the validation rows are; the rows themselves stay here."""
    units = units_of(model, base, energy)
    about: dict[str, Any] = {"table": as_json(units)}
    if model.has_density:
        valid = torch.from_numpy(np.array(units.valid)).to(model.log_partition)
        about["table"]["valid_log_density"] = np.sort(model_log_prob(model, valid, 0.0).numpy()).tolist()
    if base == energy and likelihood.get("checkpoint") == folder_of(energy).name:
        about["log_partition"] = likelihood["log_partition"]
    return about


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
