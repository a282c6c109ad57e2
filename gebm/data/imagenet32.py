"""ImageNet at 32x32, as its authors publish it: batches in folders or zip archives, pickled or .npz.

Source: P. Chrabaszcz, I. Loshchilov and F. Hutter, A downsampled variant of ImageNet as an alternative to the CIFAR
datasets (2017), arXiv 1707.08819; https://image-net.org/download-images. A batch is a dict whose `data` is the uint8
array (n, 3072) of the red, green and blue planes of its images. Nine train batches hold a tenth of them, rounded down.
"""

import zipfile
from collections.abc import Iterable, Iterator
from itertools import filterfalse
from pathlib import Path, PurePosixPath

import numpy as np

from gebm.bounded import Bounded, open_regular, reason
from gebm.data.archives import open_zip, read_pickled
from gebm.data.arrays import load_npz
from gebm.data.cache import CHUNK, Images, Source, fingerprint
from gebm.data.transform import BILINEAR, resize
from gebm.data.walk import is_hidden
from gebm.errors import InputError

__all__ = ["find"]

TRAIN, TEST = 1_281_167, 50_000  # images
PIXELS = 3 * 32 * 32


def find(data_path: Path, train_path: str | Path = "", test_path: str | Path = "") -> Source:
    """The batches in two folders or zip archives; where a path is empty, below `data_path`.

    The two splits are the published train and validation sets. Up to two batches are in memory (0.8 GB).

    Raises:
        InputError: nothing there; a batch is missing, damaged or of the wrong length; a pickle holds more than arrays.
    """
    sizes = {f"train_data_batch_{i}": TRAIN // 10 for i in range(1, 10)}
    sizes["train_data_batch_10"] = TRAIN - sum(sizes.values())
    train = _place("Imagenet32_train", data_path, train_path, "--imagenet_train_path"), sizes
    test = _place("Imagenet32_val", data_path, test_path, "--imagenet_test_path"), {"val_data": TEST}
    places = [_batches(*split).values() if split[0].is_dir() else [split[0]] for split in (train, test)]
    files = [[file for file in group if isinstance(file, Path)] for group in places]  # all: none is within an archive

    def read(size: int) -> tuple[Images, Images]:
        return _images(*train, size), _images(*test, size)

    return Source(fingerprint(*files), read, BILINEAR, native=(32, 32))


def _place(name: str, data_path: Path, given: str | Path, flag: str) -> Path:
    """The folder or archive of a split."""
    if given:
        if not Path(given).exists():
            raise InputError(f"{flag} {given}: not there; give the unpacked {name} or its zip archive")
        return Path(given)
    roots = (data_path, data_path / "imagenet32", data_path / "Imagenet32")
    names = (name, f"{name}_npz", f"{name}.zip", f"{name}_npz.zip")
    for place in (root / n for root in roots for n in names):
        if place.exists():
            return place
    raise InputError(
        f"{data_path}: no ImageNet32 there; put {' or '.join(names)} there, from https://image-net.org/download-images "
        f"(32x32, free after registration), or name its place with {flag}"
    )


def _batches(place: Path, names: Iterable[str]) -> dict[str, Path | zipfile.Path]:
    """The batch files by name, in a folder or at any depth of an archive; both kinds of path open alike."""
    there: dict[str, Path | zipfile.Path]
    if place.is_dir():
        there = {file.name: file for file in place.iterdir()}
    else:
        archive = open_zip(place)
        members = filterfalse(is_hidden, archive.namelist())
        there = {PurePosixPath(member).name: zipfile.Path(archive, member) for member in members}
    found = {name: file for name in names if (file := there.get(name, there.get(f"{name}.npz")))}
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{place}: {', '.join(missing)} missing; it must hold {', '.join(names)} (or each as .npz)")
    return found


def _images(place: Path, sizes: dict[str, int], size: int) -> Images:
    def blocks(start: int) -> Iterator[np.ndarray]:
        first = 0
        for (name, file), count in zip(_batches(place, sizes).items(), sizes.values()):
            if start < first + count:
                images = _read(file, f"{place}: {name}", count)
                for i in range(max(start - first, 0), count, CHUNK):
                    yield resize(images[i : i + CHUNK], size)
            first += count

    return Images((sum(sizes.values()), 3, size, size), blocks)


def _read(file: Path | zipfile.Path, title: str, count: int) -> np.ndarray:
    """One batch, (count, 3, 32, 32)."""
    try:
        with open_regular(file) if isinstance(file, Path) else file.open("rb") as unbounded:
            stream = Bounded(unbounded, 2 * count * PIXELS + (1 << 20), title)  # labels and a mean come with it
            if file.name.endswith(".npz"):
                # whole: to seek in a file within an archive is slow
                data = load_npz(Path(file.name), ["data"], stream.read())["data"]
            else:
                data = read_pickled(stream)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(title) else f"{title}: {error}") from None
    except Exception as error:  # a damaged pickle or archive may raise anything
        raise InputError(f"{title}: cannot be read ({reason(error)}); fetch it again") from error
    if data.dtype != np.uint8 or data.size != count * PIXELS:
        raise InputError(
            f"{title}: {data.size / PIXELS:,.10g} images ({data.dtype}), the published one has {count:,} (uint8)"
        )
    return data.reshape(count, 3, 32, 32)
