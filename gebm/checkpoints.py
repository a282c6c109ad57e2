"""Which checkpoints a run's folder has, and which of them are whole."""

import logging
import re
from pathlib import Path

from gebm.errors import InputError
from gebm.manifest import MANIFEST, damage
from gebm.weights import metadata_of

__all__ = ["checkpoints", "newest_checkpoint", "order"]

NAME = re.compile(r"(base|joint|refine)-(\d+)")  # the alphabet puts the stages in their order

FILES = ("base.safetensors", "energy.safetensors", "training.safetensors")

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

    Raises:
        InputError: it has some, and all are damaged.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(run)):
        if not (found := damage(path) or _unreadable(path)):
            if damaged:
                messages.warning("%s: taking %s instead", "; ".join(damaged), path)
            return path
        damaged.append(found)
    if damaged:
        raise InputError(f"{run}: none of its checkpoints is whole ({'; '.join(damaged)}); restore one, or train anew")
    return None
