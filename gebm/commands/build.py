"""A trainer from the flags: networks, batches, objective, optimisers, schedules, and what is evaluated on the way."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gebm import fast
from gebm.commands.chains import kernel_of
from gebm.commands.density import ValidationNLL
from gebm.commands.metrics import base_features, check_features, evaluate_model, features_of
from gebm.commands.pairs import architecture_of
from gebm.commands.setup import dtype_of, log, schedule_of
from gebm.commands.tables import of_table
from gebm.config import Config
from gebm.data import Batches, ImageData, TableData, at_random, from_uint8, set_aside
from gebm.errors import InputError
from gebm.latent import LatentPosterior
from gebm.metrics import Frechet, Moments, extract, frechet_distance, metric_name
from gebm.metrics.features import Pixels
from gebm.model import GEBM
from gebm.networks import DensityRatio
from gebm.networks.flows import GaussianFlow
from gebm.objectives import OBJECTIVES
from gebm.parallel import processes
from gebm.precision import for_training
from gebm.seeds import stream
from gebm.training.negatives import Fresh, Negatives, Pool, Replay
from gebm.training.schedules import Exponential, LRSchedule, MultiStep, ThreeSample
from gebm.training.selection import EarlyStopping
from gebm.training.trainer import Trainer

__all__ = ["build_trainer", "evaluations_of", "measures_of", "milestones"]

KALE_FORMS = ("fenchel", "donsker_varadhan")
NARROW = 16  # pixels: images below it were slower in channels-last layout
POOL = 20  # energy steps' worth of samples of a base that is slow to sample
WATCHED = Pixels(8)
WATCH_SAMPLES, WATCH_REAL = 1000, 10_000  # of the base and of the training images
TEST_SAMPLES = 2000  # of the base, and as many training images, that `--scheduler mmd` compares


def build_trainer(
    config: Config, given: frozenset[str], data: ImageData | TableData, device: torch.device
) -> tuple[Trainer, torch.Tensor | None]:
    """Networks, optimisers and batches as configured, and the images set aside for `--refine_kale`.

    `--g_path` and `--d_path` are files or checkpoints here, not runs (`gebm.commands.pairs.settle_weights`).
    """
    if config.fast == "graphs" and (device.type != "cuda" or processes() > 1):
        raise InputError("--fast graphs: training steps as CUDA graphs take a GPU, and one process; give --fast auto")
    torch.manual_seed(config.seed)
    dtype = dtype_of(config)
    model = GEBM.build(architecture_of(config, given, data.shape), dtype=dtype).to(device)
    if processes() > 1 and any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.energy.modules()):
        raise InputError(f"--d_model {config.d_model}: batch normalisation in an energy takes one process")
    if fast.enabled() and model.built_as.shape[-1] >= NARROW and not of_table(config):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch: lacks it
    if config.g_path:
        model.load_base(config.g_path)
    if config.d_path:
        model.load_energy(config.d_path)
    precision = for_training(config.precision, model, measured=config.criterion == "kale")
    if precision.reason:
        log.info("%s", precision.reason)
    if config.criterion == "ml" and not model.has_density:
        raise InputError("--criterion ml: the base has no density (log_prob); take another criterion")
    ml_steps = schedule_of(config, len(data.train)).ml_steps
    if ml_steps and not model.has_density:
        raise InputError(f"--ml_epochs {config.ml_epochs}: the base has no density (log_prob); give --ml_epochs 0")
    images: np.ndarray = data.train
    held_out, noise, selection = None, None, None
    if isinstance(data, TableData):
        if config.fresh_noise and data.exact is not None:
            images, noise = data.exact, data.noise
        rows = torch.from_numpy(np.array(data.valid)).to(model.log_partition)
        if model.has_density:
            selection = EarlyStopping(ValidationNLL(rows, data.shift, config.seed), config.patience)
        if ml_steps and isinstance(model.base, GaussianFlow):
            of_bins = None if noise is None else torch.from_numpy(np.array(noise)).to(device)
            model.base.fit(torch.from_numpy(np.array(images)).to(device), of_bins)
            log.info("base: the Gaussian of greatest likelihood, in closed form, so without steps")
    elif config.refine_kale and schedule_of(config).refines:
        images, aside = set_aside(images)
        held_out = from_uint8(torch.tensor(aside)).to(model.log_partition)
    objective = OBJECTIVES[config.criterion](
        model.energy,
        model.log_partition,
        penalty_type=config.penalty_type,
        penalty_lambda=config.penalty_lambda,
        memory=config.c_memory,
    )
    trainer = Trainer(
        model,
        Batches(images, config.b_size, device, torch.Generator().manual_seed(stream(config.seed, "batches")), noise),
        objective,
        _optimizer(config, model.energy, config.lr, model.log_partition),
        _optimizer(config, model.base, config.lr_generator),
        noise_factor=config.noise_factor,
        grad_clip=config.grad_clip,
        ema=config.ema,
        lr_schedule=_lr_schedule(config, model, data, images, device),
        rollback_factor=config.rollback_factor,
        negatives=_negatives(config, given, model),
        selection=selection,
        match_base=isinstance(model.energy, DensityRatio) and not config.d_path,
        set_log_partition=config.initialize_log_partition,
        generator=torch.Generator(device).manual_seed(stream(config.seed, "latents")),
        autocast=torch.bfloat16 if precision.precision == "bf16" else None,
        graphs=config.fast == "graphs",
    )
    if ml_steps:
        trainer.counters.stage = "base"
        trainer.counters.ml_step = ml_steps if isinstance(model.base, GaussianFlow) else 0
    if config.train_mode == "energy":
        trainer.start("refine")
    if config.train_mode == "base":
        trainer.freeze_energy()
    return trainer, held_out


def _negatives(config: Config, given: frozenset[str], model: GEBM) -> Negatives:
    """Where the samples of energy steps come from: chains for cd, a pool where sampling takes d passes."""
    if config.criterion == "cd":
        kernel = kernel_of(config)
        persists = kernel.moves and kernel.anneals  # as the default of tables does not: chains of `Replay`'s own kernel
        return Replay(kernel if persists or "latent_sampler" in given else None, config.cd_steps)
    if getattr(model.base, "sequential", False) is True:  # a user's base may have layers of that name
        used = min(POOL, config.n_iter_d) if config.total_epochs else POOL  # before a base step empties it
        return Pool(used * config.noise_factor * config.b_size)
    return Fresh()


def _optimizer(config: Config, network: nn.Module, lr: float, c: nn.Parameter | None = None) -> torch.optim.Optimizer:
    """The configured optimiser of a network and, for the energy's, of c, which has no weight decay.

    Only `--criterion fenchel` gives c a gradient.
    """
    groups: list[dict[str, Any]] = [{"params": list(network.parameters()), "weight_decay": config.weight_decay}]
    if c is not None:
        groups.append({"params": [c], "weight_decay": 0.0})
    fused = fast.enabled() or None
    if config.optimizer == "SGD":
        return torch.optim.SGD(groups, lr, momentum=config.sgd_momentum, fused=fused)
    betas = config.beta_1, config.beta_2
    if config.fast == "graphs":  # the first steps run as they are, on purpose
        warnings.filterwarnings("ignore", message=".*capturable=True.*")
    return torch.optim.Adam(groups, lr, betas=betas, fused=fused, capturable=config.fast == "graphs")


def milestones(config: Config) -> list[int]:
    """Epochs of `--milestone`."""
    return [int(epoch) for epoch in config.milestone.split(",")]


def _lr_schedule(
    config: Config, model: GEBM, data: ImageData | TableData, images: np.ndarray, device: torch.device
) -> LRSchedule:
    """The schedule of `--use_scheduler`; for mmd, on a part of the images that the model is trained on."""
    if not config.use_scheduler:
        return LRSchedule()
    if config.scheduler == "MultiStepLR":
        return MultiStep(milestones(config), config.scheduler_gamma)
    if config.scheduler == "ExponentialLR":
        return Exponential(config.scheduler_gamma)
    assert isinstance(data, ImageData)
    extractor = check_features(config, data, device)
    chosen = np.random.default_rng(stream(config.seed, "mmd")).permutation(len(images))[:TEST_SAMPLES]
    drawn = replace(config, fid_samples=len(chosen))

    def sample(base: nn.Module) -> Tensor:
        return base_features(LatentPosterior(model.prior, base, model.energy), extractor, drawn, device)

    real = extract(images[chosen], extractor, config.fid_b_size, device)
    return ThreeSample(config.lr_decay, real, sample, extractor.key)


def evaluations_of(
    config: Config, data: ImageData, device: torch.device
) -> list[tuple[int, Callable[[Trainer], dict[str, float]]]]:
    """What `--eval_fid` and `--eval_kale` add to the log, what is watched without them, and how often."""
    evaluations: list[tuple[int, Callable[[Trainer], dict[str, float]]]] = []
    if _watches(config, data):
        evaluations.append((config.checkpoint_freq, _watch(config, data, device)))
    if config.eval_fid:
        check_features(config, data, device)
        extractor, reference = features_of(config, data, device)
        metric = Frechet(reference, metric_name("FD", extractor))

        def distance(trainer: Trainer) -> dict[str, float]:
            """Fréchet distance of the base to the test images, with its interval; the refinement leaves it as it is."""
            if trainer.counters.stage == "refine":
                return {}
            posterior = LatentPosterior(trainer.model.prior, trainer.sampled_base, trainer.model.energy)
            features = base_features(posterior, extractor, config, device)
            value, (low, high) = metric.estimate(features)
            key = f"{metric.name}_base"
            return {key: value, f"{key}_low": low, f"{key}_high": high, f"{metric.name}_n": len(features)}

        evaluations.append((config.freq_fid, distance))
    if config.eval_kale:

        def kale(trainer: Trainer) -> dict[str, float]:
            """KALE on train and test images with c (F) and with the Monte-Carlo log-partition (DV), and their gap."""
            found = evaluate_model(trainer.model, data, config.seed)
            splits = found["kale"]
            values = {f"kale_{form}_{split}": splits[split][form] for split in splits for form in KALE_FORMS}
            return {**values, "kale_train_minus_test": found["kale_gap"]["value"]}

        evaluations.append((config.freq_kale, kale))
    if config.use_scheduler and config.scheduler == "mmd":

        def progress(trainer: Trainer) -> dict[str, float]:
            """The schedule's own test."""
            schedule = trainer.lr_schedule
            if trainer.counters.stage != "joint" or not isinstance(schedule, ThreeSample):
                return {}
            return schedule.test(trainer.sampled_base)

        evaluations.append((ThreeSample.every, progress))
    return evaluations


