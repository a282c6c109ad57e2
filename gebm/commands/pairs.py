"""The trained pair that flags name, and the networks of a new one."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from gebm.checkpoints import newest_checkpoint, read_newest, settings_beside
from gebm.commands.runs import log_dir, runs_of
from gebm.commands.setup import dtype_of, log
from gebm.config import Config
from gebm.errors import InputError
from gebm.manifest import sha256_of
from gebm.model import GEBM, Architecture, read_architecture, weight_file
from gebm.untrusted import check_plain, lies_in, run_of

__all__ = [
    "ARCHITECTURE_FLAGS",
    "architecture_of",
    "find_pair",
    "folder_of",
    "hashes_of",
    "load_pair",
    "networks_of",
    "own_networks",
    "settle_weights",
]

# flag -> field of `Architecture`, by the file that settles it
ARCHITECTURE_FLAGS = {
    "base": {
        "g_model": "base", "Z_dim": "latent_dim", "latent_noise": "prior",
        "width": "width", "num_blocks": "blocks", "bn": "bn",
    },
    "energy": {"d_model": "energy", "width": "width", "num_blocks": "blocks", "bn": "bn"},  # no_trunc may be changed
}  # fmt: skip


def settle_weights(config: Config) -> Config:
    """The configuration with a run that `--g_path` or `--d_path` names replaced by its newest checkpoint."""
    found = {path: newest_checkpoint(path) or path for path in {config.g_path, config.d_path} if path}
    g_path, d_path = (str(found.get(path, "")) for path in (config.g_path, config.d_path))
    return replace(config, g_path=g_path, d_path=d_path)


def _in_place(config: Config) -> Config:
    """The configuration with `--from_untrusted`, checked for links, where `--g_path` and `--d_path` are not given."""
    if not config.from_untrusted:
        return config
    for place in (Path(config.from_untrusted), run_of(config.from_untrusted)):
        check_plain(place)
    for flag, path in (("g_path", config.g_path), ("d_path", config.d_path)):
        if path and not lies_in(path, Path(config.from_untrusted)):
            raise InputError(f"--{flag} {path}: lies outside --from_untrusted {config.from_untrusted}; leave one out")
    base, energy = (path or config.from_untrusted for path in (config.g_path, config.d_path))
    return replace(config, g_path=base, d_path=energy)


def find_pair(config: Config, given: frozenset[str]) -> tuple[Path, Path]:
    """Base and energy weights: `--g_path` and `--d_path`, else those of the newest run, of the dataset if one is given.

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
    of_dataset = "dataset" in given
    for run in runs_of(config, of_dataset):
        if split := next(run.glob("split-*"), None):
            raise InputError(f"{run}: the newest run holds several splits; name one, as --g_path {split}")
        if newest := newest_checkpoint(run):
            break
    else:
        of = f" of --dataset {config.dataset}" if of_dataset else ""
        raise InputError(
            f"no trained pair{of} under {log_dir(config)}/: train one (gebm train --dataset {config.dataset}), or give "
            "--log_dir, or --g_path and --d_path"
        )
    return newest, newest


def folder_of(weights: Path) -> Path:
    """The folder that a weights file, or a checkpoint, is."""
    return weights.parent if weights.is_file() else weights


def hashes_of(base: Path, energy: Path) -> dict[str, str]:
    """The sha256 of the weights of a pair: a path may come to hold other ones."""
    return {"base": sha256_of(weight_file(base, "base")), "energy": sha256_of(weight_file(energy, "energy"))}


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
        names |= networks_of(folder_of(path), names)
    return names


def networks_of(folder: Path, known: Collection[str] = ()) -> set[str]:
    """Networks by dotted path that the configuration of a run or checkpoint names, with a line for each one not known.

    They are the user's word, as runs are mostly one's own (docs/security.md).
    """
    file = settings_beside(folder)
    if not file.is_file():
        return set()
    stored = Config.load(file)
    found = {name for name in (stored.g_model, stored.d_model) if ":" in name}
    for name in sorted(found - set(known)):
        log.info("code: %s, which %s names; --from_untrusted keeps such code out", name, file)
    return found


def load_pair(config: Config, given: frozenset[str]) -> tuple[GEBM, Path, Path]:
    """The trained model to sample or evaluate and the paths of its two halves; flags that contradict it are refused."""

    def load(base: Path, energy: Path) -> tuple[GEBM, Path, Path]:
        allow = own_networks(config, given, base, energy)
        return GEBM.load(base, energy, allow=allow, dtype=dtype_of(config)), base, energy

    model, base, energy = read_newest(lambda: find_pair(config, given), load)
    for part, path in (("base", base), ("energy", energy)):
        for flag, field in ARCHITECTURE_FLAGS[part].items():
            stored, wanted = getattr(model.built_as, field), getattr(config, flag)
            if flag in given and wanted != stored:
                raise InputError(f"--{flag} {wanted}: {path} was trained with {stored}; leave the flag out")
    if "no_trunc" in given:
        model.energy.trunc = not config.no_trunc  # type: ignore[assignment]  # torch: of tensors and modules alone
        model.architecture = replace(model.built_as, trunc=not config.no_trunc)
    return model, base, energy
