"""What every command settles before it works: device, log, precision, schedule."""

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TextIO

import torch
from tqdm import tqdm

from gebm import parallel
from gebm.commands.tables import of_table
from gebm.config import Config
from gebm.errors import InputError
from gebm.text import print_nowhere, printable
from gebm.training.log import QUIET_S
from gebm.training.loop import Schedule

__all__ = ["choose_device", "dtype_of", "interrupt_on_sigterm", "join", "log", "progress", "schedule_of", "start_log"]

log = logging.getLogger("gebm")


def dtype_of(config: Config) -> torch.dtype:
    """Of weights and energies: `--dtype 64` and `--precision 64` say the same."""
    return torch.float64 if 64 in (config.dtype, config.precision) else torch.float32


def choose_device(config: Config, given: frozenset[str]) -> torch.device:
    """The device of `--device`: a GPU's number, -1 any GPU, -2 the CPU. The default falls back to the CPU, saying so.

    Of several processes on a machine each has the GPU of its number there.

    Raises:
        InputError: a GPU was asked for that is not there.
    """
    count = torch.cuda.device_count()
    if config.device == -2:
        if parallel.over_gpus():  # the run that goes on was on the CPU
            raise InputError("--device -2: several processes settle it when they meet; give it on the command line")
        return torch.device("cpu")
    number = max(config.device, 0) if parallel.launched() == 1 else parallel.local_rank()
    if parallel.launched() > 1 and count:
        if "device" in given and config.device >= 0:
            raise InputError(f"--device {config.device}: each of several processes has a GPU of its own; give -1 or -2")
        if number >= count:
            raise InputError(f"{number + 1} processes or more on this machine and {count} GPUs: start one a GPU")
    if number < count:
        # Energies are float32, and TF32 is not.
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # torch: untyped
        return torch.device("cuda", number)
    if "device" in given:
        there = f"this machine has GPUs 0 to {count - 1}" if count else "this machine has no GPU"
        raise InputError(f"--device {config.device}: {there}; give --device -2 for the CPU")
    log.info("device: the CPU (no GPU here; --device -2 says so without this line)")
    return torch.device("cpu")


def join(config: Config) -> None:
    """Meet the other processes, where a launcher has started several."""
    parallel.join(cpu=config.device == -2 or not torch.cuda.is_available())


def schedule_of(config: Config, rows: int = 0) -> Schedule:
    """The numbers of steps, with the refinement's default of a tenth of the base steps filled in.

    Tables, of `rows` training rows, count passes: a joint stage is as many energy steps as its passes take.
    """
    if of_table(config):
        steps = partial(_steps, rows, config.b_size)
        each = 1 if config.train_mode == "base" else config.n_iter_d
        return Schedule(
            train_mode=config.train_mode,
            ml_steps=steps(config.ml_epochs) if config.train_mode != "energy" else 0,
            ml_lr=config.ml_lr or None,
            base_steps=math.ceil(steps(config.total_epochs) / each),
            n_iter_d=config.n_iter_d,
            n_iter_d_init=config.n_iter_d_init,
            refine_steps=steps(config.refine_epochs),
            log_every=config.disp_freq,
            checkpoint_every=config.checkpoint_freq,
        )
    return Schedule(
        train_mode=config.train_mode,
        base_steps=config.total_gen_iter,
        n_iter_d=config.n_iter_d,
        n_iter_d_init=config.n_iter_d_init,
        refine_steps=config.total_gen_iter // 10 if config.refine_iter == -1 else config.refine_iter,
        refine_kale=config.refine_kale,
        log_every=config.disp_freq,
        checkpoint_every=config.checkpoint_freq,
    )


def _steps(rows: int, batch: int, epochs: int) -> int:
    return math.ceil(epochs * rows / batch)


class _Printable(logging.Formatter):
    """Names in files are other people's; none of them reaches the terminal as a command to it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Lines(logging.StreamHandler[TextIO]):
    """Work goes on when nobody reads its lines any more, as under `| head`, or they cannot be written."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(error := sys.exc_info()[1], OSError):
            print_nowhere(error)
        else:
            super().handleError(record)


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], object]]:
    """A function to tell of work done: a bar on a terminal, a line now and then elsewhere; of the first process."""
    began_s = shown_s = time.monotonic()
    disable = None if parallel.is_first() else True
    with tqdm(total=total, unit=f" {what}", unit_scale=True, dynamic_ncols=True, disable=disable) as bar:
        done = 0

        def update(count: int) -> None:
            nonlocal done, shown_s
            done += count
            bar.update(count)
            now_s = time.monotonic()
            if bar.disable and disable is None and now_s - shown_s > QUIET_S:
                shown_s, took_s = now_s, now_s - began_s
                left_s = took_s * (total - done) / max(done, 1)
                log.info("%.0f %% of %s, %.0f s; about %.0f s to go", 100 * done / total, what, took_s, left_s)

        yield update


def interrupt_on_sigterm() -> None:
    """SIGTERM ends the command as Ctrl-C does, clearing away what was begun; the signal is the exception's argument."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt(signum)

    signal.signal(signal.SIGTERM, stop)


def start_log() -> None:
    """Print the messages of the package as they are, and no longer into the file of an earlier run.

    Of several processes only the first prints.
    """
    for old in log.handlers[:]:
        log.removeHandler(old)
        old.close()
    first = parallel.launched() == 1 or os.environ["RANK"] == "0"
    handler: logging.Handler = _Lines(sys.stdout) if first else logging.NullHandler()
    handler.setFormatter(_Printable("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
