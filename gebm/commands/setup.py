"""What every command settles before it works: device, run folder, log, trained pair."""

import logging
import math
import os
import sys
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from gebm import parallel
from gebm.bounded import check_plain
from gebm.checkpoints import checkpoints, newest_checkpoint
from gebm.commands.tables import of_table
from gebm.config import Config
from gebm.data import ImageData, TableData, load_images, load_table
from gebm.data.images import SOURCES
from gebm.errors import InputError
from gebm.files import atomic_folder, atomic_write, check_writable, sweep
from gebm.flags import check_mapping, printable, show
from gebm.model import GEBM, Architecture, read_architecture
from gebm.pretrained import CONFIG, read_config
from gebm.training.loop import Schedule

__all__ = [
    "architecture_of", "check_named", "check_new_run", "choose_device", "dataset", "dataset_for", "dtype_of",
    "find_pair", "folder_of", "join", "load_pair", "log", "log_dir", "made_with", "open_run", "runs_of",
    "schedule_of", "settle_weights", "start_log", "with_data_of",
]  # fmt: skip

log = logging.getLogger("gebm")

NO_CODE = {*SOURCES, "csv", "toy"}  # what may stand before the colon of a dataset that is not a dotted path
SERIAL = ".serial"  # of a run among those of its folder: which was started or gone on with last, whatever clocks say

# flag -> field of `Architecture`, by the file that settles it
ARCHITECTURE_FLAGS = {
    "base": {
        "g_model": "base", "Z_dim": "latent_dim", "latent_noise": "prior",
        "width": "width", "num_blocks": "blocks", "bn": "bn",
    },
    "energy": {"d_model": "energy", "width": "width", "num_blocks": "blocks", "bn": "bn"},  # no_trunc may be changed
}  # fmt: skip


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


def dataset(config: Config) -> ImageData | TableData:
    """The images, or the rows, the flags name."""
    with parallel.in_waves():  # the first use makes a cache
        if of_table(config):
            return load_table(
                config.dataset, config.data_path, protocol=config.protocol, scaling=config.scaling, seed=config.seed
            )
        paths = config.imagenet_train_path, config.imagenet_test_path
        return load_images(config.dataset, config.data_path, config.image_size or None, imagenet_paths=paths)


def dataset_for(model: GEBM, config: Config) -> ImageData | TableData:
    """The data the flags name, which must have the shape of the model's samples."""
    data, shape = dataset(config), model.built_as.shape
    if data.shape != shape and len(shape) == 1:
        raise InputError(f"--dataset {config.dataset}: rows of {data.shape}, the model's have {shape}")
    if data.shape != shape:
        raise InputError(f"--dataset {config.dataset}: images {data.shape}, the model's are {shape}; see --image_size")
    return data


def made_with(folder: Path) -> Config | None:
    """The flags that a run, a checkpoint or, of its data, an exported model was made with; None: it does not tell."""
    if (folder / "config.yaml").is_file():
        return Config.load(folder / "config.yaml")
    if (folder / CONFIG).is_file():
        return Config(**check_mapping(Config, read_config(folder).get("data", {}), f"{folder / CONFIG}: "))
    return None


def with_data_of(stored: Config, config: Config, given: frozenset[str]) -> Config:
    """The configuration with the data of `stored` where its flags are not given."""
    fields = "dataset", "image_size", "dataset_type", "protocol", "scaling"
    return replace(config, **{field: getattr(stored, field) for field in fields if field not in given})


def check_named(stored: Config, config: Config, given: frozenset[str], path: Path) -> None:
    """Raise InputError if reading the data of `stored`, found at `path`, took what the user has to name: code, or with
    `--from_untrusted` any path."""
    kind, _, rest = stored.dataset.partition(":")
    code = kind not in NO_CODE
    if "dataset" not in given and rest and (config.from_untrusted or code):
        what, end = ("code ", "run") if code else ("", "read")
        name = show(stored.dataset)
        raise InputError(f"{path}: was made with the {what}--dataset {name}; name it too, to have it {end}")


def join(config: Config) -> None:
    """Meet the other processes, where a launcher has started several."""
    parallel.join(cpu=config.device == -2 or not torch.cuda.is_available())


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
    label = "".join(c if c.isalnum() or c in "._-" else "-" for c in config.dataset).strip("-")
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
        return int((run / SERIAL).read_text())
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


def settle_weights(config: Config) -> Config:
    """The configuration with a run that `--g_path` or `--d_path` names replaced by its newest checkpoint."""
    found = {path: newest_checkpoint(path) or path for path in {config.g_path, config.d_path} if path}
    g_path, d_path = (str(found.get(path, "")) for path in (config.g_path, config.d_path))
    return replace(config, g_path=g_path, d_path=d_path)


def _in_place(config: Config) -> Config:
    """The configuration with `--from_untrusted`, checked for links, where `--g_path` and `--d_path` are not given."""
    if not config.from_untrusted:
        return config
    check_plain(Path(config.from_untrusted))
    base, energy = (path or config.from_untrusted for path in (config.g_path, config.d_path))
    return replace(config, g_path=base, d_path=energy)


