"""Folders of runs: new ones, and those that are there."""

import logging
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from gebm import parallel
from gebm.bounded import read_bytes
from gebm.checkpoints import checkpoints
from gebm.commands.setup import log
from gebm.config import Config
from gebm.errors import InputError
from gebm.files import atomic_folder, atomic_write, check_writable, sweep
from gebm.model import Architecture

__all__ = ["check_new_run", "log_dir", "open_run", "runs_of"]

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
    """Make the run's folder, write its `config.yaml` and start its log; returns the configuration as resolved.

    Resolved: with the device and the networks in use, so that the file by itself repeats the run.
    """
    resolved = replace(
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
    if not parallel.is_first():
        return resolved
    serial = str(1 + max((_serial(file.parent) for file in path.parent.glob(f"*/{SERIAL}")), default=0))
    if resume:
        for folder in (path, path / "checkpoints", path / "grids"):
            sweep(folder)
        for name, text in (("config.yaml", resolved.to_yaml()), (SERIAL, serial)):
            with atomic_write(path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    else:
        sweep(path.parent, others=True)
        try:  # never without its configuration, wherever a kill comes
            with atomic_folder(path, new=True) as temporary:
                resolved.save(temporary / "config.yaml")
                (temporary / SERIAL).write_text(serial)
        except FileExistsError:
            raise _exists(path, config) from None
    if config.log_in_file:
        for old in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
            log.removeHandler(old)  # of the split before
            old.close()
        log.addHandler(_LogFile(path / "log.txt", encoding="utf-8"))
    return resolved


class _LogFile(logging.FileHandler):
    """A log file that a full disk makes an error of the run, as any other, and no traceback beside it."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # what is being handled where this is called


def _serial(run: Path) -> int:
    try:
        return int(read_bytes(run / SERIAL, MAX_SERIAL))
    except (OSError, ValueError):
        return 0


def runs_of(config: Config) -> list[Path]:
    """Training runs of the configured dataset under `--log_dir` that hold a configuration, the newest last.

    The newest is the one that was started, or gone on with, last. Of runs that do not tell, as copies of one, times of
    change decide.
    """
    found = []
    for file in log_dir(config).glob("*/config.yaml"):
        if file.parent.name.startswith("."):
            continue  # what a killed process left
        try:
            stored = Config.load(file)
        except InputError:
            continue  # another program's file, or another version's
        if stored.mode in ("train", "demo") and stored.dataset == config.dataset:
            marks = [file, *(c / "training.json" for c in checkpoints(file.parent))]
            changed = max(mark.stat().st_mtime_ns for mark in marks if mark.is_file())
            found.append((_serial(file.parent), changed, file.parent))
    return [path for *_, path in sorted(found)]
