"""The sections on what the samples are: distances and energies along the chains, memorisation, the sampler's record."""

from collections.abc import Mapping

import numpy as np

from gebm.data.arrays import load_npz
from gebm.report import text
from gebm.report.charts import Line, Panel, curves, histogram
from gebm.report.contents import Chains, Report
from gebm.report.html import Html, columns, element, figure, note, table, tiled

__all__ = ["along_the_chains", "energies", "nearest_training_images", "sampler"]

ROLES = ("gebm", "base", "test", "train")  # colours of the chains drawn


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
    name = chains.summary["distance"]
    base = chains.summary["metrics"][name]["base"]
    values = {int(step): found for step, found in curve.items()}
    low, high = zip(*(found["ci"] for found in values.values()))
    lines = [
        Line("base", [0], [base["value"]], "base", *([end] for end in base["ci"]), level=True),
        Line("GEBM", list(values), [v["value"] for v in values.values()], "gebm", low, high),
    ]
    counts = "{n_fake} samples, {n_real} images of {split}, {features} features".format(**chains.summary)
    caption = (
        f"{chains.title}: {name} along the chains, with 95 % bands; {counts}. Choose the number of steps on other "
        "images than these."
    )
    return figure(curves([Panel("sampling step", lines)], f"{name} (squared feature units)", caption), caption)


def energies(report: Report) -> list[Html]:
    if not report.energies:
        return []
    rows = [(name, f"{e.mean():.3f}", f"{e.std():.3f}", str(len(e))) for name, (_, e) in report.energies.items()]
    caption = (
        "Energies on one axis, low is likely. The gap between base samples and images is what the energy sees to mend; "
        "train clearly left of test is over-fitting. The outermost 0.1 % on either side is not drawn."
    )
    chart = histogram(report.energies, "energy E (nats)", "density (1/nat)", caption)
    return [columns([figure(chart, caption), table(rows, header=("", "Mean (nats)", "Std. dev. (nats)", "Count"))])]


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
    searched = f"the {near.n_train} training images"
    if near.n_searched < near.n_train:
        searched = f"{near.n_searched} of {searched}, chosen at random (copies of the others are not seen)"
    caption = f"Fraction of images within a distance, in {near.space}, of one of {searched}."
    chart = curves([Panel(f"distance to the nearest training image ({near.space})", lines)], "fraction", caption)
    words = element(
        "div",
        element("p", verdict),
        element(
            "p",
            f"A sample is closer to its nearest training image than a test image is to its own with probability "
            f"{c.probability:.3f} ({low:.3f} to {high:.3f}); 0.5 is as new as test images are, more is closer. The "
            f"median sample lies at {c.ratio:.2f} times the distance of the median test image. Closer than the closest "
            f"5 % of the test images are {100 * c.below:.1f} % of the samples.",
        ),
    )
    pairs = [
        figure(tiled(np.stack([sample, train]), "a sample, and the training image nearest to it", 2), f"{d:.3g}")
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
    energy = load_npz(file, ["energy"])["energy"]
    x = np.arange(1, energy.shape[1] + 1) * (steps // energy.shape[1])
    lines = [Line("", x, chain, role, width=0.8) for chain, role in zip(energy, ROLES)]
    caption = f"{chains.title}: beta E of the first {len(lines)} of {len(energy)} chains."
    return [figure(curves([Panel("sampling step", lines)], "beta E (nats)", caption), caption)]
