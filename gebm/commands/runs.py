"""Folders of runs: new ones, and those that are there."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from pathlib import Path

import torch

from gebm import parallel
from gebm.bounded import MAX_CONFIG, read_bytes
from gebm.checkpoints import checkpoints
from gebm.commands.setup import log
from gebm.config import Config
from gebm.errors import InputError
from gebm.files import atomic_folder, atomic_write, being_made, check_writable, sweep
from gebm.model import Architecture

__all__ = ["check_new_run", "log_dir", "open_run", "resolve", "runs_of", "whole_run"]

DATASET = re.compile(rb"(?m)^[ ]*dataset[ ]*:[ ]*([a-z][a-z0-9-]*)[ ]*$")  # a name, which needs no quotes
SERIAL = ".serial"  # of a run among those of its folder: which was started or gone on with last, whatever clocks say
MAX_SERIAL = 20  # digits


def log_dir(config: Config) -> Path:
    return Path(config.log_dir or "runs")


def check_new_run(config: Config) -> Path:
    """The path of a new run's folder, which does not exist yet; writes nothing.

    Raises:
        InputError: it is there already, or its parent cannot be written.
    """
    if config.log_name.startswith(".") or set(config.log_name) & set("/\\"):
        raise InputError(f"--log_name {config.log_name}: must be a folder's name, no / or leading dot; see --log_dir")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    kind, _, rest = config.dataset.partition(":")
    label = f"{kind}-{Path(rest).name}" if rest else kind  # of a path its end
    label = "".join(c if c.isalnum() or c in "._-" else "-" for c in label).strip("-")
    path = log_dir(config) / (config.log_name or f"{label}-{config.mode}-{stamp}")
    if path.exists():
        raise _exists(path, config)
    check_writable(path, "--log_dir")
    return path


def _exists(path: Path, config: Config) -> InputError:
    resume = f", or --resume {path} to go on with it" if config.mode == "train" else ""
    return InputError(f"{path}: this run exists; give another --log_name{resume}")


def open_run(
    path: Path, config: Config, device: torch.device, architecture: Architecture, resume: bool = False
) -> Config:
    """Make the run's folder, write its `config.yaml` and start its log; returns the configuration as resolved."""
    resolved = resolve(path, config, device, architecture)
    if not parallel.is_first():
        return resolved
    if resume:
        for folder in (path, path / "checkpoints", path / "grids"):
            sweep(folder)
        for name, text in (("config.yaml", resolved.to_yaml()), (SERIAL, _next_serial(path))):
            with atomic_write(path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    else:
        sweep(path.parent, others=True)
        try:  # never without its configuration, wherever a kill comes
            with atomic_folder(path, new=True) as temporary:
                resolved.save(temporary / "config.yaml")
                (temporary / SERIAL).write_text(_next_serial(path))
        except FileExistsError:
            raise _exists(path, config) from None
    _start_log_file(path, config)
    return resolved


@contextmanager
def whole_run(path: Path, config: Config) -> Iterator[Path]:
    """Yield a folder to fill, with its `config.yaml` and its log, that becomes the run `path` when the block ends well.

    A kill leaves nothing of that name. Only the first of several processes has the folder.

    Raises:
        InputError: another process is making a run of that name, or has made it meanwhile.
    """
    if not parallel.is_first():
        yield path
        return
    sweep(path.parent, others=True)
    if other := being_made(path):
        raise InputError(
            f"{path}: another process is making this run; give another --log_name (or, if none is, remove {other})"
        )
    try:
        with atomic_folder(path, new=True, synchronise=False) as temporary:
            config.save(temporary / "config.yaml")
            (temporary / SERIAL).write_text(_next_serial(path))
            _start_log_file(temporary, config)
            yield temporary
    except FileExistsError as error:
        if error.args != (path,):
            raise
        raise _exists(path, config) from None


def resolve(path: Path, config: Config, device: torch.device, architecture: Architecture) -> Config:
    """The configuration with the device and the networks in use, so that it repeats the run `path` by itself."""
    return replace(
        config,
        g_model=architecture.base,
        d_model=architecture.energy,
        Z_dim=architecture.latent_dim,
        latent_noise=architecture.prior,
        width=architecture.width,
        num_blocks=architecture.blocks,
        bn=architecture.bn,
        no_trunc=not architecture.trunc,
        device=-2 if device.type == "cpu" else device.index,
        log_dir=str(path.parent),
        log_name=path.name,
        resume="",
        slurm_id=config.slurm_id or os.environ.get("SLURM_JOB_ID", ""),
    )


def _next_serial(path: Path) -> str:
    """The number of a run that is started, or gone on with, now."""
    return str(1 + max((_serial(file.parent) for file in path.parent.glob(f"*/{SERIAL}")), default=0))


def _start_log_file(folder: Path, config: Config) -> None:
    """Write the log into the run too, with `--log_in_file`."""
    if config.log_in_file:
        for old in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
            log.removeHandler(old)  # of the split before
            old.close()
        log.addHandler(_LogFile(folder / "log.txt", encoding="utf-8", errors="backslashreplace"))


class _LogFile(logging.FileHandler):
    """A log file that a full disk makes an error of the run, as any other, and no traceback beside it."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # what is being handled where this is called


def _serial(run: Path) -> int:
    try:
        return int(read_bytes(run / SERIAL, MAX_SERIAL))
    except (OSError, ValueError):
        return 0


def runs_of(config: Config, of_dataset: bool = True) -> Iterator[Path]:
    """Training runs under `--log_dir`, of the configured dataset unless any will do, the newest first.

    The newest is the one that was started, or gone on with, last. Of runs that do not tell, as copies of one, times of
    change decide. Configurations are read one after the other, as far as is asked for: parsing takes 10 ms each.
    """
    folders = [file.parent for file in log_dir(config).glob("*/config.yaml")]
    numbered = [(_serial(path), path) for path in folders if not path.name.startswith(".")]  # not what a kill left
    for _, tied in groupby(sorted(numbered, reverse=True), key=lambda run: run[0]):
        paths = [path for _, path in tied]
        for path in sorted(paths, key=_changed, reverse=True) if len(paths) > 1 else paths:
            if not of_dataset or _names_dataset(path / "config.yaml", config.dataset):
                with suppress(InputError):  # another program's file, or another version's
                    stored = Config.load(path / "config.yaml")
                    if stored.mode in ("train", "demo") and (stored.dataset == config.dataset or not of_dataset):
                        yield path


def _changed(run: Path) -> tuple[int, Path]:
    """When a run was last written to."""
    marks = [run / "config.yaml", *(c / "training.json" for c in checkpoints(run))]
    return max(mark.stat().st_mtime_ns for mark in marks if mark.is_file()), run


def _names_dataset(file: Path, dataset: str) -> bool:
    """Whether a configuration may be of a data set, as far as one look at its text tells: certain where it says no."""
    try:
        lines = DATASET.findall(read_bytes(file, MAX_CONFIG))
    except (OSError, InputError):
        return True
    return len(lines) != 1 or lines[0].decode() in (dataset, "null")
