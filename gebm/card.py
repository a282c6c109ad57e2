"""The model card of an exported folder: its `README.md`, with the front matter of the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

__all__ = ["model_card"]

PAPER = "[Generalized Energy Based Models](https://arxiv.org/abs/2003.05033) (Arbel, Zhou and Gretton, ICLR 2021)"


def model_card(config: Mapping[str, Any]) -> str:
    """The card as Markdown, of what `config.json` holds and of nothing else; what is not known is not said."""
    a = config["architecture"]
    rows = len(a["shape"]) == 1
    size = " x ".join(map(str, a["shape"]))
    what = f"rows of {size} numbers" if rows else f"images {size} (channels, height, width)"
    parts = [
        _front_matter(config, rows),
        f"# A generalized energy-based model of {what}\n",
        "A base G turns latent noise z into samples x = G(z); an energy E re-weights them: the density of the model "
        "relative to that of the base is exp(-E(x) - A), so low energies are likely. Samples are drawn by MCMC in the "
        f"latent space. See {PAPER}.\n",
        _table([
            ("base", f"`{a['base']}`, {config['parameters']['base']:,} parameters"),
            ("energy", f"`{a['energy']}`, {config['parameters']['energy']:,} parameters{_floor(a, rows)}"),
            ("latents", f"{a['latent_dim']}, {a['prior']}"),
            ("learnt log-partition c", f"{config['c']:.4f}"),
            ("precision", config["dtype"]),
            ("written by", f"gebm {config['gebm_version']}, format {config['format_version']}"),
        ]),
        _section("Data", _pairs(config.get("data"))),
        _section("Training", _pairs(config.get("training"))),
        _section("Figures", _figures(config.get("figures"))),
        _section("How to use it", _usage(config, rows)),
        _section(
            "Intended use",
            "Research on generative models: sampling, and comparing energies or densities of data like the training "
            "data.",
        ),
        _section("Limits", _limits(config, rows)),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _front_matter(config: Mapping[str, Any], rows: bool) -> str:
    tags = ["gebm", "energy-based-model", "mcmc", "tabular" if rows else "unconditional-image-generation"]
    fields: dict[str, Any] = {"library_name": "gebm", "tags": tags}
    if not rows:
        fields["pipeline_tag"] = "unconditional-image-generation"
    dataset = str(config.get("data", {}).get("dataset", ""))
    if dataset.startswith("hub:"):
        fields["datasets"] = [dataset.removeprefix("hub:")]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}# license: yours to choose, e.g. license: cc-by-4.0\n---\n"


def _floor(a: Mapping[str, Any], rows: bool) -> str:
    return "" if rows or not a["trunc"] else ", clamped to E >= -10"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}\n" if text else ""


def _pairs(values: Mapping[str, Any] | None) -> str:
    return _table([(name.replace("_", " "), _text(value)) for name, value in (values or {}).items()])


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Sequence[str]], header: Sequence[str] = ("", "")) -> str:
    """A table of Markdown."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _figures(figures: Mapping[str, Any] | None) -> str:
    if not figures:
        return ""
    header, *rows = figures["rows"]
    return "\n".join([_table(rows, header), *(f"{note}\n" for note in figures["notes"])])


def _usage(config: Mapping[str, Any], rows: bool) -> str:
    a, sampler = config["architecture"], config.get("sampler", {})
    flags = "".join(f" --{name} {_text(value).lower()}" for name, value in sampler.items())
    own = sorted({name for name in (a["base"], a["energy"]) if ":" in name})
    allow = f", allow={own!r}" if own else ""
    parts = {"g_model": a["base"], "d_model": a["energy"]}
    named = "".join(f" --{flag} {name}" for flag, name in parts.items() if name in own)
    lines = ["```python", "import gebm", "", f'model = gebm.GEBM.from_pretrained("FOLDER"{allow})  # or "user/name"']
    lines += _sampling(sampler, rows)
    lines += ["energies = model.energy(x)  # low is likely", "```\n"]
    if own:
        code = ", ".join(f"`{name}`" for name in own)
        lines.append(
            f"Its networks {code} are the author's own code, which must be importable, and is run once named.\n"
        )
    commands = [f"gebm sample --g_path FOLDER{named}{flags}"]
    if "table" in config:
        commands.append(f"gebm score FILE.csv --g_path FOLDER{named}  # log-densities of rows, in original units")
    said = " with the sampler's setting that its author used" if sampler else ""
    return "\n".join(["`pip install gebm`; FOLDER is this folder.\n", *lines, f"From the command line{said}:\n", "```"]
                     + commands + ["```"])  # fmt: skip


def _sampling(sampler: Mapping[str, Any], rows: bool) -> list[str]:
    lines = ["x = model.sample(16, steps=100)  # Langevin at beta 1, step size 0.005"]
    every = sampler.get("step_decay_every", 0)
    more = {"adapt", "beta_ramp", "lmc_kappa", "num_leapfrog"} & sampler.keys()
    if "lmc_gamma" in sampler and not more and not 0 < every < sampler["num_sampler_steps"]:
        kernel = f'SAMPLERS["{sampler["latent_sampler"]}"].from_gamma({sampler["lmc_gamma"]!r})'
        setting = f"steps={sampler['num_sampler_steps']}, beta={sampler['temperature']!r}"
        lines = ["from gebm.samplers import SAMPLERS", "", f"x = model.sample(16, {kernel}, {setting})"]
    if rows:
        lines[-1] = lines[-1].partition("  #")[0] + "  # rows as the networks see them, whitened or standardised"
    return lines


def _limits(config: Mapping[str, Any], rows: bool) -> str:
    lines = [
        "It knows its training data and nothing else, their biases included.",
        "Chains that have not mixed give refined samples, not draws of the model; `gebm sample` says which they are. "
        "The inverse temperature beta is 1 for the model itself.",
    ]
    if rows:
        lines.append("Log-densities of rows far from the data are extrapolations.")
        if "table" in config:
            lines.append(
                "`config.json` holds the units of the columns and the log-densities of the validation rows, no rows."
            )
    else:
        lines.append("It has no density in pixel space, only an energy relative to its base.")
    return "\n".join(f"- {line}" for line in lines)