def find_pair(config: Config) -> tuple[Path, Path]:
    """Base and energy weights: `--g_path` and `--d_path`, else those of the newest run of the dataset.

    A path may be a weights file, a checkpoint folder, or a run's folder, of which the newest checkpoint is meant. Where
    one is given, the other is taken from beside it.
    """
    config = _in_place(config)
    for path in filter(None, (config.g_path, config.d_path)):
        if split := next(Path(path).glob("split-*"), None):
            raise InputError(f"{path}: holds the runs of several splits; name one, as {split}")
    settled = settle_weights(config)
    base, energy = (Path(p) if p else None for p in (settled.g_path, settled.d_path))
    if base:
        return base, energy or folder_of(base)
    if energy:
        return folder_of(energy), energy
    runs = reversed(runs_of(config))
    for run in runs:
        if split := next(run.glob("split-*"), None):
            raise InputError(f"{run}: the newest run holds several splits; name one, as --g_path {split}")
        if newest := newest_checkpoint(run):
            break
    else:
        raise InputError(
            f"no trained pair of --dataset {config.dataset} under {log_dir(config)}/: train one "
            f"(gebm train --dataset {config.dataset}), or give --log_dir, or --g_path and --d_path"
        )
    return newest, newest


def folder_of(weights: Path) -> Path:
    """The folder that a weights file, or a checkpoint, is."""
    return weights.parent if weights.is_file() else weights


def architecture_of(config: Config, given: frozenset[str], shape: tuple[int, ...]) -> Architecture:
    """The networks the flags describe; what `--g_path` and `--d_path` settle is taken from there unless given.

    Those are files or checkpoints here (`settle_weights`).
    """
    architecture = Architecture(
        base=config.g_model,
        energy=config.d_model,
        shape=shape,
        latent_dim=shape[0] if len(shape) == 1 and "Z_dim" not in given else config.Z_dim,
        prior=config.latent_noise,
        width=config.width,
        trunc=not config.no_trunc,
        blocks=config.num_blocks,
        bn=config.bn,
        dropout=config.dropout,
    )
    for part, path in (("base", config.g_path), ("energy", config.d_path)):
        if path:
            weights = Path(path)
            stored = read_architecture(weights, part, own_networks(config, given, weights))
            taken = {f: getattr(stored, f) for flag, f in ARCHITECTURE_FLAGS[part].items() if flag not in given}
            if part == "energy" and "no_trunc" not in given:
                taken["trunc"] = stored.trunc
            architecture = replace(architecture, **taken)
    return architecture


def own_networks(config: Config, given: frozenset[str], *weights: Path) -> set[str]:
    """Networks by dotted path that the user named: on the command line, or in the configuration of those weights.

    With `--from_untrusted`, on the command line alone.
    """
    names = {getattr(config, flag) for flag in ("g_model", "d_model") if flag in given}
    for path in weights if not config.from_untrusted else ():
        file = folder_of(path) / "config.yaml"
        if file.is_file():
            stored = Config.load(file)
            found = {name for name in (stored.g_model, stored.d_model) if ":" in name} - names
            for name in sorted(found):
                log.info("code: %s, which %s names; --from_untrusted keeps such code out", name, file)
            names |= found
    return names


def dtype_of(config: Config) -> torch.dtype:
    """Of weights and energies: `--dtype 64` and `--precision 64` say the same."""
    return torch.float64 if 64 in (config.dtype, config.precision) else torch.float32


def load_pair(config: Config, given: frozenset[str]) -> tuple[GEBM, Path, Path]:
    """The trained model to sample or evaluate and the paths of its two halves; flags that contradict it are refused."""
    base, energy = find_pair(config)
    model = GEBM.load(base, energy, allow=own_networks(config, given, base, energy), dtype=dtype_of(config))
    for part, path in (("base", base), ("energy", energy)):
        for flag, field in ARCHITECTURE_FLAGS[part].items():
            stored, wanted = getattr(model.built_as, field), getattr(config, flag)
            if flag in given and wanted != stored:
                raise InputError(f"--{flag} {wanted}: {path} was trained with {stored}; leave the flag out")
    if "no_trunc" in given:
        model.energy.trunc = not config.no_trunc  # type: ignore[assignment]  # torch: of tensors and modules alone
        model.architecture = replace(model.built_as, trunc=not config.no_trunc)
    return model, base, energy


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


def start_log() -> None:
    """Print the messages of the package as they are, and no longer into the file of an earlier run.

    Of several processes only the first prints.
    """
    for old in log.handlers[:]:
        log.removeHandler(old)
        old.close()
    first = parallel.launched() == 1 or os.environ["RANK"] == "0"
    handler: logging.Handler = logging.StreamHandler(sys.stdout) if first else logging.NullHandler()
    handler.setFormatter(_Printable("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
