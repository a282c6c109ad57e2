"""`gebm evaluate`: trained runs, and the samples of runs, against a dataset."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gebm import parallel
from gebm.bounded import read_json
from gebm.checkpoints import checkpoints
from gebm.commands.chains import (
    beta_of,
    check_sampler,
    draw_chains,
    sampler_summary,
    with_beta,
    with_precision,
)
from gebm.commands.datasets import check_named, dataset, dataset_for, made_with, with_data_of
from gebm.commands.density import check_split, evaluate_table, text_of
from gebm.commands.metrics import check_features, compare, evaluate_model, features_of, measure, observed_features
from gebm.commands.pairs import find_pair, folder_of, hashes_of, load_pair
from gebm.commands.records import compare_images
from gebm.commands.setup import choose_device, join, log, start_log
from gebm.commands.tables import of_table, settled
from gebm.config import Config
from gebm.data import ImageData, TableData
from gebm.data.arrays import load_npz
from gebm.data.transform import as_they_are
from gebm.data.walk import SUFFIXES, image_files, say_left_out
from gebm.errors import InputError
from gebm.files import check_output, write_json
from gebm.metrics import extract
from gebm.metrics.partition import annealed_importance_sampling, path, sequential_monte_carlo
from gebm.model import GEBM
from gebm.report import (
    ess_row,
    kale_rows,
    metric_note,
    metric_rows,
    mixing_rows,
    mixing_warning,
    partition_rows,
    sampler_row,
    side_by_side,
    table,
)
from gebm.samplers import MALA, adapt
from gebm.samplers.smc import POPULATION
from gebm.sampling import Observer
from gebm.seeds import stream
from gebm.untrusted import check_plain, lies_in, run_of

__all__ = ["main"]

AIS_STEPS = 100
PARTS = ("config.yaml", "config.json", "samples.npz", "summary.json", "checkpoints")  # of a subject, that are read
SETTING = (
    "sampler", "beta", "steps", "gamma", "step_size", "step_decay", "kappa", "splitting", "leapfrog", "beta_ramp",
    "warning",
)  # fmt: skip


def main(config: Config, given: frozenset[str], subjects: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Evaluate each subject: a training run or checkpoint, the samples of a run, an `.npz` or a folder of images.

    Without any it is the newest run. What is found of a run goes into its `evaluation.json`, and of all into the file
    of `--json`.
    """
    start_log()
    config, given = settled(config, given)
    join(config)
    check_sampler(replace(config, thin=0), config.fid_samples)
    if config.eval_partition and config.sample_b_size < POPULATION:
        raise InputError(f"--sample_b_size {config.sample_b_size}: --eval_partition takes {POPULATION} or more")
    if config.json:
        check_output(Path(config.json), "--json", "a file of figures", _is_of_figures, config.force)
    device = choose_device(config, given)
    # All samples are read before the first chain runs, so that what is wrong with the last costs no time.
    paths = [split for path in dict.fromkeys(map(os.path.normpath, subjects)) for split in splits_of(Path(path))]
    for flag in ("g_path", "d_path"):
        if paths and getattr(config, flag):
            raise InputError(f"--{flag} {getattr(config, flag)}: {paths[0]} is evaluated; give one of the two")
    if config.from_untrusted and not any(_is_theirs(path, config) for path in paths):
        paths += splits_of(Path(config.from_untrusted))
    if not paths and not config.g_path and not config.d_path:
        paths = [folder_of(find_pair(config, given)[0]).parent.parent]  # the newest run, on what it was trained on
    opened = [_open(path, _trusting(config, path), given) for path in paths]
    for subject in opened:
        if subject.path and _is_run(subject.path) and not _is_writable(subject.path):
            log.warning("%s: cannot be written, so its figures are not kept there; see --json", subject.path)
    summaries, failed = {}, None
    for subject in opened or [Subject(None, config, None)]:
        with parallel.together("evaluate again"):
            summary = _evaluate(subject, given, device)
        if not parallel.is_first():
            continue
        name = str(subject.path or summary.get("energy_path") or "the newest run")
        summaries[name] = summary
        if len(opened) < 2:
            log.info("\n%s", _text(summary, f"evaluation of {name}"))
        if subject.path and _is_run(subject.path) and _is_writable(subject.path):
            file = subject.path / "evaluation.json"
            earlier = {} if subject.config.from_untrusted else _same_pair(file, summary)
            try:
                write_json(file, {**earlier, **summary})
                log.info("\nwritten: %s", file)
            except OSError as error:  # what was found is printed, and written elsewhere, all the same
                failed = error
    if len(summaries) > 1:
        # A demo's folder is a trained pair and the samples of one.
        columns = {name: {**found.get("samples", {}), **found} for name, found in summaries.items()}
        rows = any("nll" in found for found in summaries.values())
        errors = "nats a row, standard errors over rows" if rows else "95 % intervals"
        log.info("\n%s", table(side_by_side(columns), f"evaluation, side by side; {errors}"))
    if parallel.leave() and config.json:
        write_json(Path(config.json), summaries)
    if failed is not None:
        raise failed
    return summaries


