"""Arrays on disk, built once, image by image: a train and a test array keyed by what they were made from."""

import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import lock_descriptor
from tqdm import tqdm

from gebm.bounded import check_regular
from gebm.errors import InputError
from gebm.files import check_writable

__all__ = ["CHUNK", "Images", "Source", "cached", "fingerprint", "from_array"]

FORMAT = 1  # raise it when the same recipe comes to mean other arrays
CHUNK = 1024  # most images in memory, and most that an interruption costs

log = logging.getLogger("gebm")


class Images(NamedTuple):
    """One split, still to be read.

    Attributes:
        shape: (N, C, H, W).
        blocks: blocks(start) yields the uint8 images from number `start` on, in order, at most `CHUNK` at a time.
    """

    shape: tuple[int, ...]
    blocks: Callable[[int], Iterator[np.ndarray]]


class Source(NamedTuple):
    """Files that hold a data set.

    Attributes:
        fingerprint: hash of the content; another one where the files have changed.
        read: read(size) is the train and the test split as images of (size, size); only called to fill the cache.
        transform: what `read` does to an image, in words.
        size: the one to take where none is asked for; 0: the images are taken as they are, `read(0)`.
        native: height and width of the images where they are known to agree.
        drawn: whether the files do not say which images are for testing, so that these are drawn by content.
    """

    fingerprint: str
    read: Callable[[int], tuple[Images, Images]]
    transform: str
    size: int = 32
    native: tuple[int, int] | None = None
    drawn: bool = False


def from_array(array: np.ndarray) -> Images:
    """The images of an array in memory."""
    return Images(array.shape, lambda start: (array[i : i + CHUNK] for i in range(start, len(array), CHUNK)))


def fingerprint(*groups: Iterable[Path]) -> str:
    """Returns a hash of every file's full path, size and times of change.

    Not of the contents: a data set may hold 100 GB, and to read it at each start is the cost that the cache is there
    to save. The full path is in it since two folders may agree in names, sizes and times (unpacked archives do), and
    beside the time of change that archives restore the one that the system alone sets. Not the number of the inode:
    some file systems of networks give another one at each mount.
    """
    resolved = cache(Path.resolve)  # once a folder, not once a file
    files = [[(str(resolved(path.parent) / path.name), path.stat()) for path in group] for group in groups]
    stats = [[(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in group] for group in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def cached(
    data_path: str | Path, name: str, recipe: dict[str, Any], build: Callable[[], tuple[Images, Images]]
) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns (train, test, key): the images of `build()`, memory-mapped read-only from the cache, and their key.

    They lie in `data_path/cache/<name>-<key>/` as train.npy and test.npy beside the recipe (meta.json), whose sha256
    is the key. The folder grows as `.<name>-<key>.partial` and is renamed when it is whole. An interrupted build, by
    whatever signal or crash, goes on where it ended, to the same bits; of processes that race, the others wait.

    Args:
        recipe: all that decides the arrays (source, transform, size), as plain JSON values.
        build: makes the two splits; called only if the cache does not hold them.

    Raises:
        InputError: `data_path` cannot be written, or the cached folder is damaged.
    """
    meta = json.dumps({"format": FORMAT, "name": name, **recipe}, sort_keys=True, indent=1)
    key = hashlib.sha256(meta.encode()).hexdigest()[:16]
    folder = Path(data_path) / "cache" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{key}"
    if not folder.exists():
        check_writable(folder.parent, "--data_path")  # before the long work
        made = [path for path in (folder.parent, folder.parent.parent) if not path.exists()]
        try:
            _fill(folder, meta, name, build)
        except InputError:
            for path in made:
                with suppress(OSError):  # another process works there
                    path.rmdir()
            raise
    try:
        for split in ("train", "test"):
            check_regular(folder / f"{split}.npy")
        train, test = (np.load(folder / f"{split}.npy", "r", allow_pickle=False) for split in ("train", "test"))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder}: damaged cache ({error}); delete this folder, it is then built anew") from error
    return train, test, key


def _fill(folder: Path, meta: str, name: str, build: Callable[[], tuple[Images, Images]]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    with _alone(partial):
        if folder.exists():  # another process was first
            partial.rmdir()
            return
        try:
            for split, images in zip(("train", "test"), build()):
                _append(partial / f"{split}.npy", images, f"{name} {split}")
        except InputError:  # the source must change, and its key will too
            shutil.rmtree(partial)
            raise
        with open(partial / "meta.json", "w+b") as file:
            _write(file, meta.encode() + b"\n")
        os.rename(partial, folder)


def _append(path: Path, images: Images, title: str) -> None:
    """Writes a split as .npy, going on from the images that an interrupted call has left at `path`."""
    if not images.shape[0]:
        raise InputError(f"{title}: no images")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": images.shape})
    first, each = header.tell(), math.prod(images.shape[1:])
    there = (path.stat().st_size - first) // each if path.exists() else 0
    # All but the last chunk was synchronised: after a power cut that one may be a hole of the right size.
    done = max(0, there - CHUNK)
    with (
        open(path, "r+b" if path.exists() else "w+b") as file,
        tqdm(total=images.shape[0], initial=done, desc=title, unit=" images", dynamic_ncols=True, disable=None) as bar,
    ):
        _write(file, header.getvalue())
        file.seek(first + done * each)
        for block in images.blocks(done):
            _write(file, np.ascontiguousarray(block).data)
            done += len(block)
            bar.update(len(block))
    if done != images.shape[0]:
        raise InputError(f"{title}: {done:,} images of {images.shape[0]:,} read; did the files change meanwhile?")


def _write(file: io.BufferedRandom, content: bytes | memoryview) -> None:
    """Writes through to the disk. What was written is kept where it fails: the next call goes on from there."""
    try:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        advice = f"{error.strerror}, free some space or choose another --data_path"
        raise OSError(error.errno, advice, file.name) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes `folder` and holds it, waiting for another process that does (the system frees it when that one ends)."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            if not lock_descriptor(handle, blocking=False):
                log.info("waiting for another process that prepares %s", folder)
                lock_descriptor(handle)
            # Whom we waited for has renamed or removed what we hold.
            if folder.exists() and os.path.samestat(os.fstat(handle), os.stat(folder)):
                yield
                return
        finally:
            os.close(handle)
