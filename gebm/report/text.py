"""Aligned tables of names and values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ess_row", "estimate", "gain", "kale_rows", "metric_note", "metric_rows", "mixing_rows", "mixing_warning"]
__all__ += ["nll_rows", "over_fitting", "partition_rows", "rounded", "sampler_row", "side_by_side", "table"]
__all__ += ["tail_text"]

FAR = 0.05  # nats between c and the log-partition, from which on it is told
FEW = 5  # effective samples, below which their number is not known


def table(rows: Sequence[Sequence[str]], title: str = "") -> str:
    """Rows of a name and values as aligned text under an underlined title."""
    widths = [max(len(row[i]) if i < len(row) else 0 for row in rows) for i in range(max(map(len, rows)))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([title, "-" * len(title), *lines] if title else lines)


def rounded(entry: Mapping[str, Any]) -> list[str]:
    """A figure and the ends of its 95 % interval, to two digits of the interval's width, and never -0."""
    low, high = entry["ci"]
    scale = high - low or abs(entry["value"]) or 1.0
    decimals = max(0, 1 - math.floor(math.log10(scale)))
    return [f"{round(x, decimals) + 0.0:.{decimals}f}" for x in (entry["value"], low, high)]


def estimate(entry: Mapping[str, Any]) -> str:
    """A figure with its 95 % interval: `25.0 (24.2 to 25.9)`."""
    return "{} ({} to {})".format(*rounded(entry))


def gain(entry: Mapping[str, Any]) -> str:
    """By how much the GEBM is better, with the 95 % interval."""
    return estimate({"value": entry["gain"], "ci": entry["gain_ci"]})


def metric_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the metrics of a comparison of base and GEBM, or of samples alone; the first row is the header."""
    metrics = summary["metrics"]
    if all("base" not in entry for entry in metrics.values()):
        return [("", "samples"), *((name, estimate(entry["gebm"])) for name, entry in metrics.items())]
    rows = ((name, estimate(e["base"]), estimate(e["gebm"]), gain(e)) for name, e in metrics.items())
    return [("", "base", "GEBM", "gain"), *rows]


def metric_note(summary: Mapping[str, Any]) -> str:
    """What the metrics were measured on, and what the columns mean."""
    where = f"{summary['n_fake']} samples, {summary['n_real']} images of {summary['split']}"
    note = f"{where}; 95 % intervals at these numbers"
    if any("base" in entry for entry in summary["metrics"].values()):
        note += "; gain: by how much the GEBM is better, chains paired"
    if any(name.startswith("precision") for name in summary["metrics"]):
        note += f"; precision to coverage: {summary['n_neighbours']} of each"
    if summary.get("sampler") == "smc":
        note += "; particles of one population are relatives, so the true intervals are wider"
    if summary.get("distance_caution"):  # summaries of earlier versions have none
        note += f"; {summary['distance_caution']}"
    if summary["left_out"]:
        note += f"; with more images also {', '.join(summary['left_out'])}"
    return note


def side_by_side(summaries: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the figures of several subjects, a column for each and for its base; the first row is the header."""
    columns: dict[str, dict[str, str]] = {}
    for name, summary in summaries.items():
        metrics = summary.get("metrics", {})
        if any("base" in entry for entry in metrics.values()):
            columns[f"{name}: base"] = {key: estimate(entry["base"]) for key, entry in metrics.items()}
            name = f"{name}: GEBM"
        of_model = {key: estimate(entry["gebm"]) for key, entry in metrics.items()}
        if metrics:
            of_model["samples"] = str(summary["n_fake"])
            of_model["real images"] = f"{summary['n_real']}, {summary['split']}"
        if "sampler" in summary:
            of_model["sampler"] = "{sampler}, beta {beta:.4g}, {steps} steps".format(**summary)
            of_model["mixed"] = "no, refined samples" if summary.get("warning") else "yes"
        if "kale" in summary:
            of_model |= {f"KALE {split}": f"{kale['donsker_varadhan']:.3f}" for split, kale in summary["kale"].items()}
            of_model["KALE train minus test"] = over_fitting(summary["kale_gap"])
        if "nll" in summary:
            columns[f"{name}: base"] = _nll_column(summary["nll"], "base")
            of_model |= _nll_column(summary["nll"], "gebm")
        columns[name] = of_model
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    return [("", *columns), *((key, *(column.get(key, "") for column in columns.values())) for key in keys)]


