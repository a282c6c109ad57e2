"""`gebm data prepare`."""

from pathlib import Path

import numpy as np

from gebm.commands.datasets import dataset
from gebm.commands.setup import log, start_log
from gebm.config import Config
from gebm.errors import InputError

__all__ = ["main"]


def main(config: Config, given: frozenset[str], words: list[str]) -> None:
    """Prepare the cache of `--dataset`, as its first use would, and say what is in it and where."""
    if words != ["prepare"]:
        raise InputError(f"{' '.join(['gebm data', *words])}: write gebm data prepare --dataset NAME")
    start_log()
    data = dataset(config)
    for name, split in (("train", data.train), ("test", data.test)):
        where = Path(str(split.filename)).parent if isinstance(split, np.memmap) else "memory: it needs no preparation"
        what = "images" if len(data.shape) == 3 else "rows"
        size = f"{len(split):,} {what} {data.shape}, {split.nbytes / 1e6:,.1f} MB"
        log.info("%s %s: %s, in %s", data.name, name, size, where)
