"""The image files below a folder: links are followed, hidden folders are not, and all that is left out is counted."""

import logging
import os
from collections import Counter
from functools import cache
from pathlib import Path, PurePath
from typing import NamedTuple

from gebm.errors import InputError

__all__ = ["SUFFIXES", "Found", "image_files", "is_hidden", "say_left_out", "say_once"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff")
HIDDEN = ("__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "system volume information")
ONE = {"image ": "images ", "link that leads": "links that lead", "name that is no file": "names that are no files",
       "file ": "files ", "folder ": "folders "}  # fmt: skip
MOST_NAMED = 8  # kinds of what is left out that a line names

log = logging.getLogger("gebm")


class Found(NamedTuple):
    """The image files below a folder, sorted, and what was left out: how many of each kind."""

    files: list[Path]
    left_out: Counter[str]


def is_hidden(path: str | PurePath) -> bool:
    """Whether a path within a folder or an archive is, or lies in, a hidden one: `.ipynb_checkpoints`, `.thumbnails`,
    or what file servers and systems make for themselves, as `@eaDir` and `__MACOSX`."""
    return any(part.startswith(".") or part.lower() in HIDDEN for part in PurePath(path).parts)


def image_files(folder: Path, deep: bool = True) -> Found:
    """The image files below a folder, or directly in it, by their suffixes.

    A link to a folder is followed as if the folder were there; its images have the path through the link.

    Raises:
        InputError: a folder cannot be read, or a link leads to a folder that it lies in.
    """
    found = Found([], Counter())
    _walk(folder, (Path(os.path.realpath(folder)),), deep, found)
    return Found(sorted(found.files), found.left_out)


def say_left_out(where: str | Path, left_out: Counter[str]) -> None:
    """Count in one line, said once, what was left out of a data set."""
    if left_out:
        named, rest = left_out.most_common(MOST_NAMED), left_out.most_common()[MOST_NAMED:]
        parts = [f"{count:,} {_agreeing(kind, count)}" for kind, count in named]
        parts += [f"{sum(count for _, count in rest):,} others"] if rest else []
        say_once(f"{where}: left out {', '.join(parts)}", os.path.abspath(where))


@cache
def say_once(line: str, place: str = "") -> None:
    """Warn of something in a data set, once in a process for each place: commands load their data several times."""
    log.warning(line)


def _agreeing(kind: str, count: int) -> str:
    """A kind of things, named in the plural, for a count of them."""
    for one, many in ONE.items() if count == 1 else ():
        kind = kind.replace(many, one, 1)
    return kind


def _walk(folder: Path, within: tuple[Path, ...], deep: bool, found: Found) -> None:
    """Look through a folder; `within` are the real paths of the folders it was reached through, its own the last."""
    path = folder
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = folder / entry.name
                if is_hidden(entry.name):
                    found.left_out.update(_hidden(entry))
                elif entry.is_dir() and deep:
                    real = Path(os.path.realpath(path)) if entry.is_symlink() else within[-1] / entry.name
                    if any(real in (passed, *passed.parents) for passed in within):
                        raise InputError(f"{path}: a link to a folder that it lies in; remove the link")
                    _walk(path, (*within, real), deep, found)
                elif why := _unusable(entry):
                    found.left_out[why] += 1
                else:
                    found.files.append(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make it readable, or remove it") from error


def _unusable(entry: os.DirEntry[str]) -> str:
    """Why an entry of a folder is left out; empty if it is an image file."""
    suffix = PurePath(entry.name).suffix.lower()
    if entry.is_dir():
        return "folders in it"
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "links that lead nowhere"
    if not entry.is_file():
        return f"{suffix} names that are no files".lstrip()
    return "" if suffix in SUFFIXES else suffix or "files without a suffix"


def _hidden(entry: os.DirEntry[str]) -> Counter[str]:
    """The images of a hidden entry of a folder."""
    if not entry.is_dir(follow_symlinks=False):
        return Counter(["images in hidden files"] if PurePath(entry.name).suffix.lower() in SUFFIXES else [])
    names = (name for _, _, files in os.walk(entry.path) for name in files)
    count = sum(PurePath(name).suffix.lower() in SUFFIXES for name in names)
    return Counter({f"images in {entry.name}": count} if count else {})
