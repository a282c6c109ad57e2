"""Which images are for training and which for testing, where a data set says so and where it does not."""

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gebm.bounded import open_regular
from gebm.data.cache import CHUNK
from gebm.errors import InputError

__all__ = ["BY_CONTENT", "by_content", "content_hashes", "given_splits", "hash_of", "like_a_split"]

TRAIN = ("train", "training", "trn")
TESTS = (("test", "testing", "tst"), ("val", "valid", "validation", "dev"))
SPLITS = (*TRAIN, *(name for names in TESTS for name in names))
ENDING = re.compile(r"[\W_]*(set|split|data|images|imgs)$")  # of a split's name, as in test_set
BY_CONTENT = "a tenth by content, copies together"  # how `by_content` splits, for recipes: another way is another name
TENTH = np.uint64(2**64 // 10)
BLOCK = 1 << 20  # bytes
THREADS = 8


def given_splits(names: Iterable[str], where: str) -> tuple[str, str] | None:
    """The name of the training and of the test split among some, in capitals or not; None: they are not both there.

    A name may go on as `test_set` does. Where there is none for testing, that for validation serves.

    Raises:
        InputError: several names of one of the two.
    """
    names = sorted(names)
    train, *tests = (_named(names, group) for group in (TRAIN, *TESTS))
    test = next(filter(None, tests), [])
    if not (train and test):
        return None
    for group in (train, test):
        if len(group) > 1:
            raise InputError(f"{where}: holds both {' and '.join(group)}; keep one of them")
    return train[0], test[0]


def _named(names: list[str], group: tuple[str, ...]) -> list[str]:
    exact = [name for name in names if name.lower() in group]
    return exact or [name for name in names if ENDING.sub("", name.lower()) in group]


def like_a_split(name: str) -> bool:
    """Whether a name has the word of a split in it, as `train2017` and `my-test_set` do."""
    words = re.findall("[a-z]+", name.lower())
    return any(word in SPLITS or ENDING.sub("", word) in SPLITS for word in words)


def by_content(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted numbers of a training and a test split, from the 64-bit hashes of at least two images.

    Those with a hash in the lowest tenth of all values are for testing. So an image's split depends on that image
    alone: one that is added, removed or renamed moves none of the others, and copies stay together. Only where fewer
    than two images (of two or three: fewer than one) are for testing are those of the lowest hashes taken, with their
    copies, and where that were all of them, those of the highest stay for training. Copies of one image alone are
    parted.
    """
    least = 2 if len(hashes) > 3 else 1
    testing = (hashes < TENTH) | (hashes <= np.partition(hashes, least - 1)[least - 1])
    if testing.all():
        testing = hashes < hashes.max()
    if not testing.any():
        testing[0] = True
    return np.flatnonzero(~testing), np.flatnonzero(testing)


def hash_of(content: bytes | Path | np.ndarray) -> int:
    """A 64-bit hash of bytes, of a file's content, or of an array's values."""
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(content, Path):
        try:
            with open_regular(content) as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"{content}: cannot be read ({error.strerror}); replace or remove it") from error
    else:
        digest.update(np.ascontiguousarray(content).data if isinstance(content, np.ndarray) else content)
    return int.from_bytes(digest.digest(), "big")


def content_hashes(contents: Iterable[bytes | Path], count: int, title: str) -> np.ndarray:
    """The 64-bit hashes of `count` encoded images, uint64, in their order; read by several threads."""
    hashes, rest = np.empty(count, np.uint64), iter(contents)
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=count, desc=title, unit=" images", dynamic_ncols=True, disable=None, leave=False) as bar,
    ):
        while chunk := list(islice(rest, CHUNK)):
            hashes[bar.n : bar.n + len(chunk)] = list(pool.map(hash_of, chunk))
            bar.update(len(chunk))
    return hashes
