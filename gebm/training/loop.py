"""The training loop: joint training, then the refinement of the energy."""

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from gebm.data import to_uint8
from gebm.files import atomic_write
from gebm.metrics.partition import base_energies, energies, evaluate_kale
from gebm.pictures import save_grid
from gebm.training.checkpoint import save_checkpoint
from gebm.training.schedules import energy_steps, remaining
from gebm.training.trainer import Trainer

messages = logging.getLogger("gebm")

__all__ = ["DivergenceError", "Interrupted", "Schedule", "train"]


class DivergenceError(FloatingPointError):
    """A loss was not finite."""


class Interrupted(Exception):
    """A signal stopped the run, which was saved and can be resumed."""

    def __init__(self, signum: int, checkpoint: Path | None):
        super().__init__(signum)
        self.signum = signum
        self.checkpoint = checkpoint


@dataclass(frozen=True)
class Schedule:
    """How long and how often.

    train_mode: 'both', 'energy' (refinement only) or 'base' (base steps only); base_steps: of the joint stage;
    n_iter_d, n_iter_d_init: energy steps before a base step, ordinarily and at every 500th; refine_steps: energy steps
    with the base frozen; refine_kale: held-out KALE that ends them early (0: none); log_every, checkpoint_every,
    evaluate_every: in base steps, and in energy steps while refining.
    """

    train_mode: str = "both"
    base_steps: int = 150_000
    n_iter_d: int = 5
    n_iter_d_init: int = 100
    refine_steps: int = 15_000
    refine_kale: float = 0.0
    log_every: int = 100
    checkpoint_every: int = 1000
    evaluate_every: int = 2000


def train(
    trainer: Trainer,
    schedule: Schedule,
    run: Path,
    *,
    config: str = "",
    held_out: Tensor | None = None,
    save: bool = True,
    on_evaluate: Callable[[Trainer], dict[str, float]] | None = None,
) -> None:
    """Train from where the trainer's counters stand to the end of the schedule.

    Writes into the existing folder `run`: `stats.jsonl`, `tensorboard/`, `grids/` of 64 fixed latents, `checkpoints/`.

    Arguments:
        trainer: the model, its batches and its optimisers.
        schedule: the numbers of steps.
        run: the run's folder.
        config: resolved configuration, stored in every checkpoint.
        held_out: data (N, ...) in [-1, 1] on the model's device, for the KALE that ends the refinement.
        save: write checkpoints.
        on_evaluate: called every `evaluate_every` steps; what it returns goes into the log.

    Raises:
        DivergenceError: a loss was not finite; the message names the step and the last good checkpoint.
        Interrupted: SIGINT or SIGTERM came; the state was saved first.
    """
    counters = trainer.counters
    log = _Log(run, trainer)
    last_saved: Path | None = None

    def checkpoint() -> None:
        nonlocal last_saved
        log.raise_if_diverged(last_saved)
        if save:
            last_saved = save_checkpoint(run, trainer, config)

    with _signals() as received, log:

        def after_step(step: int) -> None:
            if step % schedule.log_every == 0:
                log.raise_if_diverged(last_saved)
                log.write()
            if on_evaluate is not None and step % schedule.evaluate_every == 0:
                log.add(on_evaluate(trainer))
            if step % schedule.checkpoint_every == 0:
                log.grid()
                checkpoint()

        def stop_if_asked() -> None:
            if received:
                checkpoint()
                raise Interrupted(received[0], last_saved)

        if counters.stage == "joint" and schedule.train_mode != "energy":
            log.stage("joint", counters.g_step, schedule.base_steps)
            while counters.g_step < schedule.base_steps:
                wanted = energy_steps(counters.g_step, schedule.n_iter_d, schedule.n_iter_d_init)
                while schedule.train_mode == "both" and counters.pending < wanted:
                    log.collect(trainer.energy_step())
                    counters.pending += 1
                    stop_if_asked()
                log.collect(trainer.base_step())
                log.advance()
                after_step(counters.g_step)
                stop_if_asked()
            log.grid()
            checkpoint()

        if schedule.train_mode != "base" and schedule.refine_steps:
            if counters.stage == "joint":
                trainer.start_refinement()
            log.stage("refine", counters.refine_step, schedule.refine_steps)
            reached = False
            while counters.refine_step < schedule.refine_steps and not reached:
                trainer.scale_energy_lr(remaining(counters.refine_step, schedule.refine_steps))
                log.collect(trainer.energy_step())
                counters.refine_step += 1
                log.advance()
                after_step(counters.refine_step)
                if schedule.refine_kale and held_out is not None and counters.refine_step % schedule.log_every == 0:
                    reached = _held_out_kale(trainer, held_out) >= schedule.refine_kale
                stop_if_asked()
            checkpoint()


