"""`gebm demo`: the whole of it on the bundled digits, in a few minutes of CPU."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gebm.commands import train
from gebm.commands.chains import check_sampler, draw_chains
from gebm.commands.datasets import dataset
from gebm.commands.metrics import check_features, evaluate_model, observed_features, reference_of
from gebm.commands.pairs import load_pair
from gebm.commands.report import code_of, write_report
from gebm.commands.runs import log_dir
from gebm.commands.sample import sample_into, spaced, write_summary
from gebm.commands.setup import choose_device, log, start_log
from gebm.commands.tables import of_table
from gebm.config import Config
from gebm.data import ImageData
from gebm.errors import InputError
from gebm.files import alone
from gebm.metrics import Moments, frechet_distance
from gebm.model import GEBM
from gebm.report import estimate, gain, kale_rows, metric_note, metric_rows, sampler_row, table
from gebm.samplers import SAMPLERS, NonFiniteError
from gebm.sampling import Observer

__all__ = ["main"]

# A small pair of similar size, a base that is stopped early, and an energy that is trained on with the base frozen.
SETTINGS: dict[str, Any] = {
    "dataset": "digits",
    "Z_dim": 10,
    "width": 0.25,
    "penalty_type": "gradient",
    "penalty_lambda": 1.0,
    "initialize_log_partition": True,
    "total_gen_iter": 200,
    "refine_iter": 3000,
    "noise_factor": 2,
    "lr": 1e-3,
    "lr_generator": 1e-3,
    "beta_2": 0.999,
    "checkpoint_freq": 500,
    "n_samples": 1000,
    "fid_samples": 2000,
    "sample_b_size": 2000,
    "step_decay_every": 0,
    "eval_fid": True,
}
# Refined samples: a few Langevin steps at a large beta, chosen on training images.
BETAS = (3.0, 10.0, 30.0)
GAMMAS = (0.1, 0.03, 0.01)
MAX_STEPS = 40
# Draws from the model itself: beta 1, an exact sampler tuned by itself (docs/samplers.md, "Which one").
POSTERIOR: dict[str, Any] = {
    "latent_sampler": "mala",
    "lmc_gamma": 0.1,
    "adapt": True,
    "adapt_steps": 100,
    "num_sampler_steps": 200,
    "temperature": 1.0,
}


class Setting(NamedTuple):
    """A sampler's setting and its distance to the training images."""

    distance: float
    beta: float
    gamma: float
    steps: int


def main(config: Config, given: frozenset[str]) -> Path:
    """Train, choose the sampler's setting on training images, sample, and evaluate on held-out images."""
    start_log()
    torch.set_num_threads(1)  # the networks are too small for more, and figures do not depend on the number of cores
    config = replace(config, **{flag: value for flag, value in SETTINGS.items() if flag not in given})
    run = log_dir(config) / (config.log_name or "demo")
    if of_table(config):
        raise InputError(f"--dataset {config.dataset}: the demo is of images; use gebm train")
    if not SAMPLERS[config.latent_sampler].anneals:
        name = config.latent_sampler
        raise InputError(f"--latent_sampler {name}: the demo refines step by step; take langevin or lmc")
    check_sampler(config, config.fid_samples)
    _check_replaceable(run)
    data = dataset(config)
    assert isinstance(data, ImageData)
    check_features(config, data, choose_device(config, given))
    if run.exists():  # the earlier demo's, now that nothing can be wrong any more
        with alone(run):
            shutil.rmtree(run, ignore_errors=True)
    config = replace(config, log_dir=str(run.parent), log_name=run.name)
    train.main(config, given | SETTINGS.keys())
    config = Config.load(run / "config.yaml")  # as resolved, the device too
    device = choose_device(config, frozenset())
    model, _, _ = load_pair(replace(config, g_path=str(run), d_path=str(run)), frozenset())
    model.to(device)
    log.info("choosing beta, gamma and the number of steps on training images")
    chosen = min(try_settings(config, model, data, device))
    config = replace(config, seed=config.seed + 1)  # other latents than those the setting was chosen on
    posterior = sample_into(run / "posterior", replace(config, **POSTERIOR), model, data, device)
    refined = replace(
        config, temperature=chosen.beta, lmc_gamma=chosen.gamma, num_sampler_steps=chosen.steps, adapt=False
    )
    summary = sample_into(run, refined, model, data, device)
    summary.update(evaluate_model(model, data, config.seed), seed=config.seed - 1, posterior=posterior)
    text = _table(run, summary)
    write_summary(run, summary, text)
    log.info("\n%s", text)
    log.info("\nreport: %s", write_report(run, code_of(config)))
    return run


