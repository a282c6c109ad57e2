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


class Content(NamedTuple):
    """Hashes of the images of two splits.

    Attributes:
        train, test: a 64-bit hash of each image's pixels, uint64 (N,), in the order of the arrays.
        range: the lowest and the highest value of all pixels.
    """

    train: np.ndarray
    test: np.ndarray
    range: tuple[int, int]

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
    hashes = [_hashes(split, name) for split in (train, test)]
    ends = [(int(block.min()), int(block.max())) for split in (train, test) for block in _blocks(split)]
    content = Content(hashes[0], hashes[1], (min(low for low, _ in ends), max(high for _, high in ends)))
    if folder is not None:
        with suppress(OSError), atomic_write(folder / FILE) as temporary, open(temporary, "wb") as file:
            np.savez(file, train=content.train, test=content.test, range=np.array(content.range))
    return content


def notes_on(content: Content) -> list[str]:
    """What is odd about a data set, a line each."""
    notes, (low, high) = [], content.range
    if shared := int(np.isin(content.test, content.train).sum()):
        notes.append(f"{shared:,} of {len(content.test):,} test images equal a training image in every pixel")
    if copies := len(content.train) - len(np.unique(content.train)):
        notes.append(f"{copies:,} of {len(content.train):,} training images are copies of another")
    if low == high:
        notes.append(f"every pixel of every image is {low}")
    elif high < DARK:
        notes.append(f"brightest pixel {high} of 255; if that is their white, multiply them by {255 / high:.3g}")
    return notes


def _kept(file: Path, *counts: int) -> Content | None:
    with suppress(InputError, KeyError, TypeError, ValueError, OSError):
        arrays = load_npz(file)
        train, test, (low, high) = arrays["train"], arrays["test"], arrays["range"].tolist()
        if (len(train), len(test)) == counts and train.dtype == test.dtype == np.uint64:
            return Content(train, test, (low, high))
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
