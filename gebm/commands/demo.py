"""`gebm demo`: the whole of it on the bundled digits, in a few minutes of CPU."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from gebm.commands import train
from gebm.commands.evaluate import evaluate_model
from gebm.commands.sample import kernel_of, sample_into, spaced, write_summary
from gebm.commands.setup import choose_device, dataset, load_pair, log, log_dir, start_log
from gebm.config import Config
from gebm.data import ImageData
from gebm.errors import InputError
from gebm.metrics import Moments, choose_features, extract, frechet_distance, reference_moments
from gebm.model import GEBM
from gebm.report import distance_rows, kale_rows, table
from gebm.samplers import NonFiniteError, step_decay
from gebm.sampling import draw

__all__ = ["main"]

# A small pair of similar size, a base that is stopped early, and an energy that is trained on with the base frozen.
SETTINGS = {
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
BETAS = (1.0, 3.0, 10.0)
GAMMAS = (0.1, 0.03, 0.01)
MAX_STEPS = 40


def main(config: Config, given: frozenset[str]) -> Path:
    """Train, choose the sampler's setting on training images, sample, and evaluate on held-out images."""
    start_log()
    config = replace(config, **{flag: value for flag, value in SETTINGS.items() if flag not in given})
    run = log_dir(config) / (config.log_name or "demo")
    _clear(run)
    config = replace(config, log_dir=str(run.parent), log_name=run.name)
    train.main(config, given | SETTINGS.keys())
    device = choose_device(config, given | {"device"} if config.device != 0 else given)
    data = dataset(config)
    model, _, _ = load_pair(replace(config, g_path=str(run), d_path=str(run)), frozenset())
    model.to(device)
    chosen = choose(config, model, data, device)
    log.info("chosen on training images: beta %g, gamma %g, %d steps", *chosen)
    config = replace(config, temperature=chosen[0], lmc_gamma=chosen[1], num_sampler_steps=chosen[2])
    summary = sample_into(run, replace(config, seed=config.seed + 1), model, data, device)
    summary.update(evaluate_model(model, data, config.seed), seed=config.seed, gamma=chosen[1])
    rows = [
        *distance_rows(summary),
        ("sampler", f"{summary['sampler']}, gamma {chosen[1]:g}, beta {chosen[0]:g}, {chosen[2]} steps (chosen on train)"),
        *kale_rows(summary),
        ("report folder", f"{run}/ (summary.json, stats.jsonl, samples.npz, png/)"),
        ("base | GEBM", f"{run}/base.png | {run}/samples.png"),
        ("chains moving", f"{run}/chains.gif"),
    ]
    write_summary(run, summary, table(rows, f"gebm demo: digits, seed {config.seed}"))
    return run


def choose(config: Config, model: GEBM, data: ImageData, device: torch.device) -> tuple[float, float, int]:
    """Beta, gamma and number of steps with the least distance to the training images; latents of its own."""
    extractor, line = choose_features(config.fid_features, data.name, data.shape, config.fid_weights or None, config.data_path)
    reference = reference_moments(data.train, extractor, Path(config.data_path) / "cache", "train", device=device)
    posterior = model.posterior().frozen()
    best = (float("inf"), (1.0, GAMMAS[0], 0))
    for beta in BETAS:
        for gamma in GAMMAS:
            kernel = kernel_of(replace(config, lmc_gamma=gamma))
            try:
                draws = draw(
                    posterior.at(beta), kernel, config.fid_samples, MAX_STEPS, chunk=config.sample_b_size,
                    schedule=step_decay(config.step_decay**kernel.gamma_power, config.step_decay_every),
                    seed=config.seed + 2, observe=lambda images: extract(images, extractor, config.fid_b_size, device),
                    observe_at=spaced(MAX_STEPS, 10),
                )  # fmt: skip
            except NonFiniteError:
                continue
            curve = {step: frechet_distance(Moments.of(x), reference) for step, x in draws.observed.items()}
            step = min(curve, key=curve.get)
            log.info("  beta %-4g gamma %-5g: %.1f at the start, least %.1f after %d steps", beta, gamma, curve[0], curve[step], step)
            best = min(best, (curve[step], (beta, gamma, step)))
    return best[1]


def _clear(run: Path) -> None:
    """Remove the folder of an earlier demo, and nothing else."""
    if not run.exists():
        return
    file = run / "config.yaml"
    if not file.is_file() or Config.load(file).mode != "demo":
        raise InputError(f"{run}: exists and is not an earlier demo's; give another --log_name")
    shutil.rmtree(run)
