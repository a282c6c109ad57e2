"""One aligned table of names and values."""

import math
from collections.abc import Mapping, Sequence

__all__ = ["distance_row", "distance_rows", "kale_rows", "mixing_rows", "mixing_warning", "partition_rows"]
__all__ += ["sampler_row", "table"]


def table(rows: Sequence[tuple[str, str]], title: str = "") -> str:
    """Rows of (name, value) as aligned text under an underlined title."""
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join([title, "-" * len(title), *lines] if title else lines)


def distance_row(entry: Mapping) -> str:
    """A distance with its 95 % interval: `25.01 (24.20 to 25.90)`."""
    low, high = entry["ci"]
    return f"{entry['distance']:.2f} ({low:.2f} to {high:.2f})"


def distance_rows(summary: Mapping) -> list[tuple[str, str]]:
    """Rows of a comparison of base and GEBM."""
    name = summary["distance_name"]
    low, high = summary["gain_ci"]
    where = f"{summary['n_fake']} samples, {summary['n_real']} images of {summary['split']}"
    how = "95 % bootstrap over paired chains, reference fixed"
    return [
        (f"{name} base", f"{distance_row(summary['base'])}   {where}"),
        (f"{name} GEBM", distance_row(summary["gebm"])),
        ("gain", f"{summary['gain']:.2f} ({low:.2f} to {high:.2f})   {how}"),
    ]


def sampler_row(summary: Mapping) -> tuple[str, str]:
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


def mixing_rows(summary: Mapping) -> list[tuple[str, str]]:
    """Rows on how the chains fared: acceptance, and what their record says of mixing."""
    if not summary["steps"]:
        return [("no steps", "these are samples of the base")]
    d, rows = summary["diagnostics"], [("acceptance", "{acceptance:.3f}".format(**summary))]
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
            size += (
                f", {d['ess_per_1000_evaluations']:.3g} per 1000 evaluations, {summary['ess_per_s']:.3g} a second"
            )
        rows.append(("ESS of the energy", size))
    if d["left_start"] is not None:
        rows.append(("left their start", "{left_start:.0%} of the chains".format(**d)))
    if summary["log_partition"]:
        rows.append(("log-partition", "{value:.3f} +- {se:.3f}, of exp(-beta E)".format(**summary["log_partition"])))
    return rows


def mixing_warning(summary: Mapping) -> str:
    """What keeps the samples from being draws of the posterior, in words; empty if nothing is seen."""
    if not summary["steps"] or summary["mixed"]:
        return ""
    d, ess = summary["diagnostics"], summary["importance_relative_ess"]
    if summary["sampler"] == "smc":
        reason = ""
        if not (summary["log_partition"]["se"] or math.inf) <= 0.5:
            reason = "most particles descend from few starts; give more chains (--sample_b_size)"
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
        reason = f"the chains have not mixed (R-hat {worst:.2f}, {d['left_start']:.0%} left their start)"
    return f"{reason}: these are refined samples, not posterior draws" if reason else ""


def partition_rows(summary: Mapping) -> list[tuple[str, str]]:
    """Rows of the log-partition by other estimators."""
    text = "{value:.3f} +- {se:.3f} ({n} particles)"
    return [(f"log-partition, {name}", text.format(**found)) for name, found in summary["partition"].items()]


def kale_rows(summary: Mapping) -> list[tuple[str, str]]:
    """Rows of KALE on both splits and of the log-partition."""
    train, test = summary["kale"]["train"], summary["kale"]["test"]
    text = "{donsker_varadhan:.3f} nats ({fenchel:.3f} with c), {n_real} images"
    return [
        ("KALE train", text.format(**train)),
        ("KALE test", text.format(**test)),
        (
            "log-partition",
            f"c = {test['c']:.3f}, Monte Carlo {test['log_partition']:.3f} +- {test['log_partition_se']:.3f} "
            f"({test['n_fake']} base samples)",
        ),
        ("relative ESS of exp(-E)", f"{test['relative_ess']:.3f}"),
    ]
