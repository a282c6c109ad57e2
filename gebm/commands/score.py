"""`gebm score`: the log-density of new rows under a trained model, for novelty detection."""

import math
from pathlib import Path

import numpy as np
import torch

from gebm.bounded import open_regular
from gebm.commands.density import partition_of, partition_texts, units_of, validation_log_prob
from gebm.commands.pairs import load_pair
from gebm.commands.setup import choose_device, log, start_log
from gebm.commands.tables import settled
from gebm.config import Config
from gebm.data import TableData, read_rows
from gebm.data.csv_files import as_cell, write_csv
from gebm.errors import InputError
from gebm.files import atomic_write, check_output
from gebm.metrics.likelihood import base_log_prob, model_log_prob
from gebm.report import table
from gebm.seeds import stream

__all__ = ["main"]

COLUMNS = ("row", "log_density", "log_density_base", "quantile")
RARE = 0.01  # share of the validation rows


def main(config: Config, given: frozenset[str], words: list[str]) -> Path:
    """Write the log-densities of the rows of a file, in their original units; returns the file that was written.

    Its columns: `row`, counted from 0 without the header; `log_density` and `log_density_base` in nats; `quantile`,
    (k + 1) / (n + 1), where k of the run's n validation rows, which it was not trained on, are at most as likely under
    the model: at most q for a share q of rows like those. A row that differs in a column that was constant in training,
    or that others determined, has density 0.
    """
    start_log()
    if len(words) != 1:
        raise InputError("gebm score: write gebm score FILE [--g_path RUN], FILE a csv or npz of rows to score")
    file = Path(words[0])
    if file.is_dir():
        raise InputError(f"{file}: a folder; name a table of rows to score, one .csv or .npz file")
    output = Path(config.output or file.with_suffix(".scores.csv"))
    if output.resolve() == file.resolve():
        raise InputError(f"--output {output}: is the file to score; name another")
    check_output(output, "--output", "a file of scores", _is_of_scores, config.force)
    if not (config.g_path or config.d_path or config.from_untrusted or "dataset" in given):
        raise InputError("gebm score: name the run to score with, --g_path RUN, or the --dataset whose newest is meant")
    config, given = settled(config, given)
    device = choose_device(config, given)
    model, base, energy = load_pair(config, given)
    if not model.has_density:
        raise InputError(f"{base}: its base has no density; score with a run on a table, trained with a flow")
    units = units_of(model, base, energy)
    values, new, news = _read(file, units, config.header)
    rows = units.with_noise(units.whiten(values), stream(config.seed, "score"))
    model.to(device)
    measured = partition_of(model, config, given, base, energy, device)
    partition = measured.value
    c = model.log_partition
    x = torch.from_numpy(np.array(rows)).to(c)
    ours, base_alone = (
        torch.nan_to_num(log_prob, nan=-math.inf, posinf=math.inf, neginf=-math.inf) + units.log_det  # nan: overflow
        for log_prob in (model_log_prob(model, x, partition), base_log_prob(model, x))
    )
    ours[new] = base_alone[new] = -math.inf
    seen = validation_log_prob(model, units, base, energy, partition) + units.log_det
    quantiles = (np.searchsorted(seen, ours.numpy(), side="right") + 1) / (len(seen) + 1)
    with atomic_write(output) as temporary:
        columns = ours.tolist(), base_alone.tolist(), quantiles.tolist()
        write_csv(temporary, COLUMNS, zip(range(len(rows)), *columns))
    least = max(RARE, 1 / (len(seen) + 1))  # which a row that is rarer than all has
    rare, near = float((quantiles <= least).mean()), ours.isfinite() & base_alone.isfinite()
    far = int((~near & ~torch.from_numpy(new)).sum())
    text, warning = partition_texts(measured.summary())
    found = [
        ("rows", f"{len(rows):,}"),
        ("mean log-density", f"{_mean(ours[near])} nats (base alone {_mean(base_alone[near])})"),
        ("log-partition", text),
        *([("warning", warning)] if warning else []),
        *news,
        *([("too far for a number", f"{far:,} rows, left out of the mean")] if far else []),
        ("validation rows", f"{float(seen.mean()):.4f} nats, {len(seen):,} rows"),
        (f"rarer than {'all' if least > RARE else f'{1 - RARE:.0%}'} of those", f"{rare:.1%} of the rows"),
        *([] if units.noise is None else [("noise", "of a bin's width added to the rows, as to those trained on")]),
        ("written", str(output)),
    ]
    log.info("\n%s", table(found, f"scores of {file.name}"))
    return output


def _is_of_scores(file: Path) -> bool:
    with open_regular(file) as stream:
        return stream.readline(100).strip() == ",".join(COLUMNS).encode()


def _read(file: Path, units: TableData, header: str) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """The rows of a file in the model's columns, which of them are new in a column that had no density, (N,) bool, and
    lines on these.

    Such a column was constant in training, or others determined it: another value has never been seen.
    """
    rest = units.dropped
    if rest is None and units.width > len(units.columns):
        log.info("the run is of a gebm that forgot its constant columns: new values in them go unnoticed; train again")
    names = () if rest is None else rest.columns
    values = read_rows(file, units.columns, units.width, optional=names, named=units.named, header=header)
    rows, others = values[:, : len(units.columns)], values[:, len(units.columns) :]
    if rest is None:
        return rows, np.zeros(len(rows), bool), []
    missing = np.isnan(others).all(0)
    if missing.any():
        lacks = ", ".join(name for name, gone in zip(names, missing) if gone)
        log.info("%s: has no column %s, which the model cannot tell from what it was in training", file, lacks)
    differ = rest.differ(rows, others)
    news = []
    for i, name in enumerate(names):
        if differ[:, i].any():
            first = int(differ[:, i].argmax())
            was = f"{as_cell(rest.offset[i])} in" if not rest.weights[:, i].any() else "what other columns say in"
            text = f"{int(differ[:, i].sum()):,} rows, as {as_cell(others[first, i])} in row {first}"
            news.append((f"density 0: {name}", f"{text}; it was {was} all training rows"))
    return rows, np.any(differ, axis=1), news


def _mean(values: torch.Tensor) -> str:
    return f"{float(values.mean()):.4f}" if len(values) else "none"
