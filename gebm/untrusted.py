"""Somebody else's run, behind `--from_untrusted`: what is part of it, and what it must not reach (docs/security.md)."""

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from itertools import chain
from pathlib import Path
from types import ModuleType

from gebm.errors import InputError

__all__ = ["check_plain", "data_path_beside", "lies_in", "run_of", "without_its_modules"]

MAX_FILES = 100_000  # of a folder that is looked through
KINDS = ("folder", "npz", "hub", "csv", "toy")  # what may stand before the colon of a data set that is no code
RC = "matplotlibrc"  # which matplotlib reads in the folder worked in, and which can name programs to run


def run_of(place: str | Path) -> Path:
    """The folder of the run that a run's, checkpoint's or weights file's path leads to, without links: all of it is as
    trusted as the part that was named."""
    found = Path(place).resolve()
    folder = found.parent if found.is_file() else found
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def lies_in(path: str | Path, folder: Path) -> bool:
    """Whether a path is the folder or lies in it, however the two are spelled."""
    real = Path(path).resolve()
    return any(_are_same(part, folder) for part in (real, *real.parents))


def _are_same(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:  # one of them is not there
        return first == second


def check_plain(place: str | Path) -> None:
    """Raise InputError unless a folder, or one file, is made of plain files and folders: no links, no devices."""
    below = (os.path.join(top, name) for top, folders, files in os.walk(place) for name in [*folders, *files])
    for number, path in enumerate(chain([str(Path(place))], below)):
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue  # what opens it says what is wrong
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            what = "a link" if stat.S_ISLNK(mode) else "no plain file"
            raise InputError(f"{path}: {what}; --from_untrusted takes plain files and folders alone")
        if number > MAX_FILES:
            raise InputError(f"{place}: more than {MAX_FILES:,} files, which no run has")


class _Named(MetaPathFinder):
    """Finds the modules of some names in the folder worked in, and no others."""

    def __init__(self, names: Iterable[str]):
        self.names = set(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [os.getcwd()]) if fullname in self.names else None


@contextmanager
def without_its_modules(place: str, named: Iterable[str] = ()) -> Iterator[None]:
    """Import nothing from somebody else's run, and from the folder worked in only what the user has named.

    Libraries look for optional packages on Python's path, and would run a file of that name which lies there.

    Arguments:
        place: the run; empty: there is none, and the user's own networks and data sets are found where they work.
        named: the dotted paths that the user has given, `package.module:name`; other texts are passed over.

    Raises:
        InputError: the run holds links or devices, or settings that a library would read by itself.
    """
    if not place:
        if "" not in sys.path:
            sys.path.append("")  # as under `python -m`; last, so that it hides nothing
        yield
        return
    run, before = run_of(place), sys.path[:]
    for folder in (Path(place), run):
        check_plain(folder)
    within = lies_in(".", run)
    if within and os.path.lexists(RC):
        raise InputError(f"{RC}: matplotlib would take its settings from it; remove it, or work in another folder")
    dotted = () if within else (name.partition(":")[0].partition(".")[0] for name in named if ":" in name)
    finder = _Named(module for module in dotted if module not in KINDS)
    sys.path[:] = [entry for entry in sys.path if entry and not lies_in(entry, run)]
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path[:] = before


def data_path_beside(place: str | Path, default: str) -> str:
    """The folder for data that the user has not named: `default`, but the user's own cache where that lies in somebody
    else's run, whose files must not pass for the user's data."""
    return str(Path.home() / ".cache" / "gebm") if lies_in(default, run_of(place)) else default
