"""Zip archives, and pickled batches of images read so that no code can run."""

import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from gebm.errors import InputError

__all__ = ["open_zip", "read_pickled"]


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens an archive; raises InputError if it is none, or truncated."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        size = path.stat().st_size
        raise InputError(f"{path}: {size:,} bytes, not a readable zip archive ({error}); fetch it again") from error


def read_pickled(stream: IO[bytes]) -> np.ndarray:
    """Returns the uint8 array `data` of a pickled dict, flat; whatever else is in the dict is not looked at.

    Raises:
        InputError: the pickle asks for more than plain containers and arrays.
        Exception: of any kind, where the pickle is damaged or holds something else.
    """
    content = _ArrayUnpickler(stream, encoding="bytes").load()
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


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers and arrays; refuses every other global."""

    ALLOWED = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _dtype,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes as Python 3 writes them for Python 2
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise InputError(f"refused, the pickle asks for {module}.{name}; only uint8 arrays and plain containers")
        return self.ALLOWED[module, name]
