"""Files that are either whole or not there, and folders of one process."""

import json
import logging
import math
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout, lock_descriptor
from safetensors import SafetensorError

from gebm.bounded import read_bytes
from gebm.errors import InputError

__all__ = ["alone", "atomic_folder", "atomic_write", "being_made", "check_output", "check_writable", "naming"]
__all__ += ["remove_folder", "sweep", "write_json"]

LEFT = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(tmp|old)")  # names of what is on its way

log = logging.getLogger("gebm")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def naming(path: str | Path, temporary: Path | None = None) -> Iterator[None]:
    """Name `path` in an OSError of the block that names no file, as that of a write to a full disk, or the temporary
    one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            name = str(error.filename or path)
            error.filename = name.replace(str(temporary), str(path)) if temporary else name
        raise
    except SafetensorError as error:  # which says it in its own words
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield an empty file beside `path` to write to; it takes the name `path` when the block ends well.

    What killed processes left of the same file is cleared away first.
    """
    path = Path(path)
    temporary = _temporary(path)
    sweep(path.parent, others=True, name=path.name)
    with naming(path, temporary):
        handle = _hold_new(temporary, Path.touch)
    try:
        with naming(path, temporary):
            yield temporary
            _synchronise(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def check_writable(path: Path, flag: str) -> None:
    """Raise InputError, naming the flag to change, unless `path` exists or can be made, and can be written."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written ({existing} is not a writable folder); give another {flag}")


def check_output(file: Path, flag: str, what: str, ours: Callable[[Path], bool], force: bool) -> None:
    """Raise InputError unless a file that a flag names can be written, and nothing is lost by that.

    Args:
        what: the kind of file that gebm writes there, in words.
        ours: whether a file that is there is of that kind, and may be replaced.
        force: replace it whatever it holds.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise InputError(f"{flag} {file}: must be a file in a folder that exists")
    check_writable(file.absolute().parent, flag)
    if not file.exists():
        return
    if not file.is_file():
        raise InputError(f"{flag} {file}: is no plain file, which cannot be replaced; name another")
    if not force and file.stat().st_size and not ours(file):
        raise InputError(f"{flag} {file}: is there and is not {what}; name another file, or overwrite it with --force")


def write_json(file: Path, found: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all; what it has no number for, infinite or NaN, is null."""
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(_finite(found), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def atomic_folder(path: str | Path, new: bool = False, synchronise: bool = True) -> Iterator[Path]:
    """Yield a temporary folder to fill, which takes the name `path` when the block ends well.

    It replaces an older folder of that name; if `new`, it raises FileExistsError instead. What killed processes left
    of the same folder is cleared away first.

    Args:
        synchronise: write every file through to the disk before the folder takes its name; of thousands of small files
            that takes long.
    """
    path = Path(path)
    temporary = _temporary(path)
    replaced = temporary.with_suffix(".old")
    sweep(path.parent, others=True, name=path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _hold_new(temporary, Path.mkdir)
    try:
        with naming(path, temporary):
            yield temporary
            if synchronise:  # before the name says that it is whole
                for written in (*temporary.rglob("*"), temporary):
                    _synchronise(written)
            if path.exists():
                if new:
                    raise FileExistsError(path)
                os.rename(path, replaced)  # not removed in place: a folder with a part of its files must never be seen
            os.rename(temporary, path)
            _synchronise(path.parent)
    finally:
        if replaced.exists() and not path.exists():
            os.rename(replaced, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
        os.close(handle)


def being_made(path: str | Path) -> Path | None:
    """The temporary folder or file that another process is turning into `path`; None if there is none."""
    path = Path(path)
    sweep(path.parent, others=True, name=path.name)
    return next((p for p in path.parent.glob(".*.tmp") if (m := LEFT.fullmatch(p.name)) and m[1] == path.name), None)


def _hold_new(path: Path, make: Callable[[Path], None]) -> int:
    """Make a file or a folder that `sweep` leaves to this process until the handle returned is closed."""
    while True:
        make(path)
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY)
            with suppress(OSError):  # where there are no locks, nobody sweeps
                lock_descriptor(handle)
            if path.exists():  # not swept away before it was held
                return handle
            os.close(handle)


def _synchronise(path: Path) -> None:
    """Write a file or a folder through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # of which not every file system can
            raise
    finally:
        os.close(handle)


def remove_folder(path: Path) -> None:
    """Remove a folder that must never be seen with a part of its files."""
    temporary = _temporary(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path, others: bool = False, name: str | None = None) -> None:
    """Clear away what killed processes left half written in a folder, and give back what they were about to replace.

    Args:
        others: whether other processes may be at work there; what they hold is left to them then.
        name: clear away only what was to become the file or folder of this name.
    """
    for left in folder.glob(".*.*"):
        named = LEFT.fullmatch(left.name)
        if not named or name not in (None, named[1]) or not (left.is_dir() or left.is_file()):
            continue
        with _free(left) as free:
            if others and not free:
                continue
            if named[2] == "old" and not (whole := left.with_name(named[1])).exists():
                os.rename(left, whole)
            elif left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


@contextmanager
def _free(path: Path) -> Iterator[bool]:
    """Hold a file or a folder for the block, and yield whether that was possible: nobody fills it any more."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # swept by another process, or not ours to read
        yield False
        return
    try:
        try:
            free = lock_descriptor(handle, blocking=False)
        except OSError:  # the file system has no locks
            free = False
        yield free
    finally:
        os.close(handle)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder for this process while the block runs; the system frees it when the process ends, however it ends.

    The lock is on its file `.lock`, whose text says who took it last, and counts for nothing by itself. It stays, but
    where the block ends in bad input and it was not there before.

    Raises:
        InputError: another process holds it.
    """
    file = folder / ".lock"
    new = not file.exists()
    lock = FileLock(file, blocking=False, thread_local=False, fallback_to_soft=False)  # a child does not inherit it
    with naming(file):
        try:
            lock.acquire()
        except Timeout:
            holder = read_bytes(file, 1 << 10).decode("utf-8", "replace").strip() or "another process"
            raise InputError(f"{folder}: {holder} is at work in it; wait for its end, or stop it") from None
        except OSError as error:
            log.warning("%s: no lock can be had here (%s), so see to it that no other process works there",
                        folder, error.strerror)  # fmt: skip
        try:
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
            yield
        except InputError:
            if new:
                file.unlink(missing_ok=True)
            raise
        finally:
            lock.release()