def _watches(config: Config, data: ImageData) -> bool:
    return not config.no_watch and len(data.train) > 1


def _watch(config: Config, data: ImageData, device: torch.device) -> Callable[[Trainer], dict[str, float]]:
    """A cheap look at the base: the Fréchet distance of 1,000 samples to training images, averaged to 8x8 pixels."""
    reference = Moments.of(extract(at_random(data.train, WATCH_REAL), WATCHED, device=device))
    few = replace(config, fid_samples=WATCH_SAMPLES)

    def distance(trainer: Trainer) -> dict[str, float]:
        if trainer.counters.stage == "refine":
            return {}
        posterior = LatentPosterior(trainer.model.prior, trainer.sampled_base, trainer.model.energy)
        moments = Moments.of(base_features(posterior, WATCHED, few, device))
        return {f"{metric_name('FD', WATCHED)}_base": frechet_distance(moments, reference)}

    return distance


def measures_of(config: Config, data: ImageData | TableData, device: torch.device) -> dict[str, tuple[str, bool]]:
    """By what the best checkpoint of a stage is told, of what `evaluations_of` gives, and whether the lowest is best.

    A base by its distance, of `--eval_fid` or else the one that is watched; an energy, on a base at rest, by its bound
    on the divergence: while the base moves, neither a high nor a low one is better. Tables keep their best
    weights within the stage (`EarlyStopping`).
    """
    measures: dict[str, tuple[str, bool]] = {}
    if not isinstance(data, ImageData):
        return measures
    if _watches(config, data):
        measures["joint"] = f"{metric_name('FD', WATCHED)}_base", True
    if config.eval_fid:
        measures["joint"] = f"{metric_name('FD', check_features(config, data, device))}_base", True
    if config.eval_kale:
        measures["refine"] = "kale_donsker_varadhan_test", False
    return measures
