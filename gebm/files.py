"""Files that are either whole or not there."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gebm.errors import InputError

__all__ = ["atomic_folder", "atomic_write", "check_writable"]


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it takes the name `path` when the block ends well."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path, flag: str) -> None:
    """Raise InputError, naming the flag to change, unless `path` exists or can be made, and can be written."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written ({existing} is not a writable folder); give another {flag}")


@contextmanager
def atomic_folder(path: str | Path, new: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill, which takes the name `path` when the block ends well.

    It replaces an older folder of that name; if `new`, it raises FileExistsError instead.
    """
    path = Path(path)
    temporary, replaced = _temporary(path), _temporary(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):  # on the disk before the name says that it is whole
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            if new:
                raise FileExistsError(path)
            os.rename(path, replaced)  # not removed in place: a folder with a part of its files must never be seen
        os.rename(temporary, path)
    finally:
        if replaced.exists() and not path.exists():
            os.rename(replaced, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
