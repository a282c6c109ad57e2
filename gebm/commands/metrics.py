"""What the flags say about metrics: the features, what samples are compared with, and how a model is measured."""

import math
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm import parallel
from gebm.commands.setup import log
from gebm.config import Config
from gebm.data import ImageData, at_random, from_uint8, to_uint8
from gebm.errors import InputError
from gebm.latent import LatentPosterior
from gebm.metrics import (
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
from gebm.seeds import stream

__all__ = ["base_features", "check_features", "compare", "distances_along", "evaluate_model", "features_of"]
__all__ += ["measure", "observed_features", "reference_of"]

KALE_IMAGES = 10_000


def features_of(config: Config, data: ImageData, device: torch.device) -> tuple[Extractor, Reference]:
    """The extractor of `--fid_features`, announced in one line, and the reference that `--fid_split` makes."""
    extractor, line = _choose(config, data)
    _say_once(line)
    return extractor, reference_of(config, data, config.fid_split, extractor, device)


@cache
def _say_once(line: str) -> None:
    log.info(line)


def reference_of(config: Config, data: ImageData, split: str, extractor: Extractor, device: torch.device) -> Reference:
    """What samples are compared with: a split's features, kept in the data's cache."""
    folder = Path(config.data_path) / "cache"
    with parallel.in_waves():
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
    with parallel.in_waves():  # one that is trained or fetched is kept
        return choose_features(config.fid_features, data.name, data.shape, weights or None, config.data_path)


def base_features(posterior: LatentPosterior, extractor: Extractor, config: Config, device: torch.device) -> Tensor:
    """Features (fid_samples, d) of samples of the base alone, from the latents that chains would start at."""
    target, n = posterior.frozen(), config.fid_samples

    def own() -> list[Tensor]:
        found = []
        for index, first in parallel.mine(enumerate(range(0, n, config.sample_b_size))):
            generator = torch.Generator(device).manual_seed(stream(config.seed, "chains", index))
            images = to_uint8(target.decode(target.start(min(config.sample_b_size, n - first), generator)))
            found.append(extract(images, extractor, config.fid_b_size, device))
        return found

    return torch.cat(parallel.in_order(parallel.everyones(own)))


def observed_features(extractor: Extractor, config: Config, device: torch.device) -> Callable[[np.ndarray], Tensor]:
    """What an observer of chains keeps of their images: features in float32, as extractors compute them."""
    return lambda images: extract(images, extractor, config.fid_b_size, device).float()


def compare(
    observed: dict[int, Tensor], reference: Reference, extractor: Extractor, split: str, device: torch.device
) -> dict[str, Any]:
    """All metrics of base and GEBM with their paired gain.

    Arguments:
        observed: step -> features (n, d) of the same chains; the least step is the base, the greatest the GEBM.
        reference: of the real images.
        extractor: what made the features.
        split: name of the real images.
        device: where to compute.
    """
    base, gebm = (observed[step].to(device, torch.float64) for step in (min(observed), max(observed)))
    reference = reference.to(device)
    found = {}
    for metric in sample_metrics(reference, extractor, len(gebm)):
        comparison = metric.compare(base, gebm)
        found[metric.name] = {
            "better": metric.better, "base": comparison.base._asdict(), "gebm": comparison.model._asdict(),
            "gain": comparison.gain, "gain_ci": comparison.gain_ci,
        }  # fmt: skip
    return {**_header(reference, extractor, len(gebm), split, found), "metrics": found}


def distances_along(
    observed: dict[int, Tensor], reference: Reference, extractor: Extractor, device: torch.device
) -> dict[str, Any]:
    """The Fréchet distance, with its interval, at each step that was observed."""
    frechet = Frechet(reference.to(device), metric_name("FD", extractor))
    return {str(step): frechet.estimate(x.to(device, torch.float64))._asdict() for step, x in sorted(observed.items())}


def measure(
    features: Tensor, reference: Reference, extractor: Extractor, split: str, device: torch.device
) -> dict[str, Any]:
    """All metrics of samples whose base is not known, as `compare` gives them."""
    features, reference = features.to(device, torch.float64), reference.to(device)
    found = {
        metric.name: {"better": metric.better, "gebm": metric.estimate(features)._asdict()}
        for metric in sample_metrics(reference, extractor, len(features))
    }
    return {**_header(reference, extractor, len(features), split, found), "metrics": found}


def _header(reference: Reference, extractor: Extractor, n: int, split: str, found: Collection[str]) -> dict[str, Any]:
    """What the metrics are of, and which ones need more samples than the n there are."""
    return {
        "features": extractor.name, "distance": metric_name("FD", extractor), "split": split,
        "distance_caution": Frechet(reference, metric_name("FD", extractor)).caution(n),
        "n_real": reference.moments.n, "n_fake": n, "n_neighbours": min(n, len(reference.features)),
        "left_out": [m.name for m in sample_metrics(reference, extractor) if m.name not in found],
    }  # fmt: skip


def evaluate_model(model: GEBM, data: ImageData, seed: int) -> dict[str, Any]:
    """KALE on train and test images, with c and with the Monte-Carlo log-partition, and by how much train is ahead.

    kale_gap: KALE on train minus test, in which the log-partition cancels, with its standard error; that of an
    over-fitted energy is above zero.
    """
    like = model.log_partition.detach()
    generator = torch.Generator(like.device).manual_seed(stream(seed, "kale"))
    fake = base_energies(model, KALE_IMAGES, generator)
    real = {
        split: energies(model.energy, from_uint8(torch.from_numpy(at_random(images, KALE_IMAGES))).to(like))
        for split, images in (("train", data.train), ("test", data.test))
    }
    splits = {split: evaluate_kale(e, fake, float(like))._asdict() for split, e in real.items()}
    gap = splits["train"]["donsker_varadhan"] - splits["test"]["donsker_varadhan"]
    variance = sum(float(e.var()) / len(e) for e in real.values() if len(e) > 1)
    return {"kale": splits, "kale_gap": {"value": gap, "se": math.sqrt(variance)}}
