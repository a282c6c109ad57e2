"""Which settings a run had from which checkpoint on, where it went on with others than it was begun with."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gebm.bounded import read_json
from gebm.checkpoints import NAME, order
from gebm.config import Config
from gebm.errors import InputError
from gebm.files import write_json
from gebm.flags import check_mapping

__all__ = ["HISTORY", "NOT_SETTINGS", "Change", "as_begun", "read_history", "record_changes"]

HISTORY = "history.json"
NOT_SETTINGS = frozenset({"mode", "resume", "log_dir", "log_name", "device", "slurm_id", "log_in_file"})


class Change(NamedTuple):
    """Settings of a run that are others from a checkpoint on: flag -> value before and after."""

    checkpoint: str
    was: dict[str, Any]
    now: dict[str, Any]


def read_history(run: Path) -> list[Change]:
    """The changes of a run's settings, the oldest first; none if it was never resumed with others.

    Raises:
        InputError: `history.json` is damaged.
    """
    file = run / HISTORY
    if not file.is_file():
        return []
    changes = read_json(file).get("changes")
    try:
        return [_checked(change, file) for change in changes]  # type: ignore[union-attr]  # told of just below
    except (TypeError, KeyError):
        raise InputError(f"{file}: not a history of settings; delete it to go on without") from None


def _checked(change: dict[str, Any], file: Path) -> Change:
    was, now = (check_mapping(Config, change[key], f"{file}: ") for key in ("was", "now"))
    if not NAME.fullmatch(change["checkpoint"]) or was.keys() != now.keys():
        raise KeyError
    return Change(change["checkpoint"], was, now)


def as_begun(config: Config, changes: Iterable[Change]) -> Config:
    """The configuration that a run had before its changes; `config` is the one after them."""
    for change in reversed(list(changes)):
        config = replace(config, **change.was)
    return config


def record_changes(run: Path, checkpoint: Path | None, stored: Config, config: Config) -> None:
    """Write down what a run changes that goes on from a checkpoint; of the course that it leaves nothing is kept.

    Arguments:
        checkpoint: None: the run begins anew, and nothing of it was made with other settings.
        stored: its configuration up to now.
        config: that from now on.
    """
    changes = read_history(run)
    kept = [c for c in changes if checkpoint is not None and order(Path(c.checkpoint)) < order(checkpoint)]
    before = as_begun(stored, changes[len(kept) :])
    others = [f for f in vars(config) if f not in NOT_SETTINGS and getattr(before, f) != getattr(config, f)]
    if checkpoint is not None and others:
        was, now = ({flag: getattr(values, flag) for flag in others} for values in (before, config))
        kept.append(Change(checkpoint.name, was, now))
    if kept != changes:
        write_json(run / HISTORY, {"changes": [change._asdict() for change in kept]})
