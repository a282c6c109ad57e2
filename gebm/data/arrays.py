"""Arrays of numpy in .npy and .npz files: no pickles, and no more memory than the file has bytes for them."""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import filterfalse
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from gebm.bounded import Bounded, reason
from gebm.data.archives import open_member, open_zip
from gebm.data.walk import is_hidden
from gebm.errors import InputError

__all__ = ["MAX_BYTES", "Header", "headers", "load_npy", "load_npz"]

MAX_BYTES = 4 << 30  # of a file, unpacked: tables and arrays are read whole
MAX_HEADER = 1 << 16  # bytes


class Header(NamedTuple):
    """What an array's header says."""

    shape: tuple[int, ...]
    dtype: np.dtype


def headers(path: Path) -> dict[str, Header]:
    """Shape and type of the arrays of an .npz, by name; their values are not read.

    Raises:
        InputError: no .npz, or a damaged one.
    """
    found = {}
    with open_zip(path, MAX_BYTES) as archive:
        for member in filterfalse(is_hidden, archive.namelist()):
            title = f"{path}: {member}"
            with _complaints(f"{title} is not an array of numpy"), open_member(archive, member, title) as stream:
                found[member.removesuffix(".npy")] = _header(stream)
    return found


def load_npz(path: Path, names: Collection[str] | None = None, content: bytes | None = None) -> dict[str, np.ndarray]:
    """Those of the arrays `names` of an .npz that are there; None: all. `content` is that of the file, if it is read.

    Raises:
        InputError: no .npz, a damaged one, one of objects, or headers that claim more than there is.
    """
    found = {}
    with open_zip(path, MAX_BYTES, content) as archive:
        for member in filterfalse(is_hidden, archive.namelist()):
            name, title = member.removesuffix(".npy"), f"{path}: {member}"
            if names is None or name in names:
                size = archive.getinfo(member).file_size
                with _complaints(f"{title} cannot be read"):
                    with open_member(archive, member, title) as stream:
                        header = _header(stream)
                        _check(header, size - stream.place, title)
                    with open_member(archive, member, title) as stream:
                        found[name] = np.lib.format.read_array(stream, allow_pickle=False)
                        stream.read()  # to its end, where the zip has its checksum
    return found


def load_npy(file: BinaryIO, size: int, title: str) -> np.ndarray:
    """The array of an open .npy of `size` bytes; errors as of `load_npz`."""
    with _complaints(f"{title}: cannot be read"):
        start = file.tell()
        header = _header(Bounded(file, size, title))
        _check(header, size - (file.tell() - start), title)
        file.seek(start)
        return np.lib.format.read_array(Bounded(file, size, title), allow_pickle=False)


def _header(stream: Bounded) -> Header:
    start = Bounded(stream, MAX_HEADER, stream.title)
    version = np.lib.format.read_magic(start)
    readers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[version[0]](start)
    if any(n < 0 for n in shape):
        raise ValueError(f"a shape of {shape}")
    return Header(shape, dtype)


def _check(header: Header, size: int, title: str) -> None:
    """Raise InputError where an array is not of plain values, or its header claims more bytes than there are."""
    if header.dtype.hasobject:
        raise InputError(f"{title}: cannot be read, as it holds objects of Python; write plain arrays")
    claimed = math.prod(header.shape) * header.dtype.itemsize
    if claimed > size:
        raise InputError(f"{title}: its header claims {claimed:,} bytes, {size:,} are there; write it again")


@contextmanager
def _complaints(what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged archives and headers may raise anything
        raise InputError(f"{what} ({reason(error)}); write it again") from error
