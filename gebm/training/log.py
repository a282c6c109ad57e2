"""What a training run says: stats.jsonl, TensorBoard, the progress bar, sample grids."""

import json
import logging
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from gebm.bounded import open_regular, parse_json
from gebm.data.images import pixels
from gebm.files import atomic_write, naming
from gebm.networks.common import ENERGY_FLOOR, evaluating
from gebm.pictures import grid, save_grid
from gebm.training.checkpoint import Measure
from gebm.training.guard import DivergenceError
from gebm.training.trainer import Trainer

__all__ = ["SilentLog", "TrainingLog"]

QUIET_S = 20.0  # without a word, at most
BELOW_ZERO = 5  # lines in a row with KALE below zero, after which that is said

messages = logging.getLogger("gebm")


class TrainingLog:
    """Means of the statistics between two lines, to stats.jsonl, TensorBoard and the progress bar.

    Arguments:
        run: the folder of the files; None: there are none.
        trainer: what is told of.
        rows: takes each line too, in the order of time.
        progress: whether there is a bar; None: on a terminal.
    """

    def __init__(
        self,
        run: Path | None,
        trainer: Trainer,
        rows: list[dict[str, Any]] | None = None,
        progress: bool | None = None,
    ):
        self.run, self.trainer, self.rows = run, trainer, rows
        self.hidden = None if progress is None else not progress
        self.levels = trainer.batches.levels
        like = trainer.model.log_partition
        generator = torch.Generator(like.device).manual_seed(0)
        self.latents = trainer.model.prior.sample(64, generator, like=like.detach())
        self.sums: dict[str, tuple[Tensor, int]] = {}
        self.latest: dict[str, float] = {}  # values of a moment, of which a mean would say little
        self.below_zero = 0
        self.bar: tqdm[NoReturn] | None = None
        self.started_s, self.started_images = time.monotonic(), trainer.counters.images
        self.shown_s = self.started_s

    def __enter__(self) -> "TrainingLog":
        self.hook, threading.excepthook = threading.excepthook, self._of_thread
        if self.run is not None:
            self._drop_rows_ahead(self.run / "stats.jsonl")
            if self.levels:
                (self.run / "grids").mkdir(exist_ok=True)
            self.board = SummaryWriter(str(self.run / "tensorboard"), purge_step=self._step() + 1)
            self.lines = open(self.run / "stats.jsonl", "a", encoding="utf-8")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()
        try:
            self._close(exception[0] is not None)
        finally:
            threading.excepthook = self.hook

    def _close(self, failed: bool) -> None:
        if self.run is None:
            return
        for file, path in ((self.lines, self.lines.name), (self.board, self.board.log_dir)):
            try:
                with naming(path):
                    file.close()
            except OSError:
                if not failed:  # else it would hide what went wrong before
                    raise

    def _of_thread(self, arguments: threading.ExceptHookArgs) -> None:
        """Say nothing of a full disk that TensorBoard's thread met: it raises it again where it is next written to."""
        if not isinstance(arguments.exc_value, OSError):
            self.hook(arguments)

    def stage(self, name: str, done: int, total: int) -> None:
        if self.bar is not None:
            self.bar.close()
        unit = " energy steps" if name == "refine" else " base steps"
        # On a terminal a bar; in a file or pipe one line at every `log_every` (disable=None).
        self.bar = tqdm(total=total, initial=done, desc=name, unit=unit, dynamic_ncols=True, disable=self.hidden)
        self.total = total

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def collect(self, stats: dict[str, Tensor]) -> None:
        """Take a step's statistics, without waiting for the device."""
        for name, value in stats.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
        if time.monotonic() - self.shown_s > QUIET_S:  # base steps with many energy steps take their time
            self.show({"energy step": f"{self.trainer.counters.e_step:,}"})

    def show(self, values: dict[str, str]) -> None:
        """Show values beside the progress bar or, where there is none, on a line."""
        assert self.bar is not None, "no stage has begun"
        self.shown_s = time.monotonic()
        self.bar.set_postfix(values)
        if self.bar.disable:
            shown = "  ".join(f"{name} {value}" for name, value in values.items())
            messages.info(f"{self._where()}  {shown}  {self.shown_s - self.started_s:.0f} s")

    def write(self) -> None:
        """Write one line of the means since the last one, if there is anything new."""
        if not self.sums and not self.latest:
            return
        elapsed_s = time.monotonic() - self.started_s
        means = {name: float(total / count) for name, (total, count) in self.sums.items()} | self.latest
        self.sums.clear()
        self.latest.clear()
        if all(means.get(name) == ENERGY_FLOOR for name in ("energy_real", "energy_fake")):
            raise DivergenceError(
                f"every energy lies on the floor {ENERGY_FLOOR:g}, where it has no gradient, since energy step "
                f"{self.trainer.counters.e_step} or before",
                "lower its learning rate, raise the weight of the penalty, or build it without a floor (trunc)",
            )
        rate = (self.trainer.counters.images - self.started_images) / max(elapsed_s, 1e-9)
        kind = "images" if self.trainer.batches.data.ndim == 4 else "rows"
        self.add({**means, f"{kind}_per_s": round(rate, 1), "elapsed_s": round(elapsed_s, 3)})
        self._watch_kale(means.get("kale"))
        names = {"kale": "kale", "kale_dv": "(dv)", "relative_ess": "ess", "c": "c", "base_loss": "base_loss"}
        shown = {name: f"{means[key]:.3g}" for key, name in names.items() if key in means}
        shown |= {k: f"{means[k]:.4f}" for k in ("valid_nll", "valid_nll_best") if k in means}
        self.show({**shown, f"{kind}/s": f"{rate:.0f}"})

    def _watch_kale(self, kale: float | None) -> None:
        """Warn once when KALE has stayed below zero, which an energy that says nothing at all would reach."""
        if kale is None or kale >= 0 or not self.trainer.objective.maximises_kale:
            self.below_zero = 0
            return
        self.below_zero += 1
        if self.below_zero == BELOW_ZERO:
            self.warn(
                f"KALE with c has been below zero for {BELOW_ZERO} lines: a flat energy would do better. Where the "
                "value in (dv) is far above it, the weights of base samples are too uneven for such batches: raise the "
                "weight of the penalty, the batch size or the base samples a batch, or lower the learning rate"
            )

    def fell_back(self, found: Measure, path: Path, best: Measure) -> None:
        """Say that the model is much worse than it was at an earlier checkpoint, which is kept."""
        self.warn(
            f"{found.name} is {found.value:.4g}, and was {best.value:.4g} at {path.name}: training has lost ground. "
            f"That checkpoint is kept, in {path}"
        )

    def warn(self, line: str) -> None:
        """Say a line that asks for the reader's attention."""
        messages.warning(f"{self._where()}  {line}")

    def say(self, values: dict[str, float]) -> None:
        """Print what was evaluated, above the progress bar."""
        line = f"{self._where()}  " + "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        assert self.bar is not None, "no stage has begun"
        if self.bar.disable:
            messages.info(line)
        else:
            self.bar.write(line)

    def _where(self) -> str:
        counters = self.trainer.counters
        return f"{counters.stage} {counters.stage_step}/{self.total}"

    def add(self, values: dict[str, float]) -> None:
        """Write values at the present step."""
        counters = asdict(self.trainer.counters)
        if self.rows is not None:
            self.rows.append({**counters, **values})
        if self.run is None:
            return
        with naming(self.lines.name):
            self.lines.write(json.dumps({**counters, **values}) + "\n")
            self.lines.flush()
        with naming(self.board.log_dir):
            for name, value in values.items():
                self.board.add_scalar(f"{counters['stage']}/{name}", value, self._step())

    def _step(self) -> int:
        """Where TensorBoard's curves stand."""
        counters = self.trainer.counters
        return counters.e_step or counters.g_step or counters.ml_step

    def grid(self) -> None:
        """Write the base's images of the 64 fixed latents, where the samples are images."""
        base, counters = self.trainer.sampled_base, self.trainer.counters
        if counters.stage == "refine" or self.levels is None or self.run is None:
            return
        with evaluating(base):
            images = pixels(base(self.latents), self.levels).cpu().numpy()
        save_grid(self.run / "grids" / f"joint-{counters.g_step:08d}.png", images)
        picture = np.asarray(grid(images).convert("RGB"))
        self.board.add_image("base", picture, counters.e_step or counters.g_step, dataformats="HWC")

    def _drop_rows_ahead(self, file: Path) -> None:
        """Forget lines written after the checkpoint that the run goes on from; `rows` takes those before."""
        if not file.exists():
            return
        counters = self.trainer.counters
        step = counters.ml_step, counters.e_step, counters.g_step
        with (
            atomic_write(file) as temporary,
            open_regular(file) as lines,
            open(temporary, "w", encoding="utf-8") as kept,
        ):
            if self.rows is not None:
                self.rows.clear()
            for line in lines:
                row = line.decode("utf-8", "replace")
                if (of_row := _step(row)) is not None and of_row <= step:
                    kept.write(row.rstrip("\n") + "\n")
                    if self.rows is not None:
                        self.rows.append(parse_json(row))


def _step(row: str) -> tuple[int, int, int] | None:
    """Where a line of stats.jsonl was written; None if it was cut off or damaged."""
    try:
        found = parse_json(row)
        step = found.get("ml_step", 0), found["e_step"], found["g_step"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return step if all(type(count) is int for count in step) else None


class SilentLog(TrainingLog):
    """That of a process that writes nothing; it still finds a flat energy, as all have to end at the same step."""

    def __enter__(self) -> "SilentLog":
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is open."""

    def stage(self, name: str, done: int, total: int) -> None:
        self.bar, self.total = tqdm(disable=True), total

    def show(self, values: dict[str, str]) -> None:
        """The first process shows it."""

    def say(self, values: dict[str, float]) -> None:
        """The first process says it."""

    def warn(self, line: str) -> None:
        """The first process says it."""

    def add(self, values: dict[str, float]) -> None:
        """The first process writes it."""

    def grid(self) -> None:
        """The first process draws it."""
