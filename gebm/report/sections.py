"""The sections of the page, each a function of what is known of a run to its blocks; none where nothing is known."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gebm.report import text
from gebm.report.analysis import along_the_chains, energies, nearest_training_images, sampler
from gebm.report.charts import Line, Panel, curves
from gebm.report.contents import Report, kale_of
from gebm.report.html import Html, columns, element, figure, image, note, table, tiled

__all__ = ["SECTIONS", "warnings"]

STAGES = {"joint": ("g_step", "base steps"), "refine": ("refine_step", "refinement steps")}
# charts of a training: y axis, what is seen, and key of stats.jsonl -> (name, role)
TRAINING = [
    (
        "KALE (nats)", "KALE: with the learnt c, and with each batch's own log-partition",
        {
            "kale": ("batches, with c", "gebm"), "kale_dv": ("batches, Monte Carlo", "base"),
            "kale_donsker_varadhan_train": ("train images", "train"),
            "kale_donsker_varadhan_test": ("test images", "test"),
        },
    ),
    (
        "log-partition (nats)", "Log-partition: c lags behind that of the batches when it learns too slowly",
        {"c": ("c, learnt", "gebm"), "c_batch": ("of each batch", "base")},
    ),
    (
        "mean energy (nats)", "Mean energy of training images and base samples",
        {"energy_real": ("training images", "train"), "energy_fake": ("base samples", "base")},
    ),
    (
        "loss (nats)", "Losses, means since the line before",
        {"energy_loss": ("energy, with its penalty", "gebm"), "base_loss": ("base", "base")},
    ),
]  # fmt: skip
RATES = ("learning rate", "Learning rates", {"lr": ("energy", "gebm"), "lr_generator": ("base", "base")})
BETWEEN, GRIDS = 4, 6  # pictures shown at most


def what_was_run(report: Report) -> list[Html]:
    changed = [(s.flag, s.value, s.default or "(empty)") for s in report.settings if s.value != s.default]
    groups = [
        table([(s.flag, s.value, s.meaning) for s in group], header=(title, "Value", "Meaning"))
        for title, group in groupby(report.settings, key=lambda s: s.group)
    ]
    going_on = [
        block
        for checkpoint, flags in report.changes
        for block in (
            note(f"From {checkpoint} on with other settings; stop the run there, and go on with:"),
            _command(["gebm train --resume RUN", *(f"--{flag} {shlex.quote(now)}" for flag, _, now in flags)]),
        )
    ]
    history = [(flag, was, now, checkpoint) for checkpoint, flags in report.changes for flag, was, now in flags]
    tables = [table(report.about), table(changed, header=("Changed setting", "Value", "Default"))]
    if history:
        tables.append(table(history, header=("Changed on the way", "Before", "After", "From")))
    return [
        columns(tables),
        note("The same again:"),
        _command(report.command),
        *going_on,
        element("details", element("summary", f"All {len(report.settings)} settings"), *groups),
    ]


def _command(words: Sequence[str]) -> Html:
    return element("pre", *(part for word in words for part in (element("span", word), " ")))


def warnings(report: Report) -> list[Html]:
    """What a reader must know before the figures."""
    found = []
    for chains in report.chains:
        s = chains.summary
        if s.get("warning"):
            found.append((chains.title, s["warning"]))
        found += _of_partition(chains.title, s.get("log_partition"))
        if s.get("on_floor"):
            found.append((chains.title, f"{s['on_floor']:.1%} lie on the energy's floor E = -10, where it is flat"))
    if warning := report.evaluation.get("warning"):
        found.append(("gebm evaluate", warning))
    if of := kale_of(report):
        found += _of_partition("Log-partition", of["kale"]["test"])
        for name, partition in of.get("partition", {}).items():
            found += _of_partition(f"Log-partition, {name}", partition)
    return [element("p", element("strong", f"{title}: "), warning, class_="warning") for title, warning in found]


def _of_partition(title: str, partition: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What speaks against a log-partition; those of earlier versions have their ESS alone to go by, or nothing."""
    partition = partition or {}
    few = "a few base samples decide it (relative ESS < 0.1): its error is unknown"
    warning = partition.get("warning", few if partition.get("relative_ess", 1) < 0.1 else "")
    return [(title, warning)] if warning else []


def figures(report: Report) -> list[Html]:
    blocks = []
    titled = [(chains.title, chains.summary) for chains in report.chains]
    titled += [("gebm evaluate: samples", report.evaluation.get("samples", {})), ("gebm evaluate", report.evaluation)]
    for title, summary in titled:
        if metrics := summary.get("metrics"):
            rows = [
                (_better(name, m), _value(m.get("base")), _value(m.get("gebm")), _value(_gain(m)))
                for name, m in metrics.items()
            ]
            blocks += [
                element("h3", title),
                table(rows, header=("", "Base", "GEBM", "Gain")),
                note(f"Features: {summary['features']}. {text.metric_note({**summary, 'metrics': metrics})}."),
            ]
    if of := kale_of(report):
        on_model = text.kale_rows(of) + (text.partition_rows(of) if "partition" in of else [])
        blocks += [element("h3", "KALE and the log-partition"), table(on_model)]
    if not blocks and report.rows:
        end = report.rows[-1]
        counter, steps = STAGES[end["stage"]]
        of_stage = [row for row in report.rows if row["stage"] == end["stage"]]
        last = {k: v for row in of_stage for k, v in row.items() if isinstance(v, float)}
        caption = f"The last of each that the log has of the {steps}, which ended at {end[counter]}: "
        blocks = [
            table([(key, f"{value:.4g}") for key, value in last.items()]),
            note(f"{caption}losses are means since the line before; KALE, c and energies in nats."),
        ]
    return blocks


