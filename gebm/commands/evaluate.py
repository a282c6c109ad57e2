"""`gebm evaluate`: a trained run, or the samples of one, against a dataset."""

import json
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gebm.commands.setup import choose_device, dataset, dataset_for, load_pair, log, start_log
from gebm.config import Config
from gebm.data import ImageData, from_uint8
from gebm.errors import InputError
from gebm.files import atomic_write
from gebm.latent import LatentPosterior
from gebm.metrics import (
    Extractor,
    Moments,
    bootstrap_distance,
    bootstrap_gain,
    choose_features,
    distance_name,
    extract,
    frechet_distance,
    reference_moments,
)  # fmt: skip
from gebm.metrics.partition import base_energies, energies, evaluate_kale
from gebm.model import GEBM
from gebm.report import distance_row, distance_rows, kale_rows, table
from gebm.samplers import Langevin
from gebm.sampling import draw

__all__ = ["base_features", "check_features", "compare", "evaluate_model", "features_of", "main"]

KALE_IMAGES = 10_000


def main(config: Config, given: frozenset[str], subject: str = "") -> dict:
    """Evaluate `subject` (a training run or checkpoint, the folder or `.npz` of samples; empty: the newest pair)."""
    start_log()
    path = Path(subject)
    samples = path / "samples.npz" if path.is_dir() else path
    if subject and not path.exists():
        raise InputError(f"{subject}: no such run or samples; give a run's folder, a checkpoint or an .npz")
    beside = samples.parent / "config.yaml"
    if subject and beside.is_file() and "dataset" not in given:
        stored = Config.load(beside)
        config = replace(config, dataset=stored.dataset, image_size=stored.image_size)
    device = choose_device(config, given)
    if subject and samples.is_file():
        summary, rows = _evaluate_samples(samples, config, device)
    else:
        paths = {key: subject for key in ("g_path", "d_path") if subject}
        model, base, energy = load_pair(replace(config, **paths), given)
        data = dataset_for(model, config)
        model.to(device, torch.float64 if config.dtype == 64 else torch.float32)
        summary = evaluate_model(model, data, config.seed)
        summary.update(base_path=str(base), energy_path=str(energy))
        rows = kale_rows(summary)
        if config.eval_fid:
            features, more = _distance_of_base(model, data, config, device)
            summary.update(features)
            rows += more
    log.info("\n%s", table(rows, f"evaluation of {subject or summary['energy_path']}"))
    if subject and path.is_dir():
        with atomic_write(path / "evaluation.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def features_of(config: Config, data: ImageData, device: torch.device) -> tuple[Extractor, Moments]:
    """The extractor of `--fid_features`, announced in one line, and the moments of the test images."""
    extractor, line = choose_features(
        config.fid_features, data.name, data.shape, config.fid_weights or None, config.data_path
    )
    log.info(line)
    cache = Path(config.data_path) / "cache"
    return extractor, reference_moments(data.test, extractor, cache, "test", config.fid_b_size, device)


def check_features(config: Config, data: ImageData) -> None:
    """Raise InputError where `features_of` would, before anything is written."""
    choose_features(config.fid_features, data.name, data.shape, config.fid_weights or None, config.data_path)


def base_features(posterior: LatentPosterior, extractor: Extractor, config: Config, device: torch.device) -> Tensor:
    """Features (fid_samples, d) of samples of the base alone: chains of no steps."""
    draws = draw(
        posterior.frozen(), Langevin(1.0), config.fid_samples, 0, chunk=config.sample_b_size, seed=config.seed,
        observe=lambda images: extract(images, extractor, config.fid_b_size, device), observe_at=(0,),
    )  # fmt: skip
    return draws.observed[0]


def compare(observed: dict[int, Tensor], reference: Moments, extractor: Extractor, split: str) -> dict:
    """Distances of the chains' images along the way, and base against GEBM with their paired gain.

    Arguments:
        observed: step -> features (n, d) of the same chains; the least step is the base, the greatest the GEBM.
        reference: moments of the features of the real images.
        extractor: what made the features.
        split: name of the real images.
    """
    first, last = min(observed), max(observed)
    gain = bootstrap_gain(observed[first], observed[last], reference)
    curve = {step: frechet_distance(Moments.of(x), reference) for step, x in sorted(observed.items())}
    return {
        "features": extractor.name,
        "distance_name": distance_name(extractor),
        "split": split,
        "n_real": reference.n,
        "n_fake": len(observed[last]),
        "base": {"distance": gain.base, "ci": gain.base_ci},
        "gebm": {"distance": gain.model, "ci": gain.model_ci},
        "gain": gain.gain,
        "gain_ci": gain.gain_ci,
        "curve": {str(step): value for step, value in curve.items()},
    }


def evaluate_model(model: GEBM, data: ImageData, seed: int) -> dict:
    """KALE on train and test images, with c and with the Monte-Carlo log-partition."""
    like = model.log_partition.detach()
    generator = torch.Generator(like.device).manual_seed(seed)
    fake = base_energies(model, KALE_IMAGES, generator)
    summary = {}
    for split, images in (("train", data.train), ("test", data.test)):
        real = from_uint8(torch.tensor(images[:KALE_IMAGES])).to(like)
        summary[split] = evaluate_kale(energies(model.energy, real), fake, float(like))._asdict()
    return {"kale": summary}


def _evaluate_samples(file: Path, config: Config, device: torch.device) -> tuple[dict, list[tuple[str, str]]]:
    images = _read_samples(file)
    data = dataset(config)
    if images["samples"].shape[1:] != data.shape:
        raise InputError(f"{file}: samples {images['samples'].shape[1:]}, but --dataset {data.name} has {data.shape}")
    extractor, reference = features_of(config, data, device)
    features = {name: extract(x, extractor, config.fid_b_size, device) for name, x in images.items()}
    name, split = distance_name(extractor), f"{data.name} test"
    if "base" in features:
        summary = compare({0: features["base"], 1: features["samples"]}, reference, extractor, split)
        return summary, distance_rows(summary)
    estimate = bootstrap_distance(features["samples"], reference)
    summary = {
        "features": extractor.name, "distance_name": name, "split": split, "n_real": reference.n,
        "n_fake": len(features["samples"]), "samples": {"distance": estimate.distance, "ci": estimate.ci},
    }  # fmt: skip
    where = f"{summary['n_fake']} samples, {reference.n} images of {split}; no base samples in the file to compare with"
    return summary, [(f"{name} samples", f"{distance_row(summary['samples'])}   {where}")]


def _read_samples(file: Path) -> dict[str, np.ndarray]:
    """The arrays `samples` and, where there, `base` of an .npz: uint8 (N, C, H, W). No pickle is read."""
    try:
        with zipfile.ZipFile(file), np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("samples", "base") if name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file}: not a readable .npz ({' '.join(str(error).split())})") from None
    if "samples" not in arrays or any(a.dtype != np.uint8 or a.ndim != 4 or not len(a) for a in arrays.values()):
        raise InputError(f"{file}: must hold uint8 images (N, C, H, W) under the name 'samples' (and 'base')")
    return arrays


def _distance_of_base(
    model: GEBM, data: ImageData, config: Config, device: torch.device
) -> tuple[dict, list[tuple[str, str]]]:
    extractor, reference = features_of(config, data, device)
    estimate = bootstrap_distance(base_features(model.posterior(), extractor, config, device), reference)
    summary = {
        "features": extractor.name, "base": {"distance": estimate.distance, "ci": estimate.ci},
        "n_real": reference.n, "n_fake": config.fid_samples,
    }  # fmt: skip
    where = f"{config.fid_samples} samples, {reference.n} images of {data.name} test"
    return summary, [(f"{distance_name(extractor)} base", f"{distance_row(summary['base'])}   {where}")]
