"""What a finished row comes to: our figures beside the published ones, as data and as a page."""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rows import Row, Scale
from stages import Place, Stage, settings_of

from gebm.files import atomic_write
from gebm.report import estimate, gain, sampler_row

__all__ = ["image_figures", "markdown", "page", "pictures_of", "published", "summary", "toy_figures", "uci_figures"]

Found = Mapping[str, Any]
Figures = dict[str, Any]

STAND_IN = (
    "**Stand-in data**: digits and random rows in the formats of the published sets. These figures say that the row "
    "runs, and nothing else."
)
COMPARE = "The two columns of ratios, how much each energy improves its own base, are all that may be set side by side."


@cache
def published() -> Figures:
    """All of published.yaml."""
    found: Figures = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    return found


def image_figures(row: Row, scale: Scale, place: Place, stages: Sequence[Stage]) -> list[Figures]:
    """A figure for each setting, from its summary."""
    found = []
    for setting, stage in zip(settings_of(row, scale), stages[1:], strict=True):
        summary = json.loads((stage.folder(place) / "summary.json").read_text())
        metric = summary["metrics"][summary["distance"]]
        found.append({
            "setting": setting.name, "sampler": sampler_row(summary)[1], "beta": summary["beta"],
            "steps": summary["steps"], "measure": summary["distance"], "features": summary["features"],
            "split": summary["split"], "n_real": summary["n_real"], "n_fake": summary["n_fake"],
            "base": metric["base"], "gebm": metric["gebm"], "gain": metric["gain"], "gain_ci": metric["gain_ci"],
            "ratio": metric["gebm"]["value"] / metric["base"]["value"], "published": _beside(row, setting.name),
            "relative_ess": summary["importance_relative_ess"], "mixed": summary["mixed"],
            "rhat": summary["diagnostics"]["rhat_projection"], "left_start": summary["diagnostics"]["left_start"],
            "curve": {step: entry["value"] for step, entry in summary["curve"].items()}, "run": stage.name,
        })  # fmt: skip
    return found


def _beside(row: Row, setting: str) -> str:
    """The published figure of GEBM over base that stands beside a setting, with its mark; empty: none."""
    of = published().get(row.name, {})
    for entry in of.get("figures", ()):
        if entry.get("setting") == setting and "value" in entry:
            if of["unit"] == "percent":
                return f"{entry['value'] / 100:.3f} [{entry['mark']}]"
            base = of["base"]
            mark = "D" if entry["mark"] == "D" else f"D of {entry['mark']} and {base['mark']}"
            return f"{entry['value'] / base['value']:.3f} [{mark}]"
    return ""


def uci_figures(found: Mapping[tuple[str, str], Found], places: Mapping[str, Found]) -> list[Figures]:
    """A figure for each method, from the likelihoods of its cell; places: the published ones by method."""
    figures = []
    for (dataset, method), summary in found.items():
        test = summary["nll"]["test"]
        over = f"{len(summary['seeds'])} splits" if "seeds" in summary else "test rows of one split"
        figures.append({
            "setting": method, "measure": "test NLL, nats", "features": "", "base": test["base"], "gebm": test["gebm"],
            "over": over, "published": places[method].get(dataset, ""),
        })  # fmt: skip
    return figures


def toy_figures(table: Sequence[Sequence[str]]) -> list[Figures]:
    """A figure for each toy: the divergence from the data of base and of GEBM, from the gallery's cells."""
    return [
        {"setting": cells[0].split(":")[0], "measure": "KL from the data, nats", "features": "", "base": cells[2],
         "gebm": cells[3], "published": ""}
        for cells in table if ": KL " in cells[0]
    ]  # fmt: skip


def pictures_of(row: Row, place: Place, figures: Sequence[Found]) -> list[str]:
    """Copy or draw the pictures of a row beside its page; returns their names."""
    if row.picture == "curves":
        name = f"{row.name}.png"
        draw_curves(place.out / name, figures)
        return [name]
    made = {"motion": ("chains.gif",)}.get(row.picture, ("base.png", "samples.png"))
    shown = figures if row.picture == "motion" else figures[:1]
    names = []
    for figure in shown:
        for source in made:
            names.append(f"{row.name}-{figure['setting']}-{source}")
            shutil.copyfile(place.runs / figure["run"] / source, place.out / names[-1])
    return names


