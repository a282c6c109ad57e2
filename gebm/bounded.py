"""Reading what somebody else may have written: text, JSON and streams, within limits (docs/security.md)."""

import io
import json
import os
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from gebm.errors import InputError

__all__ = ["MAX_CONFIG", "MAX_JSON", "Bounded", "check_plain", "most_unpacked", "parse_json", "read_bytes"]
__all__ += ["read_json", "read_json_lines", "reason"]

MAX_CONFIG = 64 << 10  # bytes of a configuration: safe YAML is parsed at some 50 kB a second at worst
MAX_JSON = 16 << 20  # bytes of a JSON file: in memory it may take twenty times as much
MAX_LINE = 1 << 20  # bytes of a line of stats.jsonl
MAX_FILES = 100_000  # of a folder that is looked through
MAX_RATIO, SMALL = 200, 64 << 20  # an archive may unpack to 200 times its size, or to 64 MiB if that is more


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


def read_bytes(path: str | Path, most: int) -> bytes:
    """A file of at most `most` bytes; raises InputError if it is larger, OSError if it cannot be read."""
    with open(path, "rb") as file:
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
    with open(path, "rb") as file:
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


def check_plain(place: Path) -> None:
    """Raise InputError unless a folder, or one file, is made of plain files and folders: no links, no devices."""
    below = (os.path.join(top, name) for top, folders, files in os.walk(place) for name in [*folders, *files])
    for number, path in enumerate(chain([str(place)], below)):
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue  # what opens it says what is wrong
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            what = "a link" if stat.S_ISLNK(mode) else "no plain file"
            raise InputError(f"{path}: {what}; --from_untrusted takes plain files and folders alone")
        if number > MAX_FILES:
            raise InputError(f"{place}: more than {MAX_FILES:,} files, which no run has")
