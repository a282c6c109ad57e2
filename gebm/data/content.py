"""What the arrays of a data set hold: a hash of each image, and what a user must know of them."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gebm.data.arrays import load_npz
from gebm.data.cache import CHUNK
from gebm.data.splits import hash_of
from gebm.errors import InputError
from gebm.files import atomic_write

__all__ = ["Content", "content_of", "notes_on"]

FILE = "content.npz"
DARK = 128  # level that no pixel reaches, from which on down images are told of
SOME = 0.1  # share of images, less than half as bright as the brightest, from which on they are told of


class Content(NamedTuple):
    """Hashes of the images of two splits.

    Attributes:
        train, test: a 64-bit hash of each image's pixels, uint64 (N,), in the order of the arrays.
        lowest: the lowest value of all pixels.
        brightest: the highest of each image, uint8 (M,), those of training first.
    """

    train: np.ndarray
    test: np.ndarray
    lowest: int
    brightest: np.ndarray

    @property
    def key(self) -> str:
        """Hash of all images in their order: equal keys mean equal arrays, whatever files they came from."""
        digest = hashlib.sha256(f"{len(self.train)} {len(self.test)} ".encode())
        for hashes in (self.train, self.test):
            digest.update(np.ascontiguousarray(hashes).data)
        return digest.hexdigest()[:16]


def content_of(name: str, train: np.ndarray, test: np.ndarray, folder: Path | None = None) -> Content:
    """What two arrays (N, C, H, W) hold; kept in `folder`, that of the cache they lie in, if one is given."""
    if folder is not None and (kept := _kept(folder / FILE, len(train), len(test))):
        return kept
    ours, theirs = (_hashes(split, name) for split in (train, test))
    ends = [
        (int(block.min()), block.reshape(len(block), -1).max(1)) for split in (train, test) for block in _blocks(split)
    ]
    lowest, brightest = min(low for low, _ in ends), np.concatenate([high for _, high in ends])
    content = Content(ours, theirs, lowest, brightest)
    if folder is not None:
        with suppress(OSError), atomic_write(folder / FILE) as temporary, open(temporary, "wb") as file:
            np.savez(file, **content._asdict())
    return content


def notes_on(content: Content) -> list[str]:
    """What is odd about a data set, a line each."""
    notes, high = [], int(content.brightest.max())
    if shared := int(np.isin(content.test, content.train).sum()):
        notes.append(f"{shared:,} of {len(content.test):,} test images equal a training image in every pixel")
    if copies := len(content.train) - len(np.unique(content.train)):
        notes.append(f"{copies:,} of {len(content.train):,} training images are copies of another")
    dark = content.brightest < high / 2
    if content.lowest == high:
        notes.append(f"every pixel of every image is {high}")
    elif high < DARK:
        notes.append(f"brightest pixel {high} of 255; if that is their white, multiply them by {255 / high:.3g}")
    elif dark.mean() > SOME:
        notes.append(
            f"{int(dark.sum()):,} of {len(dark):,} images have no pixel above {content.brightest[dark].max()} of 255, "
            "others do; see that all have one range of values"
        )
    return notes


def _kept(file: Path, *counts: int) -> Content | None:
    with suppress(InputError, KeyError, TypeError, ValueError, OSError):
        arrays = load_npz(file)
        train, test, highest = arrays["train"], arrays["test"], arrays["brightest"]
        counted = (len(train), len(test)) == counts and len(highest) == sum(counts)
        if counted and train.dtype == test.dtype == np.uint64 and highest.dtype == np.uint8:
            return Content(train, test, int(arrays["lowest"]), highest)
    return None


def _hashes(split: np.ndarray, name: str) -> np.ndarray:
    title = f"{name}: hashes"
    with tqdm(total=len(split), desc=title, unit=" images", dynamic_ncols=True, disable=None, leave=False) as bar:
        hashes: list[int] = []
        for block in _blocks(split):
            hashes += map(hash_of, block)
            bar.update(len(block))
    return np.array(hashes, np.uint64)


def _blocks(split: np.ndarray) -> Iterator[np.ndarray]:
    return (np.asarray(split[i : i + CHUNK]) for i in range(0, len(split), CHUNK))