def _is_run(path: Path) -> bool:
    """Whether figures of a subject are kept in it: in the folder of a run, not in that of a checkpoint."""
    return (path / "config.yaml").is_file() and not (path / "training.json").is_file()


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def _same_pair(file: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """What an earlier evaluation found of the same weights, to the bit: distances are not lost to one that measures
    none. What somebody else's run says of itself is not taken over."""
    if "metrics" in summary or "weights" not in summary or not file.is_file():
        return {}
    try:
        old = read_json(file)
    except InputError:  # is replaced, as what was found now must not be lost to it
        return {}
    if "metrics" not in old:
        old.pop("data", None)  # was of the images then
    return old if old.get("weights") == summary["weights"] else {}


def _trusting(config: Config, path: Path) -> Config:
    """The configuration for one subject: behind `--from_untrusted` if it is part of the run named there, else not."""
    if not config.from_untrusted:
        return config
    run = run_of(config.from_untrusted)
    check_plain(run)
    return replace(config, from_untrusted=str(run) if _is_theirs(path, config) else "")


def _is_theirs(path: Path, config: Config) -> bool:
    """Whether a subject, or a file that is read of it, lies in the run of `--from_untrusted`, however it is spelled."""
    run = run_of(config.from_untrusted)
    return any(lies_in(part, run) for part in (path, *map(path.joinpath, PARTS), *checkpoints(path)))


def _is_of_figures(file: Path) -> bool:
    """Whether a file holds what `--json` writes: figures by subject."""
    try:
        found = read_json(file)
    except InputError:
        return False
    return all(isinstance(figures, dict) and figures.keys() & {"kale", "nll", "samples"} for figures in found.values())


class Subject(NamedTuple):
    """What to evaluate: its path, the configuration for it, and its samples by name, if it has any."""

    path: Path | None
    config: Config
    images: dict[str, np.ndarray] | None


def _open(path: Path, config: Config, given: frozenset[str]) -> Subject:
    """A subject with its samples read, for the dataset it was made with unless the flags name another."""
    if not path.exists():
        raise InputError(f"{path}: no such run or samples; give a run's folder, a checkpoint, an .npz or images")
    source = path / "samples.npz" if (path / "samples.npz").is_file() else path
    stored = made_with(source.parent if source.is_file() else path)
    if stored is not None:
        check_named(stored, config, given, path)
        config = with_data_of(stored, config, given)
        if of_table(stored) and "seed" not in given:
            config = replace(config, seed=stored.seed)  # which chose the split
        if stored.mode == "sample" and source == path and path.is_dir():
            raise InputError(f"{path}: its samples.npz is missing; sample again, or give another run")
    if _is_pair(path) and source == path:
        return Subject(path, config, None)
    data = dataset(config)
    if not source.is_dir():
        images = _read_npz(source)
    elif isinstance(data, TableData):
        raise InputError(f"{source}: a folder of images, but --dataset {data.name} is a table")
    else:
        images = _read_folder(source, data.shape)
    if images["samples"].shape[1:] != data.shape:
        raise InputError(f"{source}: samples {images['samples'].shape[1:]}, but --dataset {data.name} has {data.shape}")
    return Subject(path, config, images)


def splits_of(path: Path) -> list[Path]:
    """The runs of a folder that `--n_splits` made, else the path itself."""
    return sorted(folder.parent for folder in path.glob("split-*/config.yaml")) or [path]


def _is_pair(path: Path) -> bool:
    """Whether a path is a run with a checkpoint, or a checkpoint."""
    return bool(checkpoints(path)) or (path.is_dir() and any(path.glob("*.safetensors")))


def _evaluate(subject: Subject, given: frozenset[str], device: torch.device) -> dict[str, Any]:
    """The figures of one subject."""
    path, config, images = subject
    summary = {}
    if path is None or _is_pair(path):
        base, energy = config.g_path or str(path), config.d_path or str(path)  # which of theirs is meant may be given
        of_pair = replace(config, g_path=base, d_path=energy) if path else config
        summary = _evaluate_pair(of_pair, given, device)
    if path is not None and images is not None:
        summary["samples"] = _evaluate_samples(path, images, config, device)
    return summary


def _text(summary: dict[str, Any], title: str) -> str:
    """All that was found of one subject."""
    rows = []
    if "nll" in summary:
        text = text_of(summary, title)
        return f"{text}\n{table(partition_rows(summary))}" if "partition" in summary else text
    if "kale" in summary:
        rows += kale_rows(summary)
    if "partition" in summary:
        rows += partition_rows(summary)
    if "sampler" in summary:
        rows += [sampler_row(summary), *mixing_rows(summary)]
        rows.append(ess_row(summary))
        if summary["warning"]:
            rows.append(("warning", summary["warning"]))
    parts = [table(rows, title)] if rows else []
    own = summary.get("samples", {})
    for found, what in ((summary, "chains of this pair"), (own, "its samples" if rows else title)):
        if "metrics" in found:
            parts.append(f"{table(metric_rows(found), what)}\n{metric_note(found)}")
            if found is not summary and "sampler" in found:
                parts[-1] += f"\n{sampler_row(found)[1]}" + (f"\n{found['warning']}" if found["warning"] else "")
    return "\n\n".join(parts)


def _evaluate_pair(config: Config, given: frozenset[str], device: torch.device) -> dict[str, Any]:
    """KALE of a trained pair and, with `--eval_fid`, the metrics of its base and of chains as configured."""
    model, base, energy = load_pair(config, given)
    data = dataset_for(model, config)
    if isinstance(data, TableData):
        for weights in {base, energy}:
            check_split(weights, data)
        summary = evaluate_table(model.to(device), data, config)
        return {**summary, **(evaluate_partition(config, model, device) if config.eval_partition else {})}
    if config.eval_fid:
        check_features(config, data, device)
    about = _compared(data, base, energy)
    model.to(device)
    summary = {**evaluate_model(model, data, config.seed), "base_path": str(base), "energy_path": str(energy)}
    summary |= {"weights": hashes_of(base, energy), **about}
    if config.eval_partition:
        summary.update(evaluate_partition(config, model, device))
    if config.eval_fid:
        extractor, reference = features_of(config, data, device)
        config, fit = with_beta(config, model, energy, device)
        observer = Observer(observed_features(extractor, config, device), (0, config.num_sampler_steps))
        posterior = model.posterior(beta_of(config))
        config = parallel.from_first(lambda: with_precision(config, posterior))
        draws = draw_chains(config, posterior, config.fid_samples, observer)
        if not parallel.is_first():
            return summary
        sampler = sampler_summary(config, draws)
        found = compare(observer.features(), reference, extractor, f"{data.name} {config.fid_split}", device)
        summary.update(sampler, **found, temperature_fit=fit, warning=mixing_warning(sampler))
    return summary


def evaluate_partition(config: Config, model: GEBM, device: torch.device) -> dict[str, Any]:
    """log Z of the model, A(1), by a population and by annealing; for where base samples alone do not reach."""
    target = model.posterior().frozen()
    generator = torch.Generator(device).manual_seed(stream(config.seed, "partition"))
    start = target.start(config.sample_b_size, generator)
    began_s = time.monotonic()
    target(start)
    log.info(
        "log-partition by smc and ais: some hundreds of gradients at %d chains, %.2g s each",
        len(start), time.monotonic() - began_s,
    )  # fmt: skip
    smc = sequential_monte_carlo(target, start, generator=generator)
    kernel = adapt(MALA(0.1), target, start, 50, generator=generator).kernel
    start = target.start(config.sample_b_size, generator)
    ais = annealed_importance_sampling(target, kernel, start, path(AIS_STEPS), generator=generator)
    return {"partition": {"smc": smc.summary(), "ais": ais.summary()}}


def _evaluate_samples(
    path: Path, images: dict[str, np.ndarray], config: Config, device: torch.device
) -> dict[str, Any]:
    """The metrics of samples, beside those of the base where its samples are there too."""
    data = dataset(config)
    assert isinstance(data, ImageData)
    check_features(config, data, device)
    made = (path if path.is_dir() else path.parent) / "summary.json"
    about = {} if config.from_untrusted else _compared(data, *_weights_of(made))
    extractor, reference = features_of(config, data, device)
    features = {name: extract(x, extractor, config.fid_b_size, device) for name, x in images.items()}
    split = f"{data.name} {config.fid_split}"
    if "base" in features:
        found = compare({0: features["base"], 1: features["samples"]}, reference, extractor, split, device)
    else:
        found = measure(features["samples"], reference, extractor, split, device)
    found |= about
    return found | _setting(made) if (made.parent / "samples.npz").is_file() else found


def _compared(data: ImageData, *weights: Path) -> dict[str, str]:
    """What is to be told of images that are not those that the weights were trained on, said and for the summary."""
    note = compare_images(data, *weights)
    if note:
        log.warning(note)
    return {"data": note} if note else {}


def _weights_of(file: Path) -> list[Path]:
    """The weights that samples were drawn from, by the summary of their run; none if it is not one."""
    try:
        stored = read_json(file)
    except InputError:
        return []
    return [Path(stored[key]) for key in ("base_path", "energy_path") if isinstance(stored.get(key), str)]


def _setting(file: Path) -> dict[str, Any]:
    """The sampler's setting and its warning from the summary of a sampling run; nothing if it is not one."""
    try:
        stored = read_json(file)
        found = {key: stored[key] for key in SETTING}
        sampler_row(found)  # which says whether the values are what they have to be
    except (InputError, KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found["warning"], str | None) else {}


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    """The arrays `samples` and, where there, `base` of an .npz: uint8 (N, C, H, W). No pickle is read."""
    arrays = load_npz(file, ("samples", "base"))
    if "samples" not in arrays or any(a.dtype != np.uint8 or a.ndim != 4 or not len(a) for a in arrays.values()):
        raise InputError(f"{file}: must hold uint8 images (N, C, H, W) under the name 'samples' (and 'base')")
    if any(len(a) < 2 for a in arrays.values()):
        raise InputError(f"{file}: a distance needs at least 2 samples")
    if "base" in arrays and arrays["base"].shape != arrays["samples"].shape:
        shapes = f"{arrays['samples'].shape} and {arrays['base'].shape}"
        raise InputError(f"{file}: 'samples' and 'base' are pairs and must have one shape, not {shapes}")
    return arrays


def _read_folder(folder: Path, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """The images of a folder as they are: resized, they would be other samples."""
    files, left_out = image_files(folder, deep=False)
    if len(files) < 2:
        raise InputError(f"{folder}: neither a run nor at least 2 images ({', '.join(SUFFIXES)}) directly in it")
    say_left_out(folder, left_out)
    return {"samples": as_they_are(files, shape)}
