"""The lines of a log that a chart can show: as many as it has room for, whatever the length of the log."""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["thinned"]

MOST = 1000  # lines of one kind in a stage, at least half of which are kept: a chart is 331 pixels wide
KINDS = 64  # that are told apart


def thinned(rows: Iterable[Mapping[str, Any]], most: int = MOST) -> list[Mapping[str, Any]]:
    """Every n-th line of each stage and each kind, with n so that at most `most` stay, and the last one of each.

    Lines that have the same keys are of a kind, so that a distance that is measured now and then loses nothing to the
    many lines between.

    Example:

        >>> rows = [{"stage": "joint", "g_step": g, "kale": 0.1} for g in range(10_000)]
        >>> rows[5000] |= {"FD_base": 3.0}
        >>> kept = thinned(rows)
        >>> len(kept), kept[0]["g_step"], kept[-1]["g_step"], [r["FD_base"] for r in kept if "FD_base" in r]
        (627, 0, 9999, [3.0])
    """
    kinds: dict[tuple[Any, tuple[str, ...]], _Kind] = {}
    for place, row in enumerate(rows):
        kind: tuple[Any, tuple[str, ...]] = row.get("stage"), tuple(row)
        if kind not in kinds and len(kinds) >= KINDS:
            kind = row.get("stage"), ()
        kinds.setdefault(kind, _Kind()).take(place, row, most)
    found = {place: row for kind in kinds.values() for place, row in [*kind.kept, *kind.last]}
    return [found[place] for place in sorted(found)]


class _Kind:
    """Lines of one kind, and every how many of them are kept."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, Mapping[str, Any]]] = []
        self.last: list[tuple[int, Mapping[str, Any]]] = []
        self.seen, self.every = 0, 1

    def take(self, place: int, row: Mapping[str, Any], most: int) -> None:
        self.last = [(place, row)]
        if self.seen % self.every == 0:
            if len(self.kept) == most:
                self.kept, self.every = self.kept[::2], 2 * self.every
            if self.seen % self.every == 0:
                self.kept.append((place, row))
        self.seen += 1
