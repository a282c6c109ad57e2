"""Which checkpoints a run's folder has, and which of them are whole."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gebm.errors import InputError
from gebm.manifest import MANIFEST, damage
from gebm.weights import metadata_of

__all__ = ["checkpoints", "newest_checkpoint", "order", "read_newest", "settings_beside"]

NAME = re.compile(r"(base|joint|refine)-(\d+)")  # the alphabet puts the stages in their order

FILES = ("base.safetensors", "energy.safetensors", "training.safetensors")

TRIES = 3  # of reading a run that trains, each of which a newer checkpoint may spoil

T = TypeVar("T")

messages = logging.getLogger("gebm")


def checkpoints(run: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first by the steps that they count, whatever clocks say."""
    found = [p for p in Path(run).glob("checkpoints/*") if NAME.fullmatch(p.name)]
    return sorted((p for p in found if (p / "training.json").is_file() or (p / MANIFEST).is_file()), key=order)


def order(path: Path) -> tuple[str, int]:
    """Place of a checkpoint in its run: the stage and the step, as its name says."""
    stage, _, step = path.name.partition("-")
    return stage, int(step)


def _unreadable(path: Path) -> str:
    """What is wrong with the weights of a checkpoint that has no manifest, as far as their headers tell."""
    if (path / MANIFEST).is_file():
        return ""
    try:
        for name in FILES:
            metadata_of(path / name)
    except InputError as error:
        return str(error)
    messages.info("%s: without its %s, so its contents are not checked", path, MANIFEST)
    return ""


def newest_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint of a run that is whole, with a line about newer ones that are not; None if it has none.

    Where training removes one meanwhile, having written a newer one, it looks again.

    Raises:
        InputError: it has some, and all are damaged.
    """
    for _ in range(TRIES):
        damaged: list[str] = []
        for path in reversed(checkpoints(run)):
            if not (found := damage(path) or _unreadable(path)):
                if damaged:
                    messages.warning("%s: taking %s instead", "; ".join(damaged), path)
                return path
            if not path.exists():
                break
            damaged.append(found)
        else:
            break
    if damaged:
        raise InputError(f"{run}: none of its checkpoints is whole ({'; '.join(damaged)}); restore one, or train anew")
    return None


def read_newest(find: Callable[[], tuple[Path, ...]], read: Callable[..., T]) -> T:
    """What `read` makes of the paths that `find` finds; again where training replaced or removed one meanwhile.

    Example:

        >>> names = iter(["joint-00000001", "joint-00000002"])
        >>> def read(path):
        ...     if path.name == "joint-00000001":
        ...         raise FileNotFoundError(path)
        ...     return path.name
        >>> read_newest(lambda: (Path(next(names)),), read)
        'joint-00000002'
    """
    for _ in range(TRIES - 1):
        paths = find()
        before = [_identity(path) for path in paths]
        try:
            return read(*paths)
        except (InputError, OSError):
            if None not in before and before == [_identity(path) for path in paths]:
                raise
    return read(*find())


def settings_beside(folder: Path) -> Path:
    """The `config.yaml` of a checkpoint or a run; that of its run where training has removed the checkpoint since."""
    if not folder.exists() and NAME.fullmatch(folder.name):
        folder = folder.absolute().parent.parent
    return folder / "config.yaml"


def _identity(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
