"""What the flags say about metrics: the features, what samples are compared with, and how a model is measured."""

import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from gebm.commands.setup import log
from gebm.config import Config
from gebm.data import ImageData, from_uint8
from gebm.errors import InputError
from gebm.latent import LatentPosterior
from gebm.metrics import (
    Comparison,
    Estimate,
    Extractor,
    Frechet,
    Reference,
    choose_features,
    extract,
    make_reference,
    metric_name,
    sample_metrics,
)
from gebm.metrics.partition import base_energies, energies, evaluate_kale
from gebm.model import GEBM
from gebm.samplers import Langevin
from gebm.sampling import Observer, draw
from gebm.seeds import stream

__all__ = ["base_features", "check_features", "compare", "evaluate_model", "features_of", "measure", "reference_of"]

KALE_IMAGES = 10_000


def features_of(config: Config, data: ImageData, device: torch.device) -> tuple[Extractor, Reference]:
    """The extractor of `--fid_features`, announced in one line, and the reference that the test images make."""
    extractor, line = _choose(config, data)
    _say_once(line)
    return extractor, reference_of(config, data, "test", extractor, device)


@cache
def _say_once(line: str) -> None:
    log.info(line)


def reference_of(config: Config, data: ImageData, split: str, extractor: Extractor, device: torch.device) -> Reference:
    """What samples are compared with: a split's features, kept in the data's cache."""
    folder = Path(config.data_path) / "cache"
    return make_reference(getattr(data, split), extractor, folder, split, config.fid_b_size, device)


def check_features(config: Config, data: ImageData, device: torch.device) -> Extractor:
    """The extractor of `--fid_features`, tried on test images; raises InputError before anything is written."""
    if len(data.test) < 2:
        raise InputError(f"--dataset {data.name}: a distance needs at least 2 test images, there is {len(data.test)}")
    extractor, _ = _choose(config, data)
    extract(data.test[:2], extractor, 2, device)
    return extractor


def _choose(config: Config, data: ImageData) -> tuple[Extractor, str]:
    weights = config.inception_weights if config.fid_features == "inception" else config.fid_weights
    return choose_features(config.fid_features, data.name, data.shape, weights or None, config.data_path)


def base_features(posterior: LatentPosterior, extractor: Extractor, config: Config, device: torch.device) -> Tensor:
    """Features (fid_samples, d) of samples of the base alone: chains of no steps."""
    observer = Observer(lambda images: extract(images, extractor, config.fid_b_size, device), images_at=(0,))
    draw(
        posterior.frozen(), Langevin(1.0), config.fid_samples, 0, chunk=config.sample_b_size, seed=config.seed,
        observer=observer,
    )  # fmt: skip
    return observer.features()[0]


def compare(
    observed: dict[int, Tensor], reference: Reference, extractor: Extractor, split: str, device: torch.device
) -> dict:
    """All metrics of base and GEBM with their paired gain, and the Fréchet distance along the way.

    Arguments:
        observed: step -> features (n, d) of the same chains; the least step is the base, the greatest the GEBM.
        reference: of the real images.
        extractor: what made the features.
        split: name of the real images.
        device: where to compute.
    """
    first, last = (observed[step] for step in (min(observed), max(observed)))
    found = {}
    for metric in _metrics(reference, extractor, len(last), device):
        comparison: Comparison = metric.compare(first.to(device), last.to(device))
        base, gebm = map(_entry, comparison[:2])
        found[metric.name] = {
            "better": metric.better, "base": base, "gebm": gebm, "gain": comparison.gain, "gain_ci": comparison.gain_ci
        }  # fmt: skip
    frechet = Frechet(reference.moments, metric_name("FD", extractor))
    curve = {str(step): _entry(frechet.estimate(x)) for step, x in sorted(observed.items())}
    return {**_header(reference, extractor, len(last), split), "metrics": found, "curve": curve}


def measure(
    features: Tensor, reference: Reference, extractor: Extractor, split: str, device: torch.device
) -> dict:
    """All metrics of samples whose base is not known, as `compare` gives them."""
    found = {
        metric.name: {"better": metric.better, "gebm": _entry(metric.estimate(features.to(device)))}
        for metric in _metrics(reference, extractor, len(features), device)
    }
    return {**_header(reference, extractor, len(features), split), "metrics": found}


def _metrics(reference: Reference, extractor: Extractor, n: int, device: torch.device) -> list:
    return sample_metrics(reference.to(device), extractor, n)


def _header(reference: Reference, extractor: Extractor, n: int, split: str) -> dict:
    return {
        "features": extractor.name, "distance": metric_name("FD", extractor), "split": split,
        "n_real": reference.moments.n, "n_fake": n,
    }  # fmt: skip


def _entry(estimate: Estimate) -> dict:
    return estimate._asdict()


def evaluate_model(model: GEBM, data: ImageData, seed: int) -> dict:
    """KALE on train and test images, with c and with the Monte-Carlo log-partition, and by how much train is ahead.

    kale_gap: KALE on train minus test, in which the log-partition cancels, with its standard error; that of an
    over-fitted energy is above zero.
    """
    like = model.log_partition.detach()
    generator = torch.Generator(like.device).manual_seed(stream(seed, "kale"))
    fake = base_energies(model, KALE_IMAGES, generator)
    real = {
        split: energies(model.energy, from_uint8(torch.tensor(images[:KALE_IMAGES])).to(like))
        for split, images in (("train", data.train), ("test", data.test))
    }
    splits = {split: evaluate_kale(e, fake, float(like))._asdict() for split, e in real.items()}
    gap = splits["train"]["donsker_varadhan"] - splits["test"]["donsker_varadhan"]
    variance = sum(float(e.var()) / len(e) for e in real.values() if len(e) > 1)
    return {"kale": splits, "kale_gap": {"value": gap, "se": math.sqrt(variance)}}
