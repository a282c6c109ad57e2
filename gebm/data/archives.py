"""Archives and pickled batches of images, read in memory within limits: nothing is unpacked by a name of theirs, and
no code in them can run."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gebm.bounded import Bounded, check_regular, most_unpacked, open_regular, reason, size_of
from gebm.errors import InputError

__all__ = ["ARCHIVE_ERRORS", "open_member", "open_zip", "read_pickled", "tar_members"]

MAX_UNPACKED = 64 << 30  # bytes, of a zip archive; tables and arrays of numpy have a lower limit of their own
NEEDLESS = (  # opcodes that no array takes
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
    *(pickle.PERSID, pickle.BINPERSID, pickle.FROZENSET, pickle.ADDITEMS, pickle.NEXT_BUFFER),
)
ARCHIVE_ERRORS = (  # what damaged archives raise
    OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
    tarfile.TarError,
)  # fmt: skip


def open_zip(path: Path, most: int = MAX_UNPACKED, content: bytes | None = None) -> zipfile.ZipFile:
    """Opens an archive of stored and deflated files; `content` is that of the file, where it is in memory already.

    The sizes in its directory are checked here. No more than these can be read: `zipfile` stops there.

    Raises:
        InputError: it is no archive or a truncated one, has files packed otherwise or encrypted, or would unpack to
            more than `most` bytes or 200 times its size.
    """
    if content is None:
        check_regular(path)
    size = size_of(path) if content is None else len(content)
    try:
        archive = zipfile.ZipFile(path if content is None else io.BytesIO(content))
    except ARCHIVE_ERRORS as error:
        if path.suffix == ".npy":
            raise InputError(f"{path}: one .npy array; put it into an .npz with numpy.savez(file, x)") from None
        why = f"not a readable zip archive ({reason(error)})"
        raise InputError(f"{path}: {size:,} bytes, {why}; fetch it again") from error
    total, most = sum(member.file_size for member in archive.infolist()), min(most, most_unpacked(size))
    plain = all(
        member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not member.flag_bits & 1
        for member in archive.infolist()
    )
    if total > most or not plain:
        archive.close()
        why = f"{total:,} bytes unpacked, at most {most:,} are read" if plain else "encrypted, or not packed by deflate"
        raise InputError(f"{path}: {why}; write it again")
    return archive


@contextmanager
def open_member(archive: zipfile.ZipFile, name: str, title: str) -> Iterator[Bounded]:
    """A file of an archive as a stream of at most the size that the archive gives it."""
    with archive.open(name) as stream:
        yield Bounded(stream, archive.getinfo(name).file_size, title)


def tar_members(path: Path, names: Collection[str], most: int) -> Iterator[tuple[PurePosixPath, int, Bounded]]:
    """The plain files of a tar.gz whose last part without its suffix is in `names`: path in it, size, and stream.

    A stream can be read until the next is asked for. Nothing is written to the disk, links and devices are passed
    over, and at the end gzip checks its sum.

    Raises:
        InputError: the archive unpacks to more than `most` bytes or 200 times its size.
        Exception: one of `ARCHIVE_ERRORS`, where it is damaged.
    """
    most = min(most, most_unpacked(size_of(path)))
    with open_regular(path) as packed, gzip.open(packed) as stream:
        unzipped = Bounded(stream, most, str(path))
        with tarfile.open(fileobj=unzipped, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # of which it would keep a list
                place = PurePosixPath(member.name)
                if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.sparse and place.stem in names:
                    if file := tar.extractfile(member):  # of a plain file always
                        yield place, member.size, Bounded(file, most, f"{path}: {place}")
        while unzipped.read(1 << 20):
            pass


def read_pickled(stream: Bounded) -> np.ndarray:
    """Returns the uint8 array `data` of a pickled dict, flat; whatever else is in the dict is not looked at.

    Raises:
        InputError: the pickle asks for more than plain containers and arrays, or for more memory than it should.
        Exception: of any kind, where the pickle is damaged or holds something else.
    """
    content = _ArrayUnpickler(stream).load()
    array: _Array = content[b"data"] if b"data" in content else content["data"]
    return array.as_uint8()


class _Array:
    """What a pickled array is read as: its type and its bytes.

    The real `numpy.ndarray` and `numpy.dtype` are not given to the file: their `__setstate__` believes what it is told
    (an object dtype with cleared flags turns raw bytes into pointers).
    """

    dtype, fortran, data = "", False, b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, _shape, self.dtype, self.fortran, self.data = state

    def as_uint8(self) -> np.ndarray:
        if self.dtype != "u1" or self.fortran:
            raise ValueError("the array is not uint8 in C order")
        return np.frombuffer(self.data, np.uint8)


class _DType(str):
    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Byte order and layout mean nothing to single bytes."""


def _dtype(name: str | bytes, *_: object) -> _DType:
    return _DType(name.decode() if isinstance(name, bytes) else name)


def _frombuffer(data: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


class _ArrayUnpickler(pickle._Unpickler):
    """Reads plain containers and arrays; refuses every other global.

    Python's own form of the unpickler, not C's: that one fills a table up to any number that a memo opcode names, 32 GB
    for a file of six bytes. Keys are texts, as to hash a tuple of tuples of tuples may take for ever.
    """

    ALLOWED = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _dtype,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    }
    stack: list[Any]  # these three the stubs leave out
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    dispatch = {op: load for op, load in pickle._Unpickler.dispatch.items() if bytes([op]) not in NEEDLESS}

    def __init__(self, stream: Bounded):
        super().__init__(stream, encoding="bytes")
        self.encodable = 2 * stream.most  # bytes; else one text encoded again and again would fill the memory

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("_codecs", "encode"):  # bytes as Python 3 writes them for Python 2
            return self._encode
        if (module, name) not in self.ALLOWED:
            raise InputError(f"refused, the pickle asks for {module}.{name}; only uint8 arrays and plain containers")
        return self.ALLOWED[module, name]

    def _encode(self, text: str, _: str) -> bytes:
        self.encodable -= len(text)
        if self.encodable < 0:
            raise InputError("refused, the pickle encodes more text than it holds")
        return text.encode("latin1")

    def _check_keys(self, keys: list[Any]) -> None:
        if not all(isinstance(key, str | bytes) for key in keys):
            raise InputError("refused, the pickle has a dict whose keys are no texts")

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]  # the stubs leave it out

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]  # the stubs leave it out

    def load_dict(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_dict()  # type: ignore[misc]  # the stubs leave it out

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], _Array | _DType):  # a state set on one of the functions would stay there
            raise InputError("refused, the pickle changes something else than an array")
        super().load_build()  # type: ignore[misc]  # the stubs leave it out

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))  # Python's own makes one of the claimed size first

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8  # type: ignore[assignment]
    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]
    dispatch[pickle.SETITEM[0]] = load_setitem  # type: ignore[assignment]
    dispatch[pickle.SETITEMS[0]] = load_setitems  # type: ignore[assignment]
    dispatch[pickle.DICT[0]] = load_dict  # type: ignore[assignment]
