"""Arrays on disk, built once: a train and a test array keyed by what they were made from."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gebm.errors import InputError
from gebm.files import atomic_folder, check_writable

__all__ = ["cached"]

FORMAT = 1  # raise it when the same recipe comes to mean other arrays


def cached(
    data_path: str | Path, name: str, recipe: dict, build: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns (train, test, key): the arrays of `build()`, memory-mapped read-only from the cache, and their key.

    They lie in `data_path/cache/<name>-<key>/` as train.npy and test.npy beside the recipe (meta.json), whose sha256
    is the key. The folder is written under a temporary name and renamed, so it is whole or absent: of processes that
    race the first one's is kept, and what a killed one leaves is never read.

    Args:
        recipe: all that decides the arrays (source, transform, size), as plain JSON values.
        build: makes the two arrays; called only if the cache does not hold them.

    Raises:
        InputError: `data_path` cannot be written, or the cached folder is damaged.
    """
    meta = json.dumps({"format": FORMAT, "name": name, **recipe}, sort_keys=True, indent=1)
    key = hashlib.sha256(meta.encode()).hexdigest()[:16]
    folder = Path(data_path) / "cache" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{key}"
    if not folder.exists():
        check_writable(folder.parent, "--data_path")  # before the long work
        _write(folder, meta, *build())
    try:
        train, test = (np.load(folder / f"{split}.npy", mmap_mode="r") for split in ("train", "test"))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder}: damaged cache ({error}); delete this folder, it is then built anew") from error
    return train, test, key


def _write(folder: Path, meta: str, train: np.ndarray, test: np.ndarray) -> None:
    try:
        with atomic_folder(folder, new=True) as temporary:
            np.save(temporary / "train.npy", train)
            np.save(temporary / "test.npy", test)
            (temporary / "meta.json").write_text(meta + "\n")
    except OSError as error:
        if not folder.exists():  # if it does, another process was first with the same arrays
            raise InputError(f"{folder}: cannot be written ({error}); free it or choose another --data_path") from error
