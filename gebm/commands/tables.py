"""Which datasets are tables of rows, and what that makes of the flags."""

from dataclasses import replace
from typing import Any

from gebm.config import UCI, Config
from gebm.errors import InputError

__all__ = ["of_table", "settled", "with_table_defaults"]

# What the flags of tables are where they are not given: chosen on validation rows, docs/results.md.
OF_TABLES: dict[str, Any] = {
    "fresh_noise": True, "g_model": "mogmaf", "d_model": "mlp",
    "dropout": 0.2, "penalty_type": "gradient", "penalty_lambda": 0.05, "noise_factor": 5, "b_size": 100, "ema": 0.99,
    "initialize_log_partition": True, "ml_epochs": 100, "total_epochs": 0, "refine_epochs": 20, "lr": 5e-4,
    "lr_generator": 2e-3, "beta_1": 0.9, "beta_2": 0.99, "temperature": 1.0, "latent_sampler": "sir",
    "num_sampler_steps": 20,
}  # fmt: skip


def of_table(config: Config) -> bool:
    """Whether the dataset is a table of rows.

    Raises:
        InputError: `--dataset_type` or `--trainer_type` contradicts the dataset.
    """
    kind, _, rest = config.dataset.partition(":")
    named = kind in UCI or (rest and kind in ("csv", "toy"))
    either = rest and kind not in ("folder", "hub", "csv", "toy")  # npz: and the user's own code
    if config.dataset_type == "uci" and not (named or either):
        raise InputError(f"--dataset_type uci: --dataset {config.dataset} are images; leave it out")
    if config.trainer_type != "default" and not (named or config.dataset_type == "uci"):
        raise InputError(f"--trainer_type {config.trainer_type}: is for tables, as {', '.join(UCI)}; leave it out")
    return bool(named or config.dataset_type == "uci")


def settled(config: Config, given: frozenset[str]) -> tuple[Config, frozenset[str]]:
    """The configuration with the defaults of tables where the dataset is one, and the networks `--generator` and
    `--discriminator` name; with the flags that count as given."""
    for family, network in (("generator", "g_model"), ("discriminator", "d_model")):
        name = getattr(config, family)
        if name != "convolutional":
            if network in given and getattr(config, network) != name:
                raise InputError(f"--{family} {name} contradicts --{network} {getattr(config, network)}: give one")
            config, given = replace(config, **{network: name}), given | {network}
    return (with_table_defaults(config, given) if of_table(config) else config), given


def with_table_defaults(config: Config, given: frozenset[str]) -> Config:
    """The configuration with what the flags of tables are where they are not given."""
    config = replace(config, **{flag: value for flag, value in OF_TABLES.items() if flag not in given})
    if config.g_model == "mogmaf" and "num_blocks" not in given:
        return replace(config, num_blocks=1)  # the mixture alone, without affine layers under it
    return config
