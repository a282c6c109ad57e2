"""Reading what somebody else may have written: text, JSON and streams, within limits (docs/security.md)."""

import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from gebm.errors import InputError

__all__ = ["MAX_CONFIG", "MAX_JSON", "Bounded", "check_regular", "most_unpacked", "open_regular"]
__all__ += ["parse_json", "read_bytes", "read_json", "read_json_lines", "reason", "size_of"]

MAX_CONFIG = 64 << 10  # bytes of a configuration: safe YAML is parsed at some 50 kB a second at worst
MAX_JSON = 16 << 20  # bytes of a JSON file: in memory it may take twenty times as much
MAX_LINE = 1 << 20  # bytes of a line of stats.jsonl
MAX_RATIO, SMALL = 200, 64 << 20  # an archive may unpack to 200 times its size, or to 64 MiB if that is more
MAX_SPARSE = 16  # a file above 64 MiB may be 16 times as large as what it holds on the disk
BLOCK = 512  # bytes, the unit of `st_blocks`


class Readable(Protocol):
    """What has bytes to read."""

    def read(self, size: int, /) -> bytes: ...


class Bounded(io.RawIOBase):
    """The first `most` bytes of a stream, read from front to back; one that has more is refused when it gets there.

    Where headers in the stream claim more than there is, no more than `most` + 1 bytes are ever asked for.

    Args:
        stream: where to read; whoever opened it closes it.
        most: bytes that it may give.
        title: what is being read, for the error.
    """

    def __init__(self, stream: Readable, most: int, title: str):
        super().__init__()
        self.stream, self.most, self.title, self.place = stream, most, title, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes; raises InputError where the stream goes on after `most`."""
        left = self.most - self.place
        found = self.stream.read(left + 1 if size is None or size < 0 else min(size, left + 1))
        self.place += len(found)
        if len(found) > left:
            raise InputError(f"{self.title}: holds more than {self.most:,} bytes, unpacked; no more are read")
        return found

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go forwards, which counts as reading; raises InputError for any other way, so that nothing can loop."""
        if whence != os.SEEK_SET or offset < self.place:
            raise InputError(f"{self.title}: its parts lie in no order; write it again")
        while self.place < offset and self.read(min(offset - self.place, 1 << 20)):
            pass
        return self.place


def most_unpacked(size: int) -> int:
    """The bytes that an archive of `size` bytes may unpack to."""
    return max(MAX_RATIO * size, SMALL)


def reason(error: BaseException) -> str:
    """An exception in some words on one line, for the brackets of an error message."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, InputError | OSError) else f"{type(error).__name__}: {text}".rstrip(": "))[:200]


def size_of(path: str | Path) -> int:
    """The bytes that a file holds: of a sparse one, which may claim any size, those that are stored."""
    found = os.stat(path)
    if getattr(found, "st_blocks", found.st_size) * BLOCK >= found.st_size or not hasattr(os, "SEEK_DATA"):
        return found.st_size
    held = place = 0
    with open(path, "rb", buffering=0) as file:
        try:
            while place < found.st_size:
                start = os.lseek(file.fileno(), place, os.SEEK_DATA)
                place = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                held += place - start
        except OSError as error:
            if error.errno != errno.ENXIO:  # which says that only a hole is left
                return found.st_size  # the file system does not tell
    return held


def check_regular(path: str | Path) -> None:
    """Raise InputError if opening a file could wait for ever, as of a pipe or a device, or if it is hardly more than
    holes: it would be read as far larger than it is. Raise OSError if it is not there."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        return  # what opens it says so
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: a pipe, a socket or a device, and no file to read; give a plain file")
    if found.st_size > SMALL and found.st_size > MAX_SPARSE * (held := size_of(path)):
        raise InputError(f"{path}: of its {found.st_size:,} bytes {held:,} are stored, the rest are holes; not read")


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file to read its bytes. All files that gebm did not just write itself are opened here, or by a library
    after `check_regular`.

    Raises:
        InputError: it is a pipe or a device, or mostly holes.
        OSError: it cannot be opened.
    """
    check_regular(path)
    return open(path, "rb")


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of a file; raises InputError if it is larger than `most` bytes or no plain file, OSError if it
    cannot be read."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path}: larger than {most:,} bytes, more than such a file ever has")
    return content


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; raises ValueError for all that is wrong with it, nesting without end too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        InputError: the file cannot be read, is too large, or is not a JSON object.
    """
    try:
        found = parse_json(read_bytes(path, MAX_JSON).decode())
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file ({reason(error)})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a readable JSON file (an object is expected)")
    return found


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of one JSON object a line, flat ones; the last line may have been cut by a kill.

    Raises:
        InputError: a whole line is too long or not an object of plain values.
    """
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
            if not line.endswith(b"}\n") and len(line) <= MAX_LINE:
                continue
            try:
                row = parse_json(line.decode()) if len(line) <= MAX_LINE else None
            except ValueError as error:
                raise InputError(f"{path} line {number}: not JSON ({reason(error)})") from None
            if not isinstance(row, dict) or any(isinstance(value, dict | list) for value in row.values()):
                raise InputError(f"{path} line {number}: not an object of numbers and texts of a usual length")
            yield row
