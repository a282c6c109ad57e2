"""Image data sets as one uint8 array a split."""

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gebm.data import celeba, cifar10, folder, hub, imagenet32, lsun, npz
from gebm.data.cache import Source, cached
from gebm.data.content import Content, content_of, notes_on
from gebm.data.transform import resize
from gebm.data.walk import say_once
from gebm.errors import InputError
from gebm.registry import resolve

__all__ = ["DATASETS", "ImageData", "at_random", "from_uint8", "labelled_digits", "load_images", "set_aside"]
__all__ += ["pixels", "to_uint8"]

SMALLEST, LARGEST = 4, 2048  # sides
DIGITS_TEST = 400

log = logging.getLogger("gebm")

Arrays = tuple[np.ndarray, np.ndarray]


def to_uint8(x: Tensor) -> Tensor:
    """Returns float images in [-1, 1] as uint8 in 0..255: clamped, then rounded to the nearest level.

    Example:

        >>> to_uint8(torch.tensor([-1.0, 0.0, 1.0, 7.0]))
        tensor([  0, 128, 255, 255], dtype=torch.uint8)
    """
    return x.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def pixels(x: Tensor, levels: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Returns float images as uint8, with black and white at these levels: see `to_uint8`."""
    black, white = levels
    return to_uint8(x if levels == (-1.0, 1.0) else (x - black) * (2 / (white - black)) - 1)


def from_uint8(x: Tensor) -> Tensor:
    """Returns uint8 images as float32 in [-1, 1], x / 127.5 - 1; `to_uint8` gives them back exactly.

    Example:

        >>> from_uint8(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """
    return x.float().div(127.5).sub(1)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A train and a test split of images: uint8 arrays of shape (N, C, H, W), read-only.

    Attributes:
        name: of the data set, for reports.
        train, test: the two splits, memory-mapped where they come from the cache.
        key: hash of the files and the transform; equal keys mean equal arrays.
        drawn: whether its files do not say which images are for testing, so that these were drawn by content.
        folder: of the cache, where the arrays lie in it.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    key: str
    drawn: bool = False
    folder: Path | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.train.shape[1:]

    @cached_property
    def content(self) -> Content:
        """Hashes of the images, which tell whether two data sets hold the same ones."""
        return content_of(self.name, self.train, self.test, self.folder)


def load_images(
    dataset: str,
    data_path: str | Path = "data",
    image_size: int | None = None,
    *,
    imagenet_paths: tuple[str, str] = ("", ""),
) -> ImageData:
    """Loads a data set of images; the first time, it is prepared into the cache with a progress bar.

    Args:
        dataset: a name in `DATASETS`; `folder:PATH`, any images below a folder; `npz:PATH`, arrays of numpy;
            `hub:NAME`, a data set of the Hugging Face hub; or a dotted path `package.module:factory` to a function of
            (data_path, image_size) that returns an `ImageData` or a pair (train, test) of uint8 arrays (N, C, H, W).
        data_path: where the data lie or are downloaded to, and where the cache of arrays is kept.
        image_size: side of the square images, 4 to 2048; None is the data set's own, of files of several sizes 32.
            Where images are resized, the log says so. Which sizes a network takes is its own matter.
        imagenet_paths: the train and the test files of imagenet32; empty: below `data_path`.

    Raises:
        InputError: an unknown data set, a bad size, files missing or damaged, `data_path` not writable.

    Example:

        >>> digits = load_images("digits", getfixture("tmp_path"))
        >>> digits.train.shape, digits.test.shape
        ((1397, 1, 8, 8), (400, 1, 8, 8))
    """
    data = _loaded(dataset, Path(data_path), image_size, imagenet_paths)
    for note in notes_on(data.content):
        say_once(f"{data.name}: {note}", place=str(data.folder or data.content.key))
    return data


def _loaded(dataset: str, data_path: Path, image_size: int | None, imagenet_paths: tuple[str, str]) -> ImageData:
    if image_size is not None and not SMALLEST <= image_size <= LARGEST:
        raise InputError(f"--image_size {image_size}: choose a side from {SMALLEST} to {LARGEST}")
    kind, _, rest = dataset.partition(":")
    if rest and kind in SOURCES:
        rest = rest if kind == "hub" else os.path.expanduser(rest)
        name = dataset if kind == "hub" else f"{kind}:{Path(rest).resolve().name}"
        return _prepared(name, SOURCES[kind](rest), data_path, image_size)
    known = DATASETS | dict.fromkeys(("folder:PATH", "npz:PATH", "hub:NAME"))  # these for the error message
    factory = resolve(dataset, known, "--dataset")
    data = factory(data_path, image_size, *imagenet_paths) if factory is _imagenet32 else factory(data_path, image_size)
    if not isinstance(data, ImageData):
        data = _from_arrays(dataset, data)
    if image_size is not None and data.shape[1:] != (image_size, image_size):
        raise InputError(f"--dataset {dataset}: its factory made images of {data.shape}, not --image_size {image_size}")
    return data


def _prepared(name: str, source: Source, data_path: Path, image_size: int | None) -> ImageData:
    """The images of a source, from the cache."""
    size = image_size or source.size
    if size and source.native != (size, size):
        _tell_of_resizing(name, source.native, size)
    recipe = {"source": source.fingerprint, "transform": source.transform, "image_size": size}
    train, test, key = cached(data_path, name, recipe, lambda: source.read(size))
    folder = Path(str(train.filename)).parent if isinstance(train, np.memmap) else None
    return ImageData(name, train, test, key, source.drawn, folder)


def _tell_of_resizing(name: str, native: tuple[int, int] | None, size: int) -> None:
    before = "of their own sizes" if native is None else f"of {native[0]} x {native[1]}"
    log.info("%s: images %s are resized to %d x %d (--image_size)", name, before, size, size)


def _from_arrays(name: str, arrays: Arrays) -> ImageData:
    """Wraps arrays that are already in memory: nothing to cache, the key is the hash of the pixels."""
    if not (isinstance(arrays, tuple) and len(arrays) == 2):
        raise InputError(f"--dataset {name}: must return an ImageData or a pair (train, test), not {type(arrays)}")
    train, test = (np.ascontiguousarray(split).view() for split in arrays)
    for split in (train, test):
        if split.dtype != np.uint8 or split.ndim != 4 or not len(split) or split.shape[1:] != train.shape[1:]:
            raise InputError(
                f"--dataset {name}: made {train.dtype} {train.shape} and {test.dtype} {test.shape}, "
                "must be two uint8 arrays (N, C, H, W) of one image shape"
            )
        if split.shape[3] in (1, 3) and split.shape[1] not in (1, 3) and min(split.shape[1:3]) >= SMALLEST:
            raise InputError(
                f"--dataset {name}: made images {split.shape[1:]}, which look like (H, W, C), must be (C, H, W); "
                "return x.transpose(0, 3, 1, 2), or, where there are that many channels, an ImageData"
            )
        split.flags.writeable = False  # of this view
    digest = hashlib.sha256(f"{train.shape} {test.shape}".encode())
    digest.update(train)
    digest.update(test)
    return ImageData(name, train, test, digest.hexdigest()[:16])


def set_aside(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A split's images to train on, and a tenth of them (at most 5,000) to look at: the same ones every time."""
    aside = min(max(len(images) // 10, 1), 5000)
    order = np.random.RandomState(0).permutation(len(images))  # as files may come class by class
    return images[order[:-aside]], images[order[-aside:]]


def at_random(images: np.ndarray, n: int) -> np.ndarray:
    """At most n images of a split, the same random ones every time: files may come class by class."""
    return images[np.sort(np.random.RandomState(0).permutation(len(images))[:n])]


def labelled_digits(image_size: int | None = None) -> Arrays:
    """Returns scikit-learn's 1797 digits, uint8 (N, 1, H, W), and their labels; the last 400 are the test split."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(images))  # the legacy generator's stream never changes
    return resize(images[order], image_size or 8), labels[order]


def _digits(data_path: Path, image_size: int | None) -> Arrays:
    images, _ = labelled_digits(image_size)
    if image_size not in (None, 8):
        _tell_of_resizing("digits", (8, 8), image_size)
    return images[:-DIGITS_TEST], images[-DIGITS_TEST:]


def _cifar10(data_path: Path, image_size: int | None) -> ImageData:
    return _prepared("cifar10", cifar10.find(data_path), data_path, image_size)


def _imagenet32(data_path: Path, image_size: int | None, train_path: str = "", test_path: str = "") -> ImageData:
    return _prepared("imagenet32", imagenet32.find(data_path, train_path, test_path), data_path, image_size)


def _celeba(data_path: Path, image_size: int | None) -> ImageData:
    return _prepared("celeba", celeba.find(data_path), data_path, image_size)


def _lsun(data_path: Path, image_size: int | None) -> ImageData:
    return _prepared("lsun", lsun.find(data_path), data_path, image_size)


DATASETS: dict[str, Callable[[Path, int | None], ImageData | Arrays]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "imagenet32": _imagenet32,
    "celeba": _celeba,
    "lsun": _lsun,
}
SOURCES: dict[str, Callable[[str], Source]] = {"folder": folder.find, "npz": npz.find, "hub": hub.find}
