"""What one flag of a training demands of another, before any work starts."""

from itertools import pairwise

from gebm import parallel
from gebm.commands.build import milestones
from gebm.commands.setup import schedule_of
from gebm.commands.tables import of_table
from gebm.config import Config
from gebm.errors import InputError
from gebm.networks import BASES, ENERGIES, FLOWS
from gebm.networks.common import IMAGE_SIZES

__all__ = ["check_flags", "check_kind", "check_processes", "check_scheduler"]

# flag -> what to give instead
OF_IMAGES_ALONE = {
    "total_gen_iter": "tables count passes, see --total_epochs", "refine_iter": "see --refine_epochs",
    "refine_kale": "see --patience", "image_size": "", "eval_fid": "likelihoods are measured instead",
    "eval_kale": "likelihoods are measured instead", "no_trunc": "energies of tables have no floor",
}  # fmt: skip
OF_TABLES_ALONE = {
    "ml_epochs": "", "ml_lr": "", "refine_epochs": "see --refine_iter", "patience": "see --refine_kale", "n_splits": "",
    "protocol": "", "scaling": "", "columns": "", "drop": "", "header": "", "fresh_noise": "", "dropout": "",
    "num_blocks": "", "bn": "",
}  # fmt: skip
SCHEDULERS_OF = {
    "milestone": ("MultiStepLR",), "scheduler_gamma": ("MultiStepLR", "ExponentialLR"), "lr_decay": ("mmd",)
}  # fmt: skip


def check_flags(config: Config) -> None:
    """What one flag demands of another."""
    if config.train_mode == "energy" and not config.g_path and config.g_model in BASES:
        raise InputError(
            "--train_mode energy trains on a frozen base: give it with --g_path (run, checkpoint or file), or as "
            "--g_model package.module:factory, whose factory returns it trained"
        )
    if config.train_mode == "energy" and schedule_of(config, 1).refine_steps == 0:
        flag = "--refine_epochs passes of" if of_table(config) else "--refine_iter"
        raise InputError(f"--train_mode energy takes {flag} energy steps, and that is 0: give a number")
    own = (config.g_path or config.g_model not in BASES) and (config.d_path or config.d_model not in ENERGIES)
    if config.image_size not in (0, *IMAGE_SIZES) and not own:
        allowed = ", ".join(map(str, IMAGE_SIZES))
        raise InputError(f"--image_size {config.image_size}: the built-in networks take {allowed}; choose one of these")
    if config.train_mode == "base" and not config.d_path and not (of_table(config) and not config.total_epochs):
        raise InputError("--train_mode base trains against a frozen energy: give it with --d_path")
    if config.fast == "graphs" and (of_table(config) or config.criterion in ("ml", "cd")):
        raise InputError("--fast graphs: is of images, and of another criterion than ml and cd; give --fast auto")
    if config.on_divergence == "rollback" and config.save_nothing:
        raise InputError("--on_divergence rollback: goes back to checkpoints; leave --save_nothing out")


def check_kind(config: Config, given: frozenset[str]) -> None:
    """Refuse flags of images for tables and flags of tables for images, and a likelihood without a density."""
    rows = of_table(config)
    for flag in sorted(given & (OF_IMAGES_ALONE if rows else OF_TABLES_ALONE).keys()):
        if getattr(config, flag) != getattr(Config, flag):
            what, instead = ("a table", OF_IMAGES_ALONE) if rows else ("images", OF_TABLES_ALONE)
            hint = f"; {instead[flag]}" if instead[flag] else ""
            raise InputError(f"--{flag} {getattr(config, flag)}: --dataset {config.dataset} is {what}{hint}")
    unused = {"energy": ("ml_epochs", "ml_lr"), "base": ("refine_epochs",)}.get(config.train_mode, ())
    if config.dataset.startswith("toy:"):
        unused = *unused, "scaling"
    for flag in sorted(flag for flag in given & set(unused) if getattr(config, flag)):
        where = f"--train_mode {config.train_mode}" if flag != "scaling" else f"--dataset {config.dataset}"
        raise InputError(f"--{flag} {getattr(config, flag)}: has no part in {where}; leave it out")
    if rows and config.use_scheduler and config.scheduler == "mmd":
        raise InputError("--scheduler mmd: compares images; for a table take MultiStepLR or ExponentialLR")
    if config.criterion == "ml" and config.g_model in BASES and config.g_model not in FLOWS:
        raise InputError(f"--criterion ml: needs a base with a density, --g_model {', '.join(FLOWS)}")


def check_processes(config: Config) -> None:
    """What several processes cannot do together, or cannot share among them."""
    count = parallel.processes()
    if count == 1:
        return
    if of_table(config):
        what = "tables are small, train on one process; their splits and seeds can run side by side"
        raise InputError(f"--dataset {config.dataset}: {count} processes; {what}")
    if config.criterion == "cd":
        raise InputError(f"--criterion cd: {count} processes; its chains are of one process, take another criterion")
    if config.b_size % count:
        near = config.b_size // count * count or count
        raise InputError(
            f"--b_size {config.b_size}: the images of a batch, of all processes together, must be a multiple of the "
            f"{count} processes; give {near}"
        )


def check_scheduler(config: Config, given: frozenset[str]) -> None:
    """Refuse milestones that do not rise, flags of a schedule that is not the one in use, and one that cannot act."""
    for flag, schedulers in {"scheduler": (config.scheduler,), **SCHEDULERS_OF}.items():
        value, used = getattr(config, flag), config.use_scheduler and config.scheduler in schedulers
        if flag in given and value != getattr(Config, flag) and not used:
            needed = "" if flag == "scheduler" else f" --scheduler {' or '.join(schedulers)}"
            raise InputError(f"--{flag} {value}: needs --use_scheduler{needed}; give that too, or leave the flag out")
    if not config.use_scheduler:
        return
    if config.scheduler == "MultiStepLR" and any(a >= b for a, b in pairwise(milestones(config))):
        raise InputError(f"--milestone {config.milestone}: epochs must rise, as in {Config.milestone}")
    if config.train_mode == "energy":
        raise InputError("--use_scheduler: is of the joint stage, and --train_mode energy has none; leave it out")
    if config.train_mode == "base" and config.scheduler != "mmd":
        counts = "counts epochs of the energy, and --train_mode base has none"
        raise InputError(f"--scheduler {config.scheduler}: {counts}; take mmd")