def _table(run: Path, summary: dict[str, Any]) -> str:
    posterior = summary["posterior"]
    mixing = "R-hat {rhat_energy:.2f}, worst projection {rhat_projection:.2f}".format(**posterior["diagnostics"])
    of_posterior = posterior["metrics"][posterior["distance"]]
    rows = [
        (sampler_row(summary)[0], f"{sampler_row(summary)[1]}, chosen on train"),
        (f"{summary['distance']} at beta 1", f"{estimate(of_posterior['gebm'])}   the model itself"),
        ("gain at beta 1", gain(of_posterior)),
        ("sampler at beta 1", f"{sampler_row(posterior)[1]}, acceptance {posterior['acceptance']:.2f}; {mixing}"),
        *kale_rows(summary),
        ("pictures", f"{run}/base.png, {run}/samples.png, {run}/posterior/samples.png"),
        ("chains moving", f"{run}/chains.gif"),
        ("report folder", f"{run}/ (summary.json, stats.jsonl, samples.npz, png/, tensorboard/)"),
    ]
    title = f"gebm demo: {summary['split'].split()[0]}, seed {summary['seed']}"
    text = f"{table(metric_rows(summary), title)}\n{metric_note(summary)}\n\n{table(rows)}"
    if summary["warning"]:
        text += (
            f"\n\nAt beta {summary['beta']:g} {summary['warning']}\n(relative ESS of exp(-beta E) over the base: "
            f"{summary['importance_relative_ess']:.3f}). Draws from the model itself lie in {run}/posterior/."
        )
    return text


def try_settings(config: Config, model: GEBM, data: ImageData, device: torch.device) -> list[Setting]:
    """The best number of steps, by the distance to the training images, for each beta and gamma."""
    extractor = check_features(config, data, device)
    reference = reference_of(config, data, "train", extractor, device).moments
    posterior = model.posterior().frozen()
    settings = []
    for beta in BETAS:
        for gamma in GAMMAS:
            observer = Observer(observed_features(extractor, config, device), spaced(MAX_STEPS, 10))
            tried = replace(config, lmc_gamma=gamma, num_sampler_steps=MAX_STEPS)
            try:
                draw_chains(tried, posterior.at(beta), config.n_samples, observer)
            except NonFiniteError:
                continue
            curve = {step: frechet_distance(Moments.of(x), reference) for step, x in observer.features().items()}
            steps = min(curve, key=curve.__getitem__)
            settings.append(Setting(curve[steps], beta, gamma, steps))
            found = (beta, gamma, curve[0], curve[steps], steps)
            log.info("  beta %-3g gamma %-5g %6.2f at the start, least %.2f after %d steps", *found)
    if not settings:
        raise NonFiniteError("no setting of the sampler gave finite potentials: the energy has diverged; lower --lr")
    return settings


def _check_replaceable(run: Path) -> None:
    """Raise InputError if the folder holds anything but an earlier demo."""
    file = run / "config.yaml"
    if run.exists() and not (file.is_file() and Config.load(file).mode == "demo"):
        raise InputError(f"{run}: exists and is not an earlier demo's; give another --log_name")