def sampler_row(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Row of a sampler's setting."""
    size = "gamma {gamma:g} (h {step_size:.3g}), " if summary["gamma"] is not None else "h {step_size:.3g} (tuned), "
    size = size if summary["step_size"] is not None else ""  # every proposal a fresh draw
    own = {"kappa": "friction {kappa:g} {splitting}, ", "leapfrog": "{leapfrog} leapfrog steps, "}
    size += "".join(text for key, text in own.items() if summary.get(key) is not None)
    text = ("{sampler}, beta {beta:.4g}, " + size + "{steps} steps").format(**summary)
    if summary.get("beta_ramp"):
        text += f", beta raised over the first {summary['beta_ramp']}"
    factor, every = summary["step_decay"] or (1, 0)
    if every and summary["steps"] > every and summary["gamma"] is not None:
        text += f", gamma x{factor:g} every {every}"
    return "sampler", text


def mixing_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows on how the chains fared: acceptance, and what their record says of mixing."""
    if not summary["steps"]:
        return [("no steps", "these are samples of the base")]
    d = summary["diagnostics"]
    rows = [("acceptance", "{acceptance:.3f}".format(**summary))] if summary["acceptance"] < 1 else []
    if summary["adapted"]:
        tuned, kind = summary["adapted"]["steps"], "step size"
        kind += " and scales" if isinstance(summary["adapted"]["scale"], list) else ""
        rows.append(("warm-up", f"{tuned} steps that tuned the {kind}; not among the steps above"))
    if summary["nonfinite"]:
        rows.append(("not finite", f"{summary['nonfinite']:.2%} of the proposals, all rejected"))
    if d["rhat_projection"] is not None:
        energy = "constant" if d["rhat_energy"] is None else f"{d['rhat_energy']:.3f}"
        rows.append(("split R-hat", f"energy {energy}, worst projection {d['rhat_projection']:.3f}"))
        size = f"{d['ess_energy']:.0f} of {d['chains'] * d['draws']} ({d['chains']} chains x {d['draws']} draws)"
        if summary["mixed"]:  # or the numbers would only say how far apart the chains are
            rows[-1] = (rows[-1][0], f"{rows[-1][1]}: mixed")
            size += f", {d['ess_per_1000_evaluations']:.3g} per 1000 evaluations, {summary['ess_per_s']:.3g} a second"
        rows.append(("ESS of the energy", size))
    if d["left_start"] is not None:
        rows.append(("left their start", "{left_start:.0%} of the chains".format(**d)))
    if summary["log_partition"]:
        rows += _partition_rows("log-partition", summary["log_partition"], "of exp(-beta E)")
    return rows


def ess_row(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Row of how far the posterior is from the base: the relative ESS of importance weights of the starts."""
    ess, n = summary["importance_relative_ess"], summary["n_fake"]
    text = f"{ess:.3f}, {n:,} base samples (1: the energy changes nothing; near 0: the posterior is far from the base)"
    if ess * n < FEW:
        text = f"below {FEW / n:.2g}: of {n:,} base samples some {ess * n:.0f} count, too few to tell it"
    return "relative ESS of exp(-beta E)", text


def mixing_warning(summary: Mapping[str, Any]) -> str:
    """What keeps the samples from being draws of the posterior, in words; empty if nothing is seen."""
    if not summary["steps"] or summary["mixed"]:
        return ""
    d, ess = summary["diagnostics"], summary["importance_relative_ess"]
    if summary["sampler"] == "smc":
        se = summary["log_partition"]["se"]  # 0 where the energy changes nothing
        lost = se is None or not se <= 0.5
        reason = "most particles descend from few starts; give more chains (--sample_b_size)" if lost else ""
    elif summary["sampler"] == "sir":
        effective = (summary["steps"] + 1) * ess
        reason = f"a chain chose among {effective:.2g} effective prior draws; give more steps" if effective < 10 else ""
    elif not summary["moves"]:
        reason = f"{summary['sampler']} goes down the energy and does not sample"
    elif d["chains"] == 1:
        reason = "one chain cannot be compared with others to tell whether it has mixed"
    elif d["rhat_projection"] is None:
        reason = "the chains are too short to tell whether they have mixed"
    else:
        worst = max(d["rhat_energy"] or 0, d["rhat_projection"])
        stayed = f", {1 - d['left_start']:.0%} still where they started" if d["left_start"] < 0.995 else ""
        reason = f"the chains have not mixed (R-hat {worst:.2f}{stayed})"
    return f"{reason}: these are refined samples, not posterior draws" if reason else ""


def nll_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the negative log-likelihoods of one split, or of their means over splits; the first is the header."""
    title = f"mean of {len(summary['seeds'])} splits, nats" if "seeds" in summary else "nats a row"
    rows: list[tuple[str, ...]] = [(title, "base", "GEBM", "gain")]
    for split, found in summary["nll"].items():
        name = split if "seeds" in summary else f"{split}, {found['base']['n']} rows"
        rows.append((name, *map(_with_error, found.values())))
    return rows


def _nll_column(splits: Mapping[str, Any], model: str) -> dict[str, str]:
    return {f"NLL {split}": _with_error(found[model]) for split, found in splits.items()}


def _with_error(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None or not math.isfinite(entry["value"]):
        return "infinite"
    return f"{round(entry['value'], 4) + 0.0:.4f} +- {entry['se']:.4f}"


def partition_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the log-partition by other estimators."""
    return [
        row
        for name, found in summary["partition"].items()
        for row in _partition_rows(f"log-partition, {name}", found, "{n} particles".format(**found))
    ]


def _partition_rows(name: str, found: Mapping[str, Any], of: str) -> list[tuple[str, str]]:
    """Row of a log-partition, and one of what speaks against it; summaries of earlier versions have less."""
    ess = f", relative ESS {found['relative_ess']:.3f}" if "relative_ess" in found else ""
    rows = [(name, "{value:.3f} +- {se:.3f}, ".format(**found) + of + ess + tail_text(found))]
    return rows + ([("warning", found["warning"])] if found.get("warning") else [])


def tail_text(found: Mapping[str, Any]) -> str:
    """The Pareto k-hat of weights, where it is known, to go on with after their ESS."""
    k = found.get("pareto_k")
    return f", Pareto k-hat {k:.2f}" if k is not None and math.isfinite(k) else ""


def over_fitting(gap: Mapping[str, Any]) -> str:
    """The gap of KALE between train and test in words."""
    sign = "a sign of over-fitting" if gap["value"] > 2 * gap["se"] else "no sign of over-fitting"
    return f"{gap['value']:.3f}, standard error {gap['se']:.3f}: {sign}"


def kale_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of KALE on both splits and of the log-partition."""
    train, test = summary["kale"]["train"], summary["kale"]["test"]
    text = "{donsker_varadhan:.3f} nats ({fenchel:.3f} with c), {n_real} images"
    off = abs(test["c"] - test["log_partition"]) - 3 * test["log_partition_se"]
    return [
        ("KALE train", text.format(**train)),
        ("KALE test", text.format(**test)),
        ("KALE train minus test", over_fitting(summary["kale_gap"])),
        (
            "log-partition",
            f"c = {test['c']:.3f}, Monte Carlo {test['log_partition']:.3f}, standard error "
            f"{test['log_partition_se']:.3f} ({test['n_fake']} base samples)",
        ),
        ("relative ESS of exp(-E)", f"{test['relative_ess']:.3f}{tail_text(test)}"),
        *([("warning", test["warning"])] if test.get("warning") else []),
        *([("note", f"c is {off:.2g} nats off the log-partition: go by the figures without c")] if off > FAR else []),
    ]
