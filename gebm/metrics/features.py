"""Feature extractors for distances between sets of images, and what is computed with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gebm.data.images import from_uint8
from gebm.errors import InputError
from gebm.metrics import cache
from gebm.metrics.digits_cnn import DigitsCNN
from gebm.metrics.frechet import Moments
from gebm.metrics.resnet56 import ResNet56, find_weights
from gebm.registry import resolve

__all__ = ["FEATURES", "Extractor", "Pixels", "choose_features", "distance_name", "extract", "reference_moments"]

Images = np.ndarray | Tensor


@runtime_checkable
class Extractor(Protocol):
    """Any callable from uint8 images (B, C, H, W) to float features (B, d), each row of its own image alone.

    Attributes:
        name: for reports.
        key: says which function it is, as the hash of its weights does; cached statistics are kept by it.
    """

    name: str
    key: str

    def __call__(self, images: Tensor) -> Tensor: ...


class Pixels:
    """The pixels themselves, in [-1, 1] and flattened; averaged down to `size` x `size` first where that is given."""

    def __init__(self, size: int | None = None):
        self.size = size
        self.name = self.key = f"pixels-{size}x{size}" if size else "pixels"

    def __call__(self, images: Tensor) -> Tensor:
        x = from_uint8(images)
        return (F.adaptive_avg_pool2d(x, self.size) if self.size else x).flatten(1)


# Factories: (weights, data_path, cache_dir) -> Extractor. Covariances of whole 32 x 32 x 3 pixels are 3072 square: one
# distance takes seconds and its bootstrap hours, hence the averaged pixels.
FEATURES: dict[str, Callable[[str | Path | None, Path, Path], Extractor]] = {
    "pixels": lambda weights, data_path, cache_dir: Pixels(),
    "pixels-8x8": lambda weights, data_path, cache_dir: Pixels(8),
    "digits-cnn": lambda weights, data_path, cache_dir: DigitsCNN.cached(cache_dir),
    "cifar-resnet56": lambda weights, data_path, cache_dir: ResNet56.from_file(find_weights(weights, data_path)),
}


def choose_features(
    requested: str,
    dataset: str,
    shape: tuple[int, int, int],
    weights: str | Path | None = None,
    data_path: str | Path = "data",
    cache_dir: str | Path | None = None,
) -> tuple[Extractor, str]:
    """Returns the extractor for a data set and one line that says which it is and why.

    Args:
        requested: a name in `FEATURES`; a dotted path `package.module:factory`, called as those there; or "auto":
            digits-cnn for the digits, cifar-resnet56 for other RGB images if its weights are found, else pixels.
        dataset: the name of the data set.
        shape: (C, H, W) of its images.
        weights: a weights file; None searches the usual places.
        data_path, cache_dir: where weights are looked for and trained ones are kept (default `data_path/cache`).

    Raises:
        InputError: an unknown name, or one whose weights are missing or damaged; never for weights under "auto".
    """
    data_path = Path(data_path)
    cache_dir = Path(cache_dir) if cache_dir else data_path / "cache"
    if requested == "auto":
        extractor, why = _best_available(dataset, shape, weights, data_path, cache_dir)
    else:
        extractor = resolve(requested, FEATURES, "--fid_features")(weights, data_path, cache_dir)
        why = "as requested"
    if not isinstance(extractor, Extractor):
        raise InputError(f"--fid_features {requested}: must return a callable with attributes name and key")
    return extractor, f"features: {extractor.name} ({why})"


def _best_available(
    dataset: str, shape: tuple[int, int, int], weights: str | Path | None, data_path: Path, cache_dir: Path
) -> tuple[Extractor, str]:
    if dataset == "digits":
        return DigitsCNN.cached(cache_dir), "a classifier of these digits, trained on their train split"
    why = "no classifier for grey images other than the digits"
    if shape[0] == 3:
        try:
            path = find_weights(weights, data_path)
            return ResNet56.from_file(path), f"weights found at {path}"
        except InputError as error:
            why = str(error)
    return Pixels(8 if max(shape[1:]) > 8 else None), why


def distance_name(extractor: Extractor) -> str:
    """How the Fréchet distance on these features is printed; never as FID, which is on Inception features."""
    return f"FD({extractor.name})"


def extract(
    images: Images, extractor: Extractor, batch_size: int = 128, device: str | torch.device = "cpu"
) -> Tensor:
    """Features (N, d), float64 on the CPU, of uint8 images (N, C, H, W); a module is moved to `device` first."""
    return torch.cat(list(_feature_batches(images, extractor, batch_size, device)))


def reference_moments(
    images: Images,
    extractor: Extractor,
    cache_dir: str | Path,
    split_name: str,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
) -> Moments:
    """Moments of the features of reference images (N, C, H, W), from `cache_dir` if they are there.

    They are kept by the hash of the pixels, the extractor's key, the count and the split, and are computed again
    where any of these differs or the file is damaged.
    """
    images = _as_array(images)
    pixels = hashlib.sha256(np.ascontiguousarray(images)).hexdigest()
    key = f"{extractor.key} | {split_name} | {images.shape} | {pixels}"
    path = Path(cache_dir) / f"moments-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    kept = cache.load(path, key)
    if kept is not None:
        return Moments(len(images), kept["mean"], kept["scatter"])
    batches = _feature_batches(images, extractor, batch_size, device)
    moments = Moments.of(next(batches))
    for features in batches:
        moments.update(features)
    cache.save(path, key, {"mean": moments.mean, "scatter": moments.scatter})
    return moments


def _as_array(images: Images) -> np.ndarray:
    array = images.cpu().numpy() if isinstance(images, Tensor) else images
    if array.dtype != np.uint8 or array.ndim != 4 or len(array) == 0:
        raise InputError(f"images must be uint8 (N, C, H, W), N > 0, not {array.dtype} {array.shape}")
    return array


def _feature_batches(
    images: Images, extractor: Extractor, batch_size: int, device: str | torch.device
) -> Iterator[Tensor]:
    images = _as_array(images)
    if isinstance(extractor, nn.Module):
        extractor.to(device)
    for start in range(0, len(images), batch_size):
        batch = torch.tensor(images[start : start + batch_size], device=device)  # a copy: the array may be read-only
        with torch.inference_mode():
            features = extractor(batch)
        if features.ndim != 2 or len(features) != len(batch):
            raise InputError(f"features {extractor.name}: must be ({len(batch)}, d), not {tuple(features.shape)}")
        yield features.to("cpu", torch.float64)
