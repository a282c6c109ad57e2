"""CIFAR-10 as its authors publish it: binary or Python batches, unpacked or in their tar.gz.

Source: A. Krizhevsky, Learning multiple layers of features from tiny images (2009),
https://www.cs.toronto.edu/~kriz/cifar.html. A binary batch is 10,000 records of 3,073 bytes: the label, then the red,
green and blue planes of 32x32. A Python batch is a pickled dict whose `data` is the (10000, 3072) array of the planes.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gebm.bounded import Bounded, Readable, open_regular, reason
from gebm.data.archives import ARCHIVE_ERRORS, read_pickled, tar_members
from gebm.data.cache import Images, Source, from_array
from gebm.data.transform import BILINEAR, resize
from gebm.errors import InputError
from gebm.files import check_writable

__all__ = ["find"]

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
SOURCES = ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
ARCHIVE_BYTES = {"cifar-10-binary.tar.gz": 170_052_171, "cifar-10-python.tar.gz": 170_498_071}
RECORDS = 10_000  # images in a batch
PIXELS = 3 * 32 * 32
MOST = 256 << 20  # bytes of an archive unpacked, of which the published ones have 184 and 186 million


def find(data_path: Path) -> Source:
    """The first of `SOURCES` in `data_path`; downloads the binary archive (170 MB, md5 checked) if none is.

    Raises:
        InputError: nothing there and the download fails, or `data_path` cannot be written; a batch is missing, of the
            wrong size or truncated, or a pickle holds more than arrays.
    """
    source = _fetch(data_path)

    def read(size: int) -> tuple[Images, Images]:
        train, test = _read(source)
        return from_array(resize(train, size)), from_array(resize(test, size))

    return Source(_fingerprint(source), read, BILINEAR, native=(32, 32))


def _fetch(data_path: Path) -> Path:
    for name in SOURCES:
        if (data_path / name).exists():
            return data_path / name
    import pooch

    check_writable(data_path, "--data_path")
    existed = data_path.exists()
    try:
        return Path(pooch.retrieve(URL, f"md5:{MD5}", SOURCES[2], data_path, progressbar=True))
    except (OSError, ValueError) as error:  # network and disk errors; a wrong hash
        if not existed and data_path.exists():
            data_path.rmdir()
        raise InputError(
            f"{data_path}: no CIFAR-10 there, and the download failed ({error}); put one of {', '.join(SOURCES)} there"
        ) from error


def _fingerprint(source: Path) -> str:
    """The sha256 of the batch files' (or the archive's) contents: 180 MB in a few tenths of a second."""
    digest = hashlib.sha256(source.name.encode())
    for path in _files(source) if source.is_dir() else [source]:
        try:
            with open_regular(path) as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return digest.hexdigest()


def _read(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """(train, test), uint8 of shapes (50000, 3, 32, 32) and (10000, 3, 32, 32), from one of `SOURCES`."""
    batches = dict(_folder(source) if source.is_dir() else _archive(source))
    missing = [name for name in BATCHES if name not in batches]
    if missing:
        raise InputError(f"{source}: {', '.join(missing)} missing; it must hold {', '.join(BATCHES)}")
    images = [batches[name].reshape(RECORDS, 3, 32, 32) for name in BATCHES]
    return np.concatenate(images[:-1]), images[-1]


def _files(source: Path) -> list[Path]:
    files = [source / (name + (".bin" if source.name == SOURCES[0] else "")) for name in BATCHES]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise InputError(f"{source}: {', '.join(missing)} missing; complete the folder, or remove it to download")
    return files


def _folder(source: Path) -> Iterator[tuple[str, np.ndarray]]:
    for path in _files(source):
        with open_regular(path) as stream:
            yield path.stem, _batch(stream, path.stat().st_size, path)


def _archive(source: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        for path, size, stream in tar_members(source, BATCHES, MOST):
            if path.suffix in ("", ".bin"):
                yield path.stem, _batch(stream, size, source / path)
    except InputError:
        raise
    except ARCHIVE_ERRORS as error:
        raise InputError(
            f"{source}: {source.stat().st_size:,} bytes, cannot be read ({reason(error)}); "
            f"the published file has {ARCHIVE_BYTES[source.name]:,} bytes; fetch it again"
        ) from error


def _batch(stream: Readable, size: int, path: Path) -> np.ndarray:
    """Reads one batch of `size` bytes; `path` names it in errors and its suffix gives the format."""
    if path.suffix == ".bin":
        expected = RECORDS * (1 + PIXELS)
        if size != expected:
            raise InputError(f"{path}: {size:,} bytes, expected {expected:,} ({RECORDS:,} records of {1 + PIXELS:,})")
        data = stream.read(expected)
        if len(data) < expected:
            raise EOFError(f"{path.name}: ends after {len(data):,} bytes")
        return np.frombuffer(data, np.uint8).reshape(RECORDS, 1 + PIXELS)[:, 1:]
    most = 2 * RECORDS * PIXELS + (1 << 20)  # labels and file names take a hundredth
    if size > most:
        raise InputError(f"{path}: {size:,} bytes, the published file has about {RECORDS * 3104:,}; fetch it again")
    data = stream.read(size)  # outside the try: a truncated archive is an error of the archive
    if len(data) < size:
        raise EOFError(f"{path.name}: ends after {len(data):,} bytes")
    try:
        return read_pickled(Bounded(io.BytesIO(data), most, str(path))).reshape(RECORDS, PIXELS)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(
            f"{path}: {size:,} bytes, not a batch of {RECORDS:,} images ({reason(error)}); "
            f"the published file has about {RECORDS * 3104:,} bytes"
        ) from error