def draw_curves(path: Path, figures: Sequence[Found]) -> None:
    """Distance over steps, a line for each beta; the full chains on the left, the short ones on the right."""
    groups = [[f for f in figures if f["setting"].endswith("-short") == short] for short in (False, True)]
    groups = [group for group in groups if group]
    figure = Figure(figsize=(5.5 * len(groups), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups):
        for i, entry in enumerate(sorted(group, key=lambda f: f["beta"])):
            colour = (0.85 - 0.85 * i / max(len(group) - 1, 1), 0.35, 0.3 + 0.6 * i / max(len(group) - 1, 1))
            steps = [int(step) for step in entry["curve"]]
            axis.plot(steps, list(entry["curve"].values()), "o-", ms=3, color=colour, label=f"beta {entry['beta']:g}")
        axis.set(xlabel="sampling steps", ylabel=group[0]["measure"], title=group[0]["split"])
        axis.legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def table(lines: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first line is the header, shorter ones are filled up."""
    padded = ([*line, *[""] * (len(lines[0]) - len(line))] for line in lines)
    header, *body = [[cell.replace("|", "\\|") for cell in line] for line in padded]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *body))


def markdown(result: Found) -> str:
    """A row's page."""
    parts = [
        f"# {result['row']}: {result['title']}",
        f"Scale {result['scale']}; data: {result['dataset'] or 'drawn from the seed'}.",
    ]
    parts += [STAND_IN] if result["stand_in"] else []
    parts += {"images": _of_images, "table": _of_table, "toy": _of_toy}[result["kind"]](result)
    parts += [f"![{name}]({name})" for name in result["pictures"]]
    parts += ["## Commands", "```\n" + "\n".join(result["commands"]) + "\n```"]
    cost = f"Took {result['seconds']:.0f} s here. By arithmetic (reproduce/costs.py):"
    return "\n\n".join([*parts, "## Cost", cost, f"```\n{result['cost']}\n```"]) + "\n"


def _of_images(result: Found) -> list[str]:
    figures = result["figures"]
    first = figures[0]
    name = first["measure"]
    lines = [["setting", f"base, {name}", f"GEBM, {name}", "gain", "GEBM / base", "published GEBM / base",
              "relative ESS", "R-hat", "left start"]]  # fmt: skip
    for f in figures:
        lines.append([
            f["setting"], estimate(f["base"]), estimate(f["gebm"]), gain(f), f"{f['ratio']:.3f}", f["published"] or "-",
            f"{f['relative_ess']:.3f}", _or_dash(f["rhat"], ".2f"), _or_dash(f["left_start"], ".0%"),
        ])  # fmt: skip
    note = f"{name}: {first['n_fake']:,} samples, {first['n_real']:,} images of {first['split']}. 95 % intervals."
    if name != "FID":
        note += f" This is not FID: it is not to be compared with a published FID. {COMPARE}"
    elif first["split"].endswith("test"):
        note += f" Published FIDs are to the training images. {COMPARE}"
    ess = (
        "Relative ESS: of the weights exp(-beta E) under the base; near 0, the posterior is far from it. R-hat: of the "
        "worst projection of z; above 1.05 the chains have not mixed, and the samples are refined, not draws. Left "
        "start: chains that ended further from their start than half of what all chains are apart."
    )
    settings = [["setting", "sampler"], *([f["setting"], f["sampler"]] for f in figures)]
    return [table(lines), note, ess, table(settings), *_curves(figures), *_published(result["published"])]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _curves(figures: Sequence[Found]) -> list[str]:
    """The distance along the steps, where a row has a line for each beta."""
    long = [f for f in figures if f["setting"].startswith("beta-") and not f["setting"].endswith("-short")]
    if not long:
        return []
    lines = [["steps", *(f["setting"] for f in long)]]
    lines += [[step, *(f"{f['curve'][step]:.2f}" for f in long)] for step in long[0]["curve"]]
    return [f"{long[0]['measure']} along the chains:", table(lines)]


def _published(of: Found) -> list[str]:
    """The published figures as they were published, with their marks."""
    unit = {"FID": "FID", "percent": "percent of the base's FID"}.get(of.get("unit", ""), "")
    lines = [["published", unit or "figure", "mark", "source"]]
    if "base" in of:
        base = of["base"]
        lines.append(["base alone", f"{base['value']:.2f} FID", f"[{base['mark']}]", base["source"]])
    for entry in of["figures"]:
        value = f"{entry['value']:.2f}" if "value" in entry else "-"
        lines.append([entry["what"], value, f"[{entry['mark']}]", entry["source"]])
    return ["## Published", table(lines), MARKS]


MARKS = (
    "Marks: [S] seen in the source; [M+] from memory, and a seen number agrees; [M] from memory, not verified; "
    "[D] derived."
)


def _of_table(result: Found) -> list[str]:
    lines = [["method", "base", "GEBM", "over", "published [mark]"]]
    for f in result["figures"]:
        lines.append([f["setting"], _nats(f["base"]), _nats(f["gebm"]), f["over"], f["published"] or "-"])
    note = (
        "Negative log-likelihood of test rows in nats, whitened as published; ± is one standard error. The published "
        "ones are of one split, seed 1. Likelihoods compare directly where data and protocol are the same."
    )
    dataset = result["dataset"]
    others = [["other published figures", dataset]]
    others += [[of["title"], of[dataset]] for of in result["published"].values() if dataset in of]
    return [table(lines), note, "## Published", table(others), "* not finished when it was saved. " + MARKS]


def _nats(entry: Found) -> str:
    return f"{entry['value']:.2f} ± {entry['se']:.2f}"


def _of_toy(result: Found) -> list[str]:
    return [table(result["cells"]), "Means with standard errors.", *_published(result["published"])]


def summary(results: Sequence[Found]) -> str:
    """All rows in one table."""
    lines = [["row", "setting", "measure", "of", "base", "GEBM", "GEBM / base", "published [mark]"]]
    for result in results:
        for f in result["figures"]:
            of = f"{f['n_fake']:,} / {f['n_real']:,} {f['split']}" if "n_fake" in f else f.get("over", "")
            show = {"images": estimate, "table": _nats, "toy": str}[result["kind"]]
            ratio = f"{f['ratio']:.3f}" if "ratio" in f else "-"
            mark = " (stand-in)" if result["stand_in"] else ""
            lines.append([
                result["row"] + mark, f["setting"], f["measure"], of, show(f["base"]), show(f["gebm"]), ratio,
                f["published"] or "-",
            ])  # fmt: skip
    note = (
        "Published figures of rows of images are GEBM / base of FID, to be set beside our GEBM / base and nothing "
        f"else: a distance that is not named FID is none. Those of tables are test NLL. {MARKS}"
    )
    warning = [STAND_IN] if any(result["stand_in"] for result in results) else []
    return "\n\n".join(["# Summary", *warning, table(lines), note]) + "\n"


def page(result: Found, place: Place) -> None:
    """Write `ROW.json` and `ROW.md`."""
    for suffix, text in ((".json", json.dumps(result, indent=1) + "\n"), (".md", markdown(result))):
        with atomic_write(place.out / f"{result['row']}{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
