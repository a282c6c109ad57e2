"""What every command settles before it works: device, run folder, log, trained pair."""

import logging
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from gebm.config import Config
from gebm.data import ImageData, load_images
from gebm.errors import InputError
from gebm.files import atomic_folder, atomic_write
from gebm.model import GEBM, Architecture, read_architecture
from gebm.training.checkpoint import checkpoints

__all__ = [
    "ARCHITECTURE_FLAGS", "architecture_of", "check_new_run", "choose_device", "dataset", "dataset_for", "find_pair",
    "load_pair", "log", "open_run", "runs_of",
]  # fmt: skip

log = logging.getLogger("gebm")

# flag -> field of `Architecture`, by the file that settles it
ARCHITECTURE_FLAGS = {
    "base": {"g_model": "base", "Z_dim": "latent_dim", "latent_noise": "prior", "width": "width"},
    "energy": {"d_model": "energy", "width": "width"},
}


def choose_device(config: Config, given: frozenset[str]) -> torch.device:
    """The device of `--device`: a GPU's number, -1 any GPU, -2 the CPU. The default falls back to the CPU, saying so.

    Raises:
        InputError: a GPU was asked for that is not there.
    """
    count = torch.cuda.device_count()
    if config.device == -2:
        return torch.device("cpu")
    if max(config.device, 0) < count:
        return torch.device("cuda", max(config.device, 0))
    if "device" in given:
        there = f"this machine has GPUs 0 to {count - 1}" if count else "this machine has no GPU"
        raise InputError(f"--device {config.device}: {there}; give --device -2 for the CPU")
    log.info("device: the CPU (no GPU here; --device -2 says so without this line)")
    return torch.device("cpu")


def dataset(config: Config) -> ImageData:
    """The images the flags name."""
    return load_images(config.dataset, config.data_path, config.image_size or None)


def dataset_for(model: GEBM, config: Config) -> ImageData:
    """The images the flags name, which must have the shape of the model's."""
    data, shape = dataset(config), model.architecture.image_shape
    if data.shape != shape:
        raise InputError(f"--dataset {config.dataset}: images {data.shape}, the model's are {shape}; see --image_size")
    return data


def log_dir(config: Config) -> Path:
    return Path(config.log_dir or "runs")


def check_new_run(config: Config) -> Path:
    """The path of a new run's folder, which does not exist yet; writes nothing.

    Raises:
        InputError: it is there already, or its parent cannot be written.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    label = "".join(c if c.isalnum() or c in "._-" else "-" for c in config.dataset).strip("-")
    path = log_dir(config) / (config.log_name or f"{label}-{config.mode}-{stamp}")
    if path.exists():
        raise InputError(f"{path}: this run exists; give another --log_name, or --resume {path} to go on with it")
    check_writable(path)
    return path


def check_writable(path: Path) -> None:
    """Raise InputError unless `path` could be made or written."""
    import os

    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written ({existing} is not a writable folder); give another --log_dir")


def open_run(path: Path, config: Config, device: torch.device, architecture: Architecture) -> Config:
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
        no_trunc=not architecture.trunc,
        device=-2 if device.type == "cpu" else device.index,
        log_dir=str(path.parent),
        log_name=path.name,
        resume="",
    )
    if path.exists():
        with atomic_write(path / "config.yaml") as temporary:
            resolved.save(temporary)
    else:  # never without its configuration, wherever a kill comes
        with atomic_folder(path) as temporary:
            resolved.save(temporary / "config.yaml")
    if config.log_in_file:
        log.addHandler(logging.FileHandler(path / "log.txt", encoding="utf-8"))
    return resolved


def runs_of(config: Config) -> list[Path]:
    """Training runs of the configured dataset under `--log_dir` that hold a configuration, the newest last."""
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
            found.append((max(mark.stat().st_mtime_ns for mark in marks), file.parent))
    return [path for _, path in sorted(found)]


def newest_checkpoint(run: Path) -> Path | None:
    """The last checkpoint of a run."""
    return next(reversed(checkpoints(run)), None)


def find_pair(config: Config) -> tuple[Path, Path]:
    """Base and energy weights: `--g_path` and `--d_path`, else those of the newest run of the dataset.

    A path may be a weights file, a checkpoint folder, or a run's folder, of which the newest checkpoint is meant. Where
    one is given, the other is taken from beside it.
    """
    base, energy = (newest_checkpoint(Path(p)) or Path(p) if p else None for p in (config.g_path, config.d_path))
    if base or energy:
        return base or _folder_of(energy), energy or _folder_of(base)
    newest = next((c for run in reversed(runs_of(config)) if (c := newest_checkpoint(run))), None)
    if newest is None:
        raise InputError(
            f"no trained pair of --dataset {config.dataset} under {log_dir(config)}/: train one "
            f"(gebm train --dataset {config.dataset}), or give --log_dir, or --g_path and --d_path"
        )
    return newest, newest


def _folder_of(weights: Path) -> Path:
    return weights.parent if weights.is_file() else weights


def architecture_of(config: Config, given: frozenset[str], image_shape: tuple[int, int, int]) -> Architecture:
    """The networks the flags describe; what `--g_path` and `--d_path` settle is taken from there unless given."""
    architecture = Architecture(
        base=config.g_model,
        energy=config.d_model,
        image_shape=image_shape,
        latent_dim=config.Z_dim,
        prior=config.latent_noise,
        width=config.width,
        trunc=not config.no_trunc,
    )
    for part, path in (("base", config.g_path), ("energy", config.d_path)):
        if path:
            stored = read_architecture(newest_checkpoint(Path(path)) or path, part)
            taken = {f: getattr(stored, f) for flag, f in ARCHITECTURE_FLAGS[part].items() if flag not in given}
            architecture = replace(architecture, **taken)
    return architecture


def load_pair(config: Config, given: frozenset[str]) -> tuple[GEBM, Path, Path]:
    """The trained model to sample or evaluate and the paths of its two halves; flags that contradict it are refused."""
    base, energy = find_pair(config)
    model = GEBM.load(base, energy)
    for part, path in (("base", base), ("energy", energy)):
        for flag, field in ARCHITECTURE_FLAGS[part].items():
            stored, wanted = getattr(model.architecture, field), getattr(config, flag)
            if flag in given and wanted != stored:
                raise InputError(f"--{flag} {wanted}: {path} was trained with {stored}; leave the flag out")
    if "no_trunc" in given:
        model.energy.trunc = not config.no_trunc
        model.architecture = replace(model.architecture, trunc=not config.no_trunc)
    return model.eval(), base, energy


def start_log() -> None:
    """Print the messages of the package as they are, and no longer into the file of an earlier run."""
    for old in log.handlers[:]:
        log.removeHandler(old)
        old.close()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
