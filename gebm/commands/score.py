"""`gebm score`: the log-density of new rows under a trained model, for novelty detection."""

import csv
import math
from pathlib import Path

import numpy as np
import torch

from gebm.commands.density import load_units, partition_of, validation_log_prob
from gebm.commands.pairs import load_pair
from gebm.commands.setup import choose_device, log, start_log
from gebm.commands.tables import settled
from gebm.config import Config
from gebm.data import read_rows
from gebm.errors import InputError
from gebm.files import atomic_write, check_writable
from gebm.metrics.likelihood import base_log_prob, model_log_prob
from gebm.report import table
from gebm.seeds import stream

__all__ = ["main"]

RARE = 0.01  # share of the validation rows


def main(config: Config, given: frozenset[str], words: list[str]) -> Path:
    """Write the log-densities of the rows of a file, in their original units; returns the file that was written.

    Its columns: `row`, counted from 0 without the header; `log_density` and `log_density_base` in nats; `quantile`, the
    share of the run's validation rows, which it was not trained on, that are at most as likely under the model.
    """
    start_log()
    if len(words) != 1:
        raise InputError("gebm score: write gebm score FILE [--g_path RUN], FILE a csv or npz of rows to score")
    file = Path(words[0])
    output = Path(config.output or file.with_suffix(".scores.csv"))
    if output.resolve() == file.resolve():
        raise InputError(f"--output {output}: is the file to score; name another")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: must be a file in a folder that exists")
    check_writable(output.absolute().parent, "--output")
    if not (config.g_path or config.d_path or config.from_untrusted or "dataset" in given):
        raise InputError("gebm score: name the run to score with, --g_path RUN, or the --dataset whose newest is meant")
    config, given = settled(config, given)
    device = choose_device(config, given)
    model, base, energy = load_pair(config, given)
    if not model.has_density:
        raise InputError(f"{base}: its base has no density; score with a run on a table, trained with a flow")
    units = load_units(base)
    if units.shape != model.built_as.shape:
        raise InputError(f"{base}: a model of {model.built_as.shape} rows beside a table of {units.shape}")
    rows = units.with_noise(units.whiten(read_rows(file, units.columns, units.width)), stream(config.seed, "score"))
    model.to(device)
    partition = partition_of(model, config, given, base, energy, device)
    c = model.log_partition
    x = torch.from_numpy(np.array(rows)).to(c)
    ours, base_alone = (
        torch.nan_to_num(log_prob, nan=-math.inf, posinf=math.inf, neginf=-math.inf) + units.log_det  # nan: overflow
        for log_prob in (model_log_prob(model, x, partition), base_log_prob(model, x))
    )
    seen = validation_log_prob(model, units, base, energy, partition) + units.log_det
    quantiles = np.searchsorted(seen, ours.numpy(), side="right") / len(seen)
    with atomic_write(output) as temporary, open(temporary, "w", newline="", encoding="utf-8") as table_file:
        writer = csv.writer(table_file)
        writer.writerow(("row", "log_density", "log_density_base", "quantile"))
        for i, values in enumerate(zip(ours.tolist(), base_alone.tolist(), quantiles.tolist())):
            writer.writerow((i, *(f"{value:.6g}" for value in values)))
    rare, near = float((quantiles < RARE).mean()), ours.isfinite() & base_alone.isfinite()
    far = len(rows) - int(near.sum())
    found = [
        ("rows", f"{len(rows):,}"),
        (
            "mean log-density",
            f"{float(ours[near].mean()):.4f} nats (base alone {float(base_alone[near].mean()):.4f})",
        ),
        *([("too far for a number", f"{far:,} rows, left out of the mean")] if far else []),
        ("validation rows", f"{float(seen.mean()):.4f} nats, {len(seen):,} rows"),
        (f"rarer than {f'{1 - RARE:.0%}' if len(seen) * RARE >= 1 else 'all'} of those", f"{rare:.1%} of the rows"),
        *([] if units.noise is None else [("noise", "of a bin's width added to the rows, as to those trained on")]),
        ("written", str(output)),
    ]
    log.info("\n%s", table(found, f"scores of {file.name}"))
    return output
