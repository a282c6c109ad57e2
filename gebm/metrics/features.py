"""Feature extractors for distances between sets of images, and what is computed with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gebm.data.images import from_uint8
from gebm.errors import InputError
from gebm.metrics import cache
from gebm.metrics.digits_cnn import DigitsCNN
from gebm.metrics.frechet import Moments
from gebm.metrics.inception import Inception, download
from gebm.metrics.random_conv import RandomConv
from gebm.metrics.resnet56 import ResNet56, find_weights
from gebm.registry import resolve

__all__ = ["FEATURES", "Extractor", "Pixels", "Reference", "choose_features", "extract"]
__all__ += ["make_reference", "metric_name"]

SUBSET = 10_000  # real features kept one by one; neighbours and kernels take the square of it in time

PUBLISHED = {"FD": "FID", "KD": "KID", "classifier score": "IS"}

Images = np.ndarray | Tensor


@runtime_checkable
class Extractor(Protocol):
    """Any callable from uint8 images (B, C, H, W) to float features (B, d), each row of its own image alone.

    Images are uint8 whether they come from a file or, rounded by `gebm.data.to_uint8` and nothing else, from a network;
    scaling to what the features need, and resizing where they have a size of their own, is the extractor's.

    Attributes:
        name: for reports.
        key: says which function it is, as the hash of its weights does; cached statistics are kept by it.

    One that classifies may have a method `classify` from features (B, d) to class logits (B, classes).
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


# Factories: (weights, data_path, cache_dir) -> Extractor. Covariances of whole 32 x 32 x 3 pixels are 3072 square and
# a distance takes ten seconds or more, hence the averaged pixels.
FEATURES: dict[str, Callable[[str | Path | None, Path, Path], Extractor]] = {
    "pixels": lambda weights, data_path, cache_dir: Pixels(),
    "pixels-8x8": lambda weights, data_path, cache_dir: Pixels(8),
    "random-conv": lambda weights, data_path, cache_dir: RandomConv(),
    "digits-cnn": lambda weights, data_path, cache_dir: DigitsCNN.cached(cache_dir),
    "cifar-resnet56": lambda weights, data_path, cache_dir: ResNet56.from_file(find_weights(weights, data_path)),
    "inception": lambda weights, data_path, cache_dir: Inception.from_file(weights or download(cache_dir)),
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
        InputError: an unknown name, or one whose weights are missing or damaged; under "auto" only where weights were
            given and are not there.
    """
    if weights and not Path(weights).is_file():
        raise InputError(f"{weights}: no such weights file; see --fid_weights and --inception_weights")
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


def metric_name(metric: str, extractor: Extractor) -> str:
    """How a metric on these features is printed: FID, KID and IS where they are those of the published Inception."""
    if metric in PUBLISHED and isinstance(extractor, Inception) and extractor.published:
        return PUBLISHED[metric]
    return f"{metric}({extractor.name})"


def extract(images: Images, extractor: Extractor, batch_size: int = 128, device: str | torch.device = "cpu") -> Tensor:
    """Features (N, d), float64 on the CPU, of uint8 images (N, C, H, W); a module is moved to `device` first."""
    return torch.cat(list(_feature_batches(images, extractor, batch_size, device)))


class Reference(NamedTuple):
    """What samples are compared with: moments of all real features, and the features (M, d) of a random subset."""

    moments: Moments
    features: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Reference:
        """The reference that features (N, d) make.

        Example:

            >>> reference = Reference.of(torch.randn(300, 4))
            >>> reference.moments.n, reference.features.shape
            (300, torch.Size([300, 4]))
        """
        return cls(Moments.of(features), features[torch.from_numpy(_subset(len(features)))].double())

    def to(self, device: str | torch.device) -> Reference:
        """The same on a device that has float64."""
        return Reference(self.moments.to(device), self.features.to(device))


def make_reference(
    images: Images,
    extractor: Extractor,
    cache_dir: str | Path,
    split_name: str,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
) -> Reference:
    """The reference that real images (N, C, H, W) make, from `cache_dir` if it is there.

    It is kept by the hash of the pixels (and so of their content, resolution and transform), their count, the split
    and the extractor's key, and made again where any of these differs or the file is damaged. The subset is of
    `SUBSET` images, or all, in a random order that is the same every time.
    """
    images = _as_array(images)
    pixels = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    key = f"reference {SUBSET} | {extractor.key} | {split_name} | {images.shape} | {pixels}"
    path = Path(cache_dir) / f"reference-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    kept = cache.load(path, key)
    if kept is not None:
        return Reference(Moments(len(images), kept["mean"], kept["scatter"], kept["sqrt_cov"]), kept["features"])
    order = _subset(len(images))
    place = torch.full((len(images),), -1)
    place[order] = torch.arange(len(order))
    moments, subset = Moments.empty(0), torch.empty(0)
    for i, features in enumerate(_feature_batches(images, extractor, batch_size, device)):
        if i == 0:
            d = features.shape[1]
            moments, subset = Moments.empty(d), torch.empty(len(order), d, dtype=torch.float64)
        moments.update(features)
        here = place[i * batch_size : i * batch_size + len(features)]
        subset[here[here >= 0]] = features[here >= 0]
    tensors = {"mean": moments.mean, "scatter": moments.scatter, "sqrt_cov": moments.sqrt_cov, "features": subset}
    cache.save(path, key, tensors)
    return Reference(moments, subset)


def _subset(n: int) -> np.ndarray:
    """Which of n rows are kept one by one, in a random order that is the same every time."""
    return np.random.RandomState(0).permutation(n)[:SUBSET]  # the legacy generator's stream never changes


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
