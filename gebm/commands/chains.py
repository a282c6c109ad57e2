"""What the flags say about latent chains: the kernel, its schedules, beta, and the summary of a run."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gebm import parallel
from gebm.checkpoints import settings_beside
from gebm.commands.datasets import dataset_for
from gebm.commands.pairs import folder_of
from gebm.commands.records import unseen
from gebm.commands.setup import log, schedule_of
from gebm.config import Config
from gebm.data import ImageData, at_random, from_uint8, set_aside
from gebm.errors import InputError
from gebm.latent import LatentPosterior
from gebm.memory import rows_that_fit
from gebm.metrics.partition import energies, relative_ess
from gebm.metrics.temperature import fit_beta
from gebm.model import GEBM
from gebm.precision import for_chains
from gebm.samplers import SAMPLERS, Kernel, ramp, step_decay
from gebm.samplers.smc import POPULATION
from gebm.sampling import Draws, Observer, draw
from gebm.seeds import stream

__all__ = ["beta_of", "check_sampler", "check_space", "draw_chains", "kernel_of", "sampler_summary", "with_beta"]
__all__ += ["with_precision"]

FIT_IMAGES = 10_000  # that `--temperature auto` looks at
# flag -> the sampler it is of
OF_SAMPLERS = {"num_leapfrog": "hmc", "lmc_kappa": "lmc", "lmc_splitting": "lmc"}


def kernel_of(config: Config) -> Kernel:
    """The kernel of `--latent_sampler`, with the documented meaning of `--lmc_gamma`."""
    own: dict[str, dict[str, Any]] = {
        "lmc": {"friction": config.lmc_kappa, "splitting": config.lmc_splitting},
        "hmc": {"leapfrog": config.num_leapfrog},
    }
    return SAMPLERS[config.latent_sampler].from_gamma(config.lmc_gamma, **own.get(config.latent_sampler, {}))


def check_sampler(config: Config, n: int) -> None:
    """What one flag demands of another for n chains; raises InputError."""
    name, kernel = config.latent_sampler, SAMPLERS[config.latent_sampler]
    if config.adapt and kernel.goal is None:
        tunable = ", ".join(name for name, kernel in SAMPLERS.items() if kernel.goal is not None)
        raise InputError(f"--adapt: {name} has no acceptance to tune to; samplers that have: {tunable}")
    if config.precondition and not config.adapt:
        raise InputError("--precondition: is part of the warm-up; give --adapt too")
    if config.precondition and not hasattr(kernel, "scale"):
        raise InputError(f"--precondition: {name} takes no scales; --latent_sampler mala and hmc do")
    if config.beta_ramp and not kernel.anneals:
        raise InputError(f"--beta_ramp: {name} works at one beta, or sets it itself; leave the flag out")
    if config.beta_ramp and config.adapt:
        raise InputError("--beta_ramp: the warm-up of --adapt already brings the chains to beta; leave one of them out")
    for flag in ("beta_ramp", "thin"):
        if getattr(config, flag) > config.num_sampler_steps:
            steps = f"more than the {config.num_sampler_steps} steps of a chain"
            raise InputError(f"--{flag} {getattr(config, flag)}: {steps}; see --num_sampler_steps")
    for flag, sampler in OF_SAMPLERS.items():
        value = getattr(config, flag)
        if value != getattr(Config, flag) and name != sampler:
            raise InputError(
                f"--{flag} {value}: {name} has no use for it; leave it out, or take --latent_sampler {sampler}"
            )
    least = min(n, config.sample_b_size, n % config.sample_b_size or n)
    if name == "smc" and least < POPULATION:
        raise InputError(
            f"--latent_sampler smc: {n} chains, {config.sample_b_size} at a time, leave a population of {least}, it "
            f"takes {POPULATION} or more; see --n_samples, --fid_samples, --sample_b_size"
        )


def check_space(config: Config, n: int, dim: int, folder: Path) -> None:
    """Raise InputError if what `--thin` keeps does not fit on the disk."""
    needed = n * (config.num_sampler_steps // config.thin) * (dim + 1) * 4 if config.thin else 0
    free = shutil.disk_usage(next(p for p in folder.absolute().parents if p.exists())).free
    if needed > free:
        raise InputError(f"--thin {config.thin}: the draws take {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free")


def with_precision(config: Config, posterior: LatentPosterior) -> Config:
    """The configuration with the precision that `--precision auto` stands for, which is said."""
    choice = for_chains(config.precision, SAMPLERS[config.latent_sampler], posterior.frozen())
    if choice.reason:
        log.info("%s", choice.reason)
    return replace(config, precision=choice.precision)


def draw_chains(config: Config, posterior: LatentPosterior, n: int, observer: Observer) -> Draws:
    """Run n chains as configured; beta is that of the posterior."""
    kernel, target = kernel_of(config), posterior.frozen()
    rows = rows_that_fit(target, min(n, config.sample_b_size))
    if rows:
        log.info("memory: %d chains go through the networks at a time", rows)
    half = config.precision == "bf16" and not kernel.exact
    if rows or half:
        target = posterior.frozen(torch.bfloat16 if half else None, rows)
    decay = step_decay(config.step_decay**kernel.gamma_power, config.step_decay_every)
    return draw(
        target,
        kernel,
        n,
        config.num_sampler_steps,
        schedule=None if config.adapt else decay,
        beta_schedule=ramp(config.beta_ramp) if config.beta_ramp else None,
        warm_up=config.adapt_steps if config.adapt and config.num_sampler_steps else 0,
        precondition=config.precondition,
        chunk=config.sample_b_size,
        seed=config.seed,
        observer=observer,
    )


def with_beta(config: Config, model: GEBM, energy: Path, device: torch.device) -> tuple[Config, dict[str, Any] | None]:
    """With `--temperature auto`, the configuration with the beta it stands for and the summary of the fit."""
    if config.temperature != "auto":
        return config, None
    data = dataset_for(model, config)
    if not isinstance(data, ImageData):
        raise InputError(
            "--temperature auto: is fitted to images, and this is a table; give a number, 1 is the model itself"
        )
    images, how, held_out = _images_of_fit(data, energy)
    where = f"{data.name} train, {how}"
    like = model.log_partition.detach()
    e_real = energies(model.energy, from_uint8(torch.tensor(images[:FIT_IMAGES])).to(like))
    generator = torch.Generator(device).manual_seed(stream(config.seed, "temperature"))
    fit = parallel.from_first(lambda: fit_beta(e_real, model.posterior().frozen(), generator=generator))
    if fit is None:
        raise InputError(
            "--temperature auto: the likelihood still rises at the largest beta tried, as the base has no samples of "
            "as low an energy as the images; give a number"
        )
    if not fit.beta:
        log.info("temperature auto: the images have energies as high as the base's samples; beta 0 leaves these alone")
    log.info(
        "temperature auto: beta %.3g +- %.2g (%d images of %s; %d particles), relative ESS there %.3f",
        fit.beta, fit.se, fit.n_real, where, fit.n_fake, fit.relative_ess,
    )  # fmt: skip
    found = {**fit._asdict(), "se": _plain(fit.se), "images": where, "held_out": held_out}
    return replace(config, temperature=fit.beta), found


def _images_of_fit(data: ImageData, energy: Path) -> tuple[np.ndarray, str, bool]:
    """Images that beta is fitted to, in an order that mixes classes; what they are; whether the energy never saw them.

    Of other images than the energy was trained on, those it has not seen, where they are a tenth or more. Of the same
    ones the tenth that its training set aside, where it did (`--refine_kale`), else those it was trained on.
    """
    new = unseen(data, energy)
    if new is not None:
        if new.mean() >= 0.1:
            return at_random(data.train[new], FIT_IMAGES), "which the energy was not trained on", True
        return at_random(data.train, FIT_IMAGES), "most of which the energy was trained on", False
    file = settings_beside(folder_of(energy))
    stored = Config.load(file) if file.is_file() else None
    held_out = stored is not None and stored.refine_kale > 0 and schedule_of(stored).refines
    return set_aside(data.train)[held_out], "set aside" if held_out else "which the energy was trained on", held_out


def beta_of(config: Config) -> float:
    """The inverse temperature, once `with_beta` has settled it."""
    return float(config.temperature) + 0.0  # no -0


def sampler_summary(config: Config, draws: Draws) -> dict[str, Any]:
    """The sampler's full setting and how its chains fared."""
    kernel, name = draws.kernel, config.latent_sampler
    diagnostics = {key: _plain(value) for key, value in draws.diagnostics._asdict().items()}
    chain_steps = len(draws.images) * (config.num_sampler_steps + (draws.adapted.steps if draws.adapted else 0))
    evaluations_per_s = chain_steps * kernel.cost / draws.seconds if draws.seconds else 0.0
    per_evaluation = (diagnostics["ess_per_1000_evaluations"] or 0.0) / 1000
    tuned, adapted = draws.adapted is not None or (name == "smc" and config.num_sampler_steps > 0), None
    if draws.adapted:
        scale = getattr(kernel, "scale", 1.0)
        adapted = {
            "steps": draws.adapted.steps,
            "scale": scale.tolist() if isinstance(scale, torch.Tensor) else scale,
        }
    return {
        "sampler": name,
        "beta": config.temperature,
        "beta_ramp": config.beta_ramp,
        "steps": config.num_sampler_steps,
        "gamma": config.lmc_gamma if kernel.gamma_power and not tuned else None,
        "kappa": config.lmc_kappa if name == "lmc" else None,
        "splitting": config.lmc_splitting if name == "lmc" else None,
        "leapfrog": config.num_leapfrog if name == "hmc" else None,
        "step_size": kernel.step_size if kernel.gamma_power else None,
        "step_decay": None if config.adapt else [config.step_decay, config.step_decay_every],
        "adapted": adapted,
        "seed": config.seed,
        "n_fake": len(draws.images),
        "acceptance": draws.acceptance,
        "nonfinite": draws.nonfinite,
        "moves": kernel.moves,
        "mixed": draws.diagnostics.mixed,
        "diagnostics": diagnostics,
        "seconds": draws.seconds,
        "evaluations_per_s": evaluations_per_s,
        "ess_per_s": evaluations_per_s * per_evaluation or None,
        "log_partition": draws.log_partition and {k: _plain(v) for k, v in draws.log_partition.summary().items()},
        "importance_relative_ess": relative_ess(-beta_of(config) * draws.energies_start),
    }


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
