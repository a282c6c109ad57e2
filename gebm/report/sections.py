"""The sections of the page, each a function of what is known of a run to its blocks; none where nothing is known."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from gebm.pictures import grid
from gebm.report import text
from gebm.report.charts import Line, Panel, curves, histogram
from gebm.report.contents import Chains, Report
from gebm.report.html import Html, columns, element, figure, image, note, table

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
TRACED = 8  # chains drawn
ROLES = ("gebm", "base", "test", "train")


def what_was_run(report: Report) -> list[Html]:
    changed = [s for s in report.settings if s.value != s.default]
    groups = [
        table([(s.flag, s.value, s.meaning) for s in group], header=(title, "Value", "Meaning"))
        for title, group in groupby(report.settings, key=lambda s: s.group)
    ]
    return [
        table(report.about),
        element("h3", "Settings that differ from the defaults"),
        table([(s.flag, s.value, s.default or "(empty)") for s in changed], header=("Flag", "Value", "Default")),
        note("The same again:"),
        element("pre", report.command),
        element("details", element("summary", f"All {len(report.settings)} settings"), *groups),
    ]


def warnings(report: Report) -> list[Html]:
    """What a reader must know before the figures."""
    found = []
    for chains in report.chains:
        s = chains.summary
        if s.get("warning"):
            found.append((chains.title, s["warning"]))
        if s.get("on_floor"):
            found.append((chains.title, f"{s['on_floor']:.1%} lie on the energy's floor E = -10, where it is flat"))
    if warning := report.evaluation.get("warning"):
        found.append(("gebm evaluate", warning))
    if (of := _kale(report)) and of["kale"]["test"]["relative_ess"] < 0.1:
        found.append(("Log-partition", "a few base samples decide it (relative ESS < 0.1): its error is unknown"))
    return [element("p", element("strong", f"{title}: "), warning, class_="warning") for title, warning in found]


def figures(report: Report) -> list[Html]:
    blocks = []
    titled = [(chains.title, chains.summary) for chains in report.chains]
    titled += [("gebm evaluate: samples", report.evaluation.get("samples", {})), ("gebm evaluate", report.evaluation)]
    for title, summary in titled:
        if metrics := _metrics(summary):
            rows = [
                (name, _value(m.get("base")), _value(m.get("gebm")), _value(_gain(m)), m["better"])
                for name, m in metrics.items()
            ]
            blocks += [
                element("h3", title),
                table(rows, header=("", "Base", "GEBM", "Gain", "Better")),
                note(f"{_counts(summary)}. In small print 95 % intervals; gain: by how much the GEBM is better."),
            ]
    if of := _kale(report):
        rows = text.kale_rows(of) + (text.partition_rows(of) if "partition" in of else [])
        blocks += [element("h3", "KALE and the log-partition"), table(rows)]
    if not blocks and report.rows:
        last = {k: v for row in report.rows for k, v in row.items() if isinstance(v, float)}
        blocks = [
            table([(key, text.figure(value)) for key, value in last.items()]),
            note("The last line of the training log: means since the line before; KALE, c and energies in nats."),
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
        blocks += [element("h3", chains.title), columns(pictures)]
        between = sorted(chains.folder.glob("step-*.png"), key=_number)[1:]
        blocks += _row(_some(between, BETWEEN), "After {} steps")
    if not report.chains and report.base_images is not None:
        caption = f"{len(report.base_images[:64])} samples of the base, drawn for this report with seed 0"
        blocks.append(columns([figure(image(_png(report.base_images[:64]), caption), caption)]))
    return blocks


def along_the_chains(report: Report) -> list[Html]:
    charts = []
    for chains in report.chains:
        summary = chains.summary
        if not summary["steps"]:
            continue
        if curve := summary.get("curve"):
            charts.append(_distance_chart(chains, curve))
        trace = summary["energy_trace"]
        line = Line("", [int(step) for step in trace], list(trace.values()))
        caption = f"{chains.title}: mean energy of {summary['n_fake']} chains; step 0 is the base."
        charts.append(figure(curves([Panel("sampling step", [line])], "mean energy (nats)", caption), caption))
    return [columns(charts)] if charts else []


def _distance_chart(chains: Chains, curve: Mapping) -> Html:
    name, entry = next(iter(_metrics(chains.summary).items()))
    values = {int(step): found if isinstance(found, Mapping) else {"value": found} for step, found in curve.items()}
    low, high = zip(*(v.get("ci", (v["value"],) * 2) for v in values.values()))
    base = entry["base"]
    lines = [
        Line("base", [0], [base["value"]], "base", *([end] for end in base["ci"]), level=True),
        Line("GEBM", list(values), [v["value"] for v in values.values()], "gebm", low, high),
    ]
    caption = (
        f"{chains.title}: {name} after each number of steps, with 95 % bands; {_counts(chains.summary)}. "
        "The step to sample at should be chosen on other images than these."
    )
    return figure(curves([Panel("sampling step", lines)], f"{name} (squared feature units)", caption), caption)


def energies(report: Report) -> list[Html]:
    if not report.energies:
        return []
    rows = [
        (name, f"{e.mean():.3f}", f"{e.std():.3f}", str(len(e))) for name, (_, e) in report.energies.items()
    ]
    caption = (
        "Energies on one axis, low is likely. What a good energy still finds to mend lies between base and data; train "
        "left of test is over-fitting. The outermost 0.1 % on either side is not drawn."
    )
    chart = histogram(report.energies, "energy E (nats)", "density (1/nat)", caption)
    return [columns([figure(chart, caption), table(rows, header=("", "Mean (nats)", "Spread (nats)", "Count"))])]


def nearest_training_images(report: Report) -> list[Html]:
    near = report.neighbours
    if near is None:
        return []
    c, (low, high) = near.closeness, near.closeness.ci
    verdict = "No difference from images that were not trained on is seen."
    if low > 0.5:
        verdict = (
            "The samples lie closer to the training images than test images do: copies, or samples more typical than "
            "real images are. The closest pairs below tell which."
        )
    elif high < 0.5:
        verdict = "The samples lie further from the training images than test images do: no sign of copies."
    lines = [
        Line(f"{name} ({len(d)})", np.sort(d), np.arange(1, len(d) + 1) / len(d), role)
        for name, (role, d) in near.distances.items()
    ]
    caption = f"Fraction of images within a distance of one of the {near.n_train} training images, in {near.space}."
    chart = curves([Panel(f"distance to the nearest training image ({near.space})", lines)], "fraction", caption)
    words = element(
        "div",
        element("p", verdict),
        element(
            "p",
            f"A sample is closer to its nearest training image than a test image is to its own with probability "
            f"{c.probability:.3f} ({low:.3f} to {high:.3f}); 0.5 is as new as test images are, more is closer. The "
            f"median sample lies at {c.ratio:.2f} times the distance of the median test image, and {c.below:.1%} of "
            f"the samples are closer than the closest 5 % of the test images.",
        ),
    )
    pairs = [
        figure(image(_png(np.stack([sample, train]), 2), "a sample, and the training image nearest to it"), f"{d:.3g}")
        for d, sample, train in near.pairs
    ]
    return [
        columns([words, figure(chart, caption)]),
        note(f"The {near.closest} samples closest to a training image: the sample, that image, their distance."),
        columns(pairs[: near.closest], "pairs"),
        note(f"The first {len(pairs) - near.closest} samples, whatever their distance."),
        columns(pairs[near.closest :], "pairs"),
    ]


def sampler(report: Report) -> list[Html]:
    blocks = []
    for chains in report.chains:
        summary = chains.summary
        rows = [
            text.sampler_row(summary),
            *text.mixing_rows(summary),
            ("relative ESS of exp(-beta E)", "{importance_relative_ess:.3g}, {n_fake} base samples".format(**summary)),
        ]
        if summary["seconds"]:
            rows.append(("speed", f"{summary['evaluations_per_s']:.3g} evaluations a second"))
        blocks += [element("h3", chains.title), columns([table(rows), *_traces(chains)])]
    return blocks


def _traces(chains: Chains) -> list[Html]:
    file, steps = chains.folder / "trace.npz", chains.summary["steps"]
    if not (file.is_file() and steps):
        return []
    with np.load(file, allow_pickle=False) as archive:
        energy = archive["energy"]
    x = np.arange(1, energy.shape[1] + 1) * (steps // energy.shape[1])
    lines = [Line("", x, chain, role, width=0.8) for chain, role in zip(energy[:TRACED], ROLES * TRACED)]
    caption = f"{chains.title}: beta E of {len(lines)} of the {len(energy)} chains recorded."
    return [figure(curves([Panel("sampling step", lines)], "beta E (nats)", caption), caption)]


def training(report: Report) -> list[Html]:
    keys = list(dict.fromkeys(key for row in report.rows for key in row))
    distances = [
        (f"{name} (squared feature units)", f"{name} of the base, against test images", {key: ("base", "base")})
        for key in keys
        if (name := key.removesuffix("_base")) != key
    ]
    charts = []
    for ylabel, caption, series in [*TRAINING, *distances, RATES]:
        if panels := _panels(report.rows, series):
            charts.append(figure(curves(panels, ylabel, caption), f"{caption}."))
    grids = sorted((report.folder / "grids").glob("joint-*.png"), key=_number)
    blocks = [columns(charts)] if charts else []
    return blocks + _row(_some(grids, GRIDS), "The base after {} steps")


SECTIONS: dict[str, Callable[[Report], list[Html]]] = {
    "What was run": what_was_run,
    "Figures": figures,
    "Samples": samples,
    "Along the chains": along_the_chains,
    "Energies": energies,
    "Nearest training images": nearest_training_images,
    "Sampler": sampler,
    "Training": training,
}


def _panels(rows: Sequence[Mapping], series: Mapping[str, tuple[str, str]]) -> list[Panel]:
    """The series against the steps of each stage that has some of them."""
    panels = []
    for stage, (counter, xlabel) in STAGES.items():
        lines = []
        for key, (name, role) in series.items():
            points = [(row[counter], row[key]) for row in rows if row["stage"] == stage and key in row]
            if points:
                lines.append(Line(name, *zip(*points), role))
        if lines:
            panels.append(Panel(xlabel, lines))
    return panels


def _metrics(summary: Mapping) -> Mapping[str, Mapping]:
    """Name -> base, GEBM and gain with their intervals; in older summaries one distance."""
    if "metrics" in summary or not summary.get("features"):
        return summary.get("metrics") or {}
    two = {
        key: {"value": summary[key]["distance"], "ci": summary[key]["ci"]} for key in ("base", "gebm") if key in summary
    }
    gain = {key: summary[key] for key in ("gain", "gain_ci") if key in summary}
    return {summary.get("distance_name", f"FD({summary['features']})"): {"better": "lower", **two, **gain}}


def _kale(report: Report) -> Mapping | None:
    """The summary or evaluation that holds KALE; in older ones its gap has no error."""
    summaries = [chains.summary for chains in report.chains[:1]] + [report.evaluation]
    found = next((summary for summary in summaries if "kale" in summary), None)
    if found is None or "kale_gap" in found:
        return found
    train, test = (found["kale"][split]["donsker_varadhan"] for split in ("train", "test"))
    return {**found, "kale_gap": {"value": train - test, "se": None}}


def _counts(summary: Mapping) -> str:
    return "{n_fake} samples, {n_real} images of {split}; features: {features}".format(**summary)


def _gain(metric: Mapping) -> dict | None:
    return {"value": metric["gain"], "ci": metric["gain_ci"]} if "gain" in metric else None


def _value(entry: Mapping | None) -> Html | str:
    """A value over its interval."""
    if not entry:
        return ""
    interval = [element("small", "{} to {}".format(*map(text.figure, entry["ci"])))] if entry.get("ci") else []
    return element("span", text.figure(entry["value"]), *interval)


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


def _png(images: np.ndarray, columns: int | None = None) -> bytes:
    """A grid of uint8 images (N, C, H, W) at one pixel a pixel: the page enlarges it."""
    buffer = io.BytesIO()
    grid(images, columns, side=1).save(buffer, format="PNG")
    return buffer.getvalue()
