"""What a run prints: one aligned table of names and values."""

from collections.abc import Mapping, Sequence

__all__ = ["distance_row", "distance_rows", "kale_rows", "sampler_row", "table"]


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
    return "sampler", "{sampler}, beta {beta:g}, gamma {gamma:g} (h {step_size:.3g}), {steps} steps".format(**summary)


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