def samples(report: Report) -> list[Html]:
    blocks = []
    for chains in report.chains:
        steps, pictures = chains.summary["steps"], []
        for name, caption in (
            ("base.png", "Before: samples of the base"),
            ("samples.png", f"After {steps} steps at beta {chains.summary['beta']:g}, from the same latents"),
            ("chains.gif", f"The same chains moving, from step 0 to {steps}"),
        ):
            if (chains.folder / name).is_file() and (steps or name == "base.png"):
                pictures.append(figure(image(chains.folder / name, caption), caption))
        blocks += [element("h3", chains.title), columns(pictures, "pictures")]
        between = sorted(chains.folder.glob("step-*.png"), key=_number)[1:]
        blocks += _row(_some(between, BETWEEN), "After {} steps")
    if not report.chains and report.base_images is not None:
        caption = f"{len(report.base_images[:64])} samples of the base, drawn for this report with seed 0"
        blocks.append(columns([figure(tiled(report.base_images[:64], caption), caption)], "pictures"))
    return blocks


def training(report: Report) -> list[Html]:
    keys = list(dict.fromkeys(key for row in report.rows for key in row))
    distances = []
    for name in (key.removesuffix("_base") for key in keys if key.endswith("_base")):
        n = next((row[f"{name}_n"] for row in report.rows if f"{name}_n" in row), "the")
        caption = f"{name} of {n} base samples, against the test images"
        caption += ", with a 95 % band" if f"{name}_base_low" in keys else ""
        distances.append((f"{name} (squared feature units)", caption, {f"{name}_base": ("base", "base")}))
    charts = []
    for ylabel, caption, series in [*TRAINING, *distances, RATES]:
        if panels := _panels(report.rows, series):
            charts.append(figure(curves(panels, ylabel, caption), f"{caption}."))
    grids = sorted((report.folder / "grids").glob("joint-*.png"), key=_number)
    blocks = [columns(charts)] if charts else []
    return blocks + _row(_some(grids, GRIDS), "The base after {} steps")


SECTIONS: dict[str, Callable[[Report], list[Html]]] = {
    "Figures": figures,
    "What was run": what_was_run,
    "Samples": samples,
    "Along the chains": along_the_chains,
    "Energies": energies,
    "Nearest training images": nearest_training_images,
    "Sampler": sampler,
    "Training": training,
}


def _panels(rows: Sequence[Mapping[str, Any]], series: Mapping[str, tuple[str, str]]) -> list[Panel]:
    """The series against the steps of each stage that has some of them."""
    panels = []
    for stage, (counter, xlabel) in STAGES.items():
        lines = []
        for key, (name, role) in series.items():
            of_stage = [row for row in rows if row["stage"] == stage and key in row]
            x, y = ([row[k] for row in of_stage] for k in (counter, key))
            band = [[row[f"{key}_{end}"] for row in of_stage if f"{key}_{end}" in row] for end in ("low", "high")]
            if of_stage:
                lines.append(Line(name, x, y, role, *(band if len(band[0]) == len(x) else ())))
        if lines:
            panels.append(Panel(xlabel, lines))
    return panels


def _better(name: str, metric: Mapping[str, Any]) -> Html:
    return element("span", name, element("small", f"{metric['better']} is better"))


def _gain(metric: Mapping[str, Any]) -> dict[str, Any] | None:
    return {"value": metric["gain"], "ci": metric["gain_ci"]} if "gain" in metric else None


def _value(entry: Mapping[str, Any] | None) -> Html | str:
    """A value over its interval."""
    if not entry:
        return ""
    value, low, high = text.rounded(entry)
    return element("span", value, element("small", f"{low} to {high}"))


def _number(path: Path) -> int:
    """The step in a picture's name."""
    return int(path.stem.rpartition("-")[2])


def _some(paths: Sequence[Path], most: int) -> list[Path]:
    """At most so many, evenly spaced, the first and the last among them."""
    chosen = np.linspace(0, len(paths) - 1, min(most, len(paths)))
    return [paths[round(i)] for i in chosen]


def _row(paths: Iterable[Path], caption: str) -> list[Html]:
    captions = {path: caption.format(_number(path)) for path in paths}
    return [columns([figure(image(path, c), c) for path, c in captions.items()], "row")] if captions else []