def _held_out_kale(trainer: Trainer, held_out: Tensor) -> float:
    """Donsker-Varadhan KALE on held-out data; latents of its own, so that looking does not change the training."""
    model = trainer.model
    generator = torch.Generator(model.log_partition.device).manual_seed(trainer.counters.e_step)
    fake = base_energies(model, 2000, generator)
    return evaluate_kale(energies(model.energy, held_out), fake, float(model.log_partition)).donsker_varadhan


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one acts at once."""
    received: list[int] = []

    def handler(signum: int, frame: object) -> None:
        received.append(signum)
        for name, old in before.items():
            signal.signal(name, old)

    before = {name: signal.signal(name, handler) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for name, old in before.items():
            signal.signal(name, old)


class _Log:
    """Means of the statistics between two lines, to stats.jsonl, TensorBoard and the progress bar."""

    def __init__(self, run: Path, trainer: Trainer):
        self.run, self.trainer = run, trainer
        self.file = run / "stats.jsonl"
        (run / "grids").mkdir(exist_ok=True)
        like = trainer.model.log_partition
        generator = torch.Generator(like.device).manual_seed(0)
        self.latents = trainer.model.prior.sample(64, generator, like=like.detach())
        self.sums: dict[str, tuple[Tensor, int]] = {}
        self.first_bad = torch.full((), -1, device=like.device)
        self.bar: tqdm | None = None
        self.started_s, self.started_images = time.monotonic(), trainer.counters.images

    def __enter__(self) -> "_Log":
        self._drop_rows_ahead()
        self.board = SummaryWriter(str(self.run / "tensorboard"), purge_step=self.trainer.counters.e_step + 1)
        self.lines = open(self.file, "a", encoding="utf-8")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()
        self.lines.close()
        self.board.close()

    def stage(self, name: str, done: int, total: int) -> None:
        if self.bar is not None:
            self.bar.close()
        unit = " base steps" if name == "joint" else " energy steps"
        # On a terminal a bar; in a file or pipe one line at every `log_every` (disable=None).
        self.bar = tqdm(total=total, initial=done, desc=name, unit=unit, dynamic_ncols=True, disable=None)
        self.total = total

    def advance(self) -> None:
        self.bar.update()

    def collect(self, stats: dict[str, Tensor]) -> None:
        """Take a step's statistics, without waiting for the device."""
        for name, value in stats.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
            if name.endswith("loss"):
                step = self.trainer.counters.e_step
                self.first_bad = torch.where((self.first_bad < 0) & ~torch.isfinite(value), step, self.first_bad)

    def write(self) -> None:
        """Write one line of the means since the last one."""
        elapsed_s = time.monotonic() - self.started_s
        means = {name: float(total / count) for name, (total, count) in self.sums.items()}
        self.sums.clear()
        rate = (self.trainer.counters.images - self.started_images) / max(elapsed_s, 1e-9)
        self.add({**means, "images_per_s": round(rate, 1), "elapsed_s": round(elapsed_s, 3)})
        shown = {k: f"{means[k]:.3g}" for k in ("kale", "c", "base_loss") if k in means}
        self.bar.set_postfix(shown)
        if self.bar.disable:
            counters = self.trainer.counters
            step = counters.g_step if counters.stage == "joint" else counters.refine_step
            values = "  ".join(f"{k} {v}" for k, v in shown.items())
            messages.info(f"{counters.stage} {step}/{self.total}  {values}  {rate:.0f} images/s  {elapsed_s:.0f} s")

    def add(self, values: dict[str, float]) -> None:
        """Write values at the present step."""
        counters = asdict(self.trainer.counters)
        self.lines.write(json.dumps({**counters, **values}) + "\n")
        self.lines.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{counters['stage']}/{name}", value, counters["e_step"] or counters["g_step"])

    def grid(self) -> None:
        """Write the base's images of the 64 fixed latents."""
        base, counters = self.trainer.sampled_base, self.trainer.counters
        if counters.stage == "refine" or self.latents is None:
            return
        training = base.training
        base.eval()
        with torch.no_grad():
            images = to_uint8(base(self.latents)).cpu().numpy()
        base.train(training)
        save_grid(self.run / "grids" / f"joint-{counters.g_step:08d}.png", images)
        self.board.add_image("base", images.transpose(0, 2, 3, 1)[0], counters.g_step, dataformats="HWC")

    def raise_if_diverged(self, last_good: Path | None) -> None:
        if (step := int(self.first_bad)) >= 0:
            kept = f"the last good checkpoint is {last_good}" if last_good else "no checkpoint was written before"
            raise DivergenceError(f"loss not finite at energy step {step}: lower --lr or raise --penalty_lambda; {kept}")

    def _drop_rows_ahead(self) -> None:
        """Forget lines written after the checkpoint that the run goes on from."""
        if not self.file.exists():
            return
        step = self.trainer.counters.e_step, self.trainer.counters.g_step
        rows = [line for line in self.file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [row for row in rows if ((r := json.loads(row))["e_step"], r["g_step"]) <= step]
        with atomic_write(self.file) as temporary:
            temporary.write_text("".join(row + "\n" for row in kept), encoding="utf-8")
