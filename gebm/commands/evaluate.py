"""`gebm evaluate`: a trained run, or the samples of one, against a dataset."""

import json
import zipfile
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gebm.commands.chains import POPULATION, check_sampler, draw_chains, sampler_summary, with_beta
from gebm.commands.setup import (
    choose_device,
    dataset,
    dataset_for,
    load_pair,
    log,
    newest_checkpoint,
    start_log,
)
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
)
from gebm.metrics.partition import (
    annealed_importance_sampling,
    base_energies,
    energies,
    evaluate_kale,
    path,
    sequential_monte_carlo,
)
from gebm.model import GEBM
from gebm.report import (
    distance_row,
    distance_rows,
    kale_rows,
    mixing_rows,
    mixing_warning,
    partition_rows,
    sampler_row,
    table,
)
from gebm.samplers import MALA, Langevin, adapt
from gebm.sampling import Observer, draw
from gebm.seeds import stream

__all__ = ["base_features", "check_features", "compare", "evaluate_model", "features_of", "main", "moments_of"]

KALE_IMAGES = 10_000
AIS_STEPS = 100


def main(config: Config, given: frozenset[str], subject: str = "") -> dict:
    """Evaluate `subject`: a training run or checkpoint, a folder or `.npz` of samples; empty: the newest pair."""
    start_log()
    check_sampler(replace(config, thin=0), config.fid_samples)
    if config.eval_partition and config.sample_b_size < POPULATION:
        raise InputError(f"--sample_b_size {config.sample_b_size}: --eval_partition takes {POPULATION} or more")
    path = Path(subject)
    if subject and not path.exists():
        raise InputError(f"{subject}: no such run or samples; give a run's folder, a checkpoint or an .npz")
    samples = path / "samples.npz" if path.is_dir() else path
    beside = samples.parent / "config.yaml"
    if subject and beside.is_file():
        stored = Config.load(beside)
        config = replace(config, **{f: getattr(stored, f) for f in ("dataset", "image_size") if f not in given})
    device = choose_device(config, given)
    summary, rows = {}, []
    if not subject or newest_checkpoint(path) or not samples.is_file():
        paths = {key: subject for key in ("g_path", "d_path") if subject}
        summary, rows = _evaluate_pair(replace(config, **paths), given, device)
    if subject and samples.is_file():
        of_samples, more = _evaluate_samples(samples, config, device)
        summary, rows = {**summary, "samples": of_samples}, rows + more
    log.info("\n%s", table(rows, f"evaluation of {subject or summary['energy_path']}"))
    if subject and path.is_dir():
        with atomic_write(path / "evaluation.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def features_of(config: Config, data: ImageData, device: torch.device) -> tuple[Extractor, Moments]:
    """The extractor of `--fid_features`, announced in one line, and the moments of the test images."""
    extractor, line = _choose(config, data)
    _say_once(line)
    return extractor, moments_of(config, data, "test", extractor, device)


@cache
def _say_once(line: str) -> None:
    log.info(line)


def moments_of(config: Config, data: ImageData, split: str, extractor: Extractor, device: torch.device) -> Moments:
    """Moments of a split's features, kept in the data's cache."""
    folder = Path(config.data_path) / "cache"
    return reference_moments(getattr(data, split), extractor, folder, split, config.fid_b_size, device)


def check_features(config: Config, data: ImageData, device: torch.device) -> Extractor:
    """The extractor of `--fid_features`, tried on test images; raises InputError before anything is written."""
    if len(data.test) < 2:
        raise InputError(f"--dataset {data.name}: a distance needs at least 2 test images, there is {len(data.test)}")
    extractor, _ = _choose(config, data)
    extract(data.test[:2], extractor, 2, device)
    return extractor


def _choose(config: Config, data: ImageData) -> tuple[Extractor, str]:
    weights = config.fid_weights or None
    return choose_features(config.fid_features, data.name, data.shape, weights, config.data_path)


def base_features(posterior: LatentPosterior, extractor: Extractor, config: Config, device: torch.device) -> Tensor:
    """Features (fid_samples, d) of samples of the base alone: chains of no steps."""
    observer = Observer(lambda images: extract(images, extractor, config.fid_b_size, device), images_at=(0,))
    draw(
        posterior.frozen(), Langevin(1.0), config.fid_samples, 0, chunk=config.sample_b_size, seed=config.seed,
        observer=observer,
    )  # fmt: skip
    return observer.features()[0]


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
    generator = torch.Generator(like.device).manual_seed(stream(seed, "kale"))
    fake = base_energies(model, KALE_IMAGES, generator)
    summary = {}
    for split, images in (("train", data.train), ("test", data.test)):
        real = from_uint8(torch.tensor(images[:KALE_IMAGES])).to(like)
        summary[split] = evaluate_kale(energies(model.energy, real), fake, float(like))._asdict()
    return {"kale": summary}


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


def _evaluate_pair(config: Config, given: frozenset[str], device: torch.device) -> tuple[dict, list[tuple[str, str]]]:
    """KALE of a trained pair and, with `--eval_fid`, the distances of its base and of chains as configured."""
    model, base, energy = load_pair(config, given)
    data = dataset_for(model, config)
    if config.eval_fid:
        check_features(config, data, device)
    model.to(device)
    summary = {**evaluate_model(model, data, config.seed), "base_path": str(base), "energy_path": str(energy)}
    rows = kale_rows(summary)
    if config.eval_partition:
        summary.update(evaluate_partition(config, model, device))
        rows += partition_rows(summary)
    if config.eval_fid:
        extractor, reference = features_of(config, data, device)
        config, fit = with_beta(config, model, energy, device)
        observer = Observer(
            lambda images: extract(images, extractor, config.fid_b_size, device), (0, config.num_sampler_steps)
        )
        posterior = model.posterior(config.temperature).frozen()
        sampler = sampler_summary(config, draw_chains(config, posterior, config.fid_samples, observer))
        distances = compare(observer.features(), reference, extractor, split=f"{data.name} test")
        summary["distances"] = {**distances, **sampler, "temperature_fit": fit, "warning": mixing_warning(sampler)}
        rows += [*distance_rows(distances), sampler_row(sampler), *mixing_rows(sampler)]
        rows.append(("relative ESS of exp(-beta E)", f"{sampler['importance_relative_ess']:.3f}"))
        if summary["distances"]["warning"]:
            rows.append(("warning", summary["distances"]["warning"]))
    return summary, rows


def _evaluate_samples(file: Path, config: Config, device: torch.device) -> tuple[dict, list[tuple[str, str]]]:
    images = _read_samples(file)
    data = dataset(config)
    if images["samples"].shape[1:] != data.shape:
        raise InputError(f"{file}: samples {images['samples'].shape[1:]}, but --dataset {data.name} has {data.shape}")
    check_features(config, data, device)
    extractor, reference = features_of(config, data, device)
    features = {name: extract(x, extractor, config.fid_b_size, device) for name, x in images.items()}
    if "base" in features:
        summary = compare({0: features["base"], 1: features["samples"]}, reference, extractor, f"{data.name} test")
        del summary["curve"]  # nothing is known of the steps between
        rows = distance_rows(summary)
    else:
        estimate = bootstrap_distance(features["samples"], reference)
        summary = {
            "features": extractor.name, "split": f"{data.name} test", "n_real": reference.n,
            "n_fake": len(features["samples"]), "gebm": {"distance": estimate.distance, "ci": estimate.ci},
        }  # fmt: skip
        where = f"{summary['n_fake']} samples, {reference.n} images of {summary['split']}; no base samples in the file"
        rows = [(f"{distance_name(extractor)} samples", f"{distance_row(summary['gebm'])}   {where}")]
    made = file.parent / "summary.json"
    if made.is_file():
        rows.append(sampler_row(json.loads(made.read_text())))
    return summary, rows


def _read_samples(file: Path) -> dict[str, np.ndarray]:
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
    return arrays
