"""`gebm evaluate`: trained runs, and the samples of runs, against a dataset."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from gebm.commands.chains import POPULATION, check_sampler, draw_chains, sampler_summary, with_beta
from gebm.commands.metrics import check_features, compare, evaluate_model, features_of, measure
from gebm.commands.setup import choose_device, dataset, dataset_for, load_pair, log, newest_checkpoint, start_log
from gebm.config import Config
from gebm.errors import InputError
from gebm.files import atomic_write, check_writable
from gebm.metrics import extract
from gebm.metrics.partition import annealed_importance_sampling, path, sequential_monte_carlo
from gebm.model import GEBM
from gebm.report import (
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
from gebm.sampling import Observer
from gebm.seeds import stream

__all__ = ["main"]

AIS_STEPS = 100
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


def main(config: Config, given: frozenset[str], subjects: Sequence[str] = ()) -> dict[str, dict]:
    """Evaluate each subject: a training run or checkpoint, the samples of a run, an `.npz` or a folder of images.

    Without any it is the newest pair. What is found of a run goes into its `evaluation.json`, and of all into the file
    of `--json`.
    """
    start_log()
    check_sampler(replace(config, thin=0), config.fid_samples)
    if config.eval_partition and config.sample_b_size < POPULATION:
        raise InputError(f"--sample_b_size {config.sample_b_size}: --eval_partition takes {POPULATION} or more")
    if config.json:
        check_writable(Path(config.json).parent, "--json")
    for subject in subjects:
        if not Path(subject).exists():
            raise InputError(f"{subject}: no such run or samples; give a run's folder, a checkpoint, an .npz or images")
    device = choose_device(config, given)
    columns, summaries = {}, {}
    for subject in dict.fromkeys(subjects) or [""]:
        summary = _evaluate(Path(subject) if subject else None, config, given, device)
        name = subject or summary["energy_path"]
        summaries[name] = summary
        # A demo's folder is a trained pair and the samples of one.
        columns[name] = {**summary.get("samples", {}), **{k: v for k, v in summary.items() if k != "samples"}}
        if len(subjects) < 2:
            log.info("\n%s", _text(summary, f"evaluation of {name}"))
        if subject and Path(subject).is_dir() and (Path(subject) / "config.yaml").is_file():
            _write_json(Path(subject) / "evaluation.json", summary)
    if len(summaries) > 1:
        log.info("\n%s", table(side_by_side(columns), "evaluation, side by side; 95 % intervals"))
    if config.json:
        _write_json(Path(config.json), summaries)
    return summaries


def _evaluate(subject: Path | None, config: Config, given: frozenset[str], device: torch.device) -> dict:
    """The figures of one subject, for the dataset it was made with unless the flags name another."""
    pair = subject is None or newest_checkpoint(subject) is not None or _is_weights(subject)
    samples = subject / "samples.npz" if subject and (subject / "samples.npz").is_file() else subject
    beside = next((f for f in ((subject or Path()) / "config.yaml", samples and samples.parent / "config.yaml")
                   if subject and f.is_file()), None)  # fmt: skip
    if beside:
        stored = Config.load(beside)
        config = replace(config, **{f: getattr(stored, f) for f in ("dataset", "image_size") if f not in given})
    summary = {}
    if pair:
        paths = {key: str(subject) for key in ("g_path", "d_path") if subject}
        summary = _evaluate_pair(replace(config, **paths), given, device)
    if not pair or (samples != subject):
        summary["samples"] = _evaluate_samples(samples, config, device)
    return summary


def _is_weights(subject: Path) -> bool:
    """Whether a subject is a checkpoint or a file of weights."""
    return subject.suffix == ".safetensors" or any(subject.glob("*.safetensors"))


def _text(summary: dict, title: str) -> str:
    """All that was found of one subject."""
    rows = []
    if "kale" in summary:
        rows += kale_rows(summary)
    if "partition" in summary:
        rows += partition_rows(summary)
    if "sampler" in summary:
        rows += [sampler_row(summary), *mixing_rows(summary)]
        rows.append(("relative ESS of exp(-beta E)", f"{summary['importance_relative_ess']:.3f}"))
        if summary["warning"]:
            rows.append(("warning", summary["warning"]))
    parts = [table(rows, title)] if rows else []
    for found, what in ((summary, "chains of this pair"), (summary.get("samples", {}), title)):
        if "metrics" in found:
            parts.append(f"{table(metric_rows(found), what)}\n{metric_note(found)}")
            if found is not summary and "sampler" in found:
                parts[-1] += f"\n{sampler_row(found)[1]}"
    return "\n\n".join(parts)


def _write_json(file: Path, found: dict) -> None:
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


def _evaluate_pair(config: Config, given: frozenset[str], device: torch.device) -> dict:
    """KALE of a trained pair and, with `--eval_fid`, the metrics of its base and of chains as configured."""
    model, base, energy = load_pair(config, given)
    data = dataset_for(model, config)
    if config.eval_fid:
        check_features(config, data, device)
    model.to(device)
    summary = {**evaluate_model(model, data, config.seed), "base_path": str(base), "energy_path": str(energy)}
    if config.eval_partition:
        summary.update(evaluate_partition(config, model, device))
    if config.eval_fid:
        extractor, reference = features_of(config, data, device)
        config, fit = with_beta(config, model, energy, device)
        observer = Observer(
            lambda images: extract(images, extractor, config.fid_b_size, device), (0, config.num_sampler_steps)
        )
        posterior = model.posterior(config.temperature).frozen()
        sampler = sampler_summary(config, draw_chains(config, posterior, config.fid_samples, observer))
        found = compare(observer.features(), reference, extractor, f"{data.name} test", device)
        summary.update(sampler, **found, temperature_fit=fit, warning=mixing_warning(sampler))
    return summary


def evaluate_partition(config: Config, model: GEBM, device: torch.device) -> dict:
    """log Z of the model, A(1), by a population and by annealing; for where base samples alone do not reach."""
    target = model.posterior().frozen()
    generator = torch.Generator(device).manual_seed(stream(config.seed, "partition"))
    start = target.start(config.sample_b_size, generator)
    smc = sequential_monte_carlo(target, start, generator=generator)
    kernel = adapt(MALA(0.1), target, start, 50, generator=generator).kernel
    start = target.start(config.sample_b_size, generator)
    ais = annealed_importance_sampling(target, kernel, start, path(AIS_STEPS), generator=generator)
    return {"partition": {"smc": smc._asdict(), "ais": ais._asdict()}}


def _evaluate_samples(source: Path, config: Config, device: torch.device) -> dict:
    """The metrics of samples from a file or folder, beside those of the base where the file holds its samples too."""
    data = dataset(config)
    images = _read_folder(source, data.shape) if source.is_dir() else _read_npz(source)
    if images["samples"].shape[1:] != data.shape:
        raise InputError(f"{source}: samples {images['samples'].shape[1:]}, but --dataset {data.name} has {data.shape}")
    check_features(config, data, device)
    extractor, reference = features_of(config, data, device)
    features = {name: extract(x, extractor, config.fid_b_size, device) for name, x in images.items()}
    split = f"{data.name} test"
    if "base" in features:
        found = compare({0: features["base"], 1: features["samples"]}, reference, extractor, split, device)
        del found["curve"]  # nothing is known of the steps between
    else:
        found = measure(features["samples"], reference, extractor, split, device)
    made = source.parent / "summary.json"
    setting = ("sampler", "beta", "steps", "gamma", "step_size", "step_decay", "kappa", "splitting", "leapfrog")
    if source.suffix == ".npz" and made.is_file():
        stored = json.loads(made.read_text())
        found |= {key: stored.get(key) for key in (*setting, "beta_ramp")}
    return found


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    """The arrays `samples` and, where there, `base` of an .npz: uint8 (N, C, H, W). No pickle is read."""
    try:
        with zipfile.ZipFile(file), np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("samples", "base") if name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file}: not a readable .npz ({' '.join(str(error).split())})") from None
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
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGES)
    if len(files) < 2:
        raise InputError(f"{folder}: neither a run nor at least 2 images ({', '.join(IMAGES)}) directly in it")
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise InputError(f"{file}: not a readable image ({error}); remove it, or make it again") from None
        if pixels.shape[:2] != shape[1:]:
            size = " x ".join(map(str, pixels.shape[:2]))
            raise InputError(f"{file}: {size} pixels, but the dataset's images are {shape[1]} x {shape[2]}")
        images.append(pixels.reshape(*shape[1:], shape[0]).transpose(2, 0, 1))
    return {"samples": np.stack(images)}
