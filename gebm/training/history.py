"""What a training said on its way."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gebm.errors import InputError
from gebm.text import hint

__all__ = ["History"]


@dataclass(eq=False)
class History:
    """The lines of a training's log, one every `log_every` steps, and where its files are.

    Attributes:
        rows: the lines in the order of time. Each has the counters (`stage`, `g_step` base steps, `e_step` energy
            steps, `refine_step`) and means since the line before: `kale` with c, `kale_dv` with the batch's own
            log-partition, `relative_ess` of exp(-E), `c`, the losses, and what callbacks returned.
        out: the folder of the run; None: there is none.

    Example:

        >>> history = History([{"stage": "joint", "g_step": step, "kale": step / 1000} for step in (500, 700)])
        >>> history["kale"]
        [0.5, 0.7]
        >>> history
        History(2 lines, joint 700, kale 0.7)
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    out: Path | None = None

    def __getitem__(self, name: str) -> list[Any]:
        """The values of one name, of the lines that have it; `rows[-1]` is the last line."""
        if not isinstance(name, str):
            raise InputError(f"history: is asked for values by name, as history['kale'], not by {name!r:.80}; see rows")
        found = [row[name] for row in self.rows if name in row]
        if not found and name not in (names := self._names()):
            raise InputError(f"history: holds no {name!r}{hint(name, names)}; it has {', '.join(names) or 'no lines'}")
        return found

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __repr__(self) -> str:
        if not self.rows:
            return "History(no lines)"
        last = self.rows[-1]
        step = last.get("refine_step" if last.get("stage") == "refine" else "g_step", 0)
        shown = [f"{name} {last[name]:.4g}" for name in ("kale", "relative_ess") if name in last]
        parts = [f"{len(self.rows)} lines", f"{last.get('stage')} {step}", *shown]
        return f"History({', '.join(parts)})"

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns by name; None where a line has no such value."""
        return {name: [row.get(name) for row in self.rows] for name in self._names()}

    def to_frame(self) -> Any:
        """A pandas DataFrame, a row a line; InputError where pandas is not installed."""
        try:
            import pandas  # type: ignore[import-untyped,unused-ignore]  # where its stubs are not installed
        except ImportError:
            raise InputError("to_frame: needs pandas: pip install pandas; to_dict() does without") from None
        return pandas.DataFrame(self.rows)

    def plot(self, *names: str) -> Any:
        """Curves of some values against energy steps, as a matplotlib figure; by default KALE in both forms."""
        from matplotlib.figure import Figure  # here: a second to import

        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        if not names:
            names = tuple(name for name in ("kale", "kale_dv", "energy_loss") if name in self._names())
        for name in names:
            self[name]
            points = [(row["e_step"], row[name]) for row in self.rows if name in row]
            axes.plot(*zip(*points), label=name)
        axes.set_xlabel("energy steps")
        axes.legend(frameon=False)
        return figure

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))
