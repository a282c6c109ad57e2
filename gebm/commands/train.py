"""`gebm train`."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gebm.commands.chains import kernel_of
from gebm.commands.density import (
    LIKELIHOOD,
    ValidationNLL,
    evaluate_table,
    mean_over_splits,
    save_units,
    text_of,
    write_table,
)
from gebm.commands.metrics import base_features, check_features, evaluate_model, features_of
from gebm.commands.report import code_of, write_report
from gebm.commands.setup import (
    architecture_of,
    check_new_run,
    choose_device,
    dataset,
    log,
    newest_checkpoint,
    of_table,
    open_run,
    runs_of,
    schedule_of,
    settled,
    start_log,
)
from gebm.config import Config
from gebm.data import Batches, ImageData, TableData, from_uint8, set_aside
from gebm.errors import InputError
from gebm.files import atomic_folder, check_writable
from gebm.latent import LatentPosterior
from gebm.metrics import Frechet, extract, metric_name
from gebm.model import GEBM
from gebm.networks import BASES, FLOWS
from gebm.objectives import OBJECTIVES
from gebm.report import nll_rows, table
from gebm.seeds import stream
from gebm.training.checkpoint import load_checkpoint
from gebm.training.loop import Interrupted, train
from gebm.training.negatives import Fresh, Negatives, Pool, Replay
from gebm.training.schedules import Exponential, LRSchedule, MultiStep, ThreeSample
from gebm.training.selection import EarlyStopping
from gebm.training.trainer import Trainer

__all__ = ["build_trainer", "main"]

KALE_FORMS = ("fenchel", "donsker_varadhan")
# flag -> what to give instead
OF_IMAGES_ALONE = {
    "total_gen_iter": "tables count passes, see --total_epochs", "refine_iter": "see --refine_epochs",
    "refine_kale": "see --patience", "image_size": "", "eval_fid": "likelihoods are measured instead",
    "eval_kale": "likelihoods are measured instead", "no_trunc": "energies of tables have no floor",
}  # fmt: skip
OF_TABLES_ALONE = {
    "ml_epochs": "", "refine_epochs": "see --refine_iter", "patience": "see --refine_kale", "n_splits": "",
    "protocol": "", "scaling": "", "fresh_noise": "", "dropout": "", "num_blocks": "", "bn": "",
}  # fmt: skip
POOL = 20  # energy steps' worth of samples of a base that is slow to sample
TEST_SAMPLES = 2000  # of the base, and as many training images, that `--scheduler mmd` compares
SCHEDULERS_OF = {
    "milestone": ("MultiStepLR",), "scheduler_gamma": ("MultiStepLR", "ExponentialLR"), "lr_decay": ("mmd",)
}  # fmt: skip


def main(config: Config, given: frozenset[str]) -> Path:
    """Train as configured, on one split or on several; returns the run's folder."""
    start_log()
    config, given = settled(config, given)
    run = _run_to_resume(config, given)
    if run is None:
        _check_kind(config, given)
    splits = Config.load(run / "config.yaml").n_splits if run is not None else config.n_splits
    return train_splits(config, given, run) if splits > 1 else train_run(config, given, run)


def train_splits(config: Config, given: frozenset[str], run: Path | None) -> Path:
    """Train on every split, each a run `split-SEED` in the folder, and average; goes on with those that are begun."""
    if run is not None:
        check_writable(run, "--log_dir")
        config = _changed(Config.load(run / "config.yaml"), config, given)
    else:
        run = check_new_run(config)
        with atomic_folder(run, new=True) as temporary:
            config.save(temporary / "config.yaml")
    found = []
    for seed in range(config.seed, config.seed + config.n_splits):
        split = run / f"split-{seed}"
        if not (split / LIKELIHOOD).is_file():
            own = replace(config, seed=seed, n_splits=1, log_dir=str(run), log_name=split.name, resume="")
            train_run(own, given, split if split.exists() else None)
        found.append(json.loads((split / LIKELIHOOD).read_text()))
    summary = mean_over_splits(found)
    write_table(run, summary, table(nll_rows(summary), run.name))
    return run


def train_run(config: Config, given: frozenset[str], run: Path | None) -> Path:
    """Train one pair, or go on with the run that is given."""
    stored = None
    checkpoint = newest_checkpoint(run) if run is not None else None
    if run is not None:
        check_writable(run, "--log_dir")
        stored = Config.load(run / "config.yaml")
        config = _changed(stored, config, given)
        _check_resumable(stored, config, checkpoint)
        for flag in sorted(given - {"mode", "resume", "log_dir", "log_name", "device"}):
            if getattr(config, flag) != getattr(stored, flag):
                log.info("changed: --%s %s, was %s", flag, getattr(config, flag), getattr(stored, flag))
        log.info("resuming %s from %s", run, checkpoint.name if checkpoint else "the start (it has no checkpoint)")
    _check(config)
    _check_scheduler(config, given)
    device = choose_device(config, given)
    run = run or check_new_run(config)
    data = dataset(config)
    # A checkpoint holds all that --g_path and --d_path gave, and they may be gone.
    start = replace(config, g_path="", d_path="") if checkpoint else config
    trainer, held_out = build_trainer(start, given, data, device)
    schedule = schedule_of(config, len(data.train))
    if checkpoint is not None:
        load_checkpoint(checkpoint, trainer)
        if schedule.finished(trainer.counters):
            log.info("%s is finished: nothing was changed", run)
            return run
    evaluations = _evaluations(config, data, device)
    resolved = open_run(run, config, device, trainer.model.architecture, resume=stored is not None)
    if of_table(config):
        save_units(run, data)
    if checkpoint is None and config.initialize_log_partition:
        trainer.initialize_log_partition()
    joint = schedule.base_steps if schedule.train_mode != "energy" else 0
    refine = schedule.refine_steps if schedule.refines else 0
    what = "rows" if of_table(config) else "images"
    log.info("training on %s: %d %s %s, in %s", data.name, len(data.train), what, data.shape, run)
    likelihood = f"{schedule.ml_steps} of maximum likelihood on the base, " if schedule.ml_steps else ""
    log.info("%s%d base steps, then %d energy steps with the base frozen", likelihood, joint, refine)
    lr_schedule = trainer.lr_schedule
    if isinstance(lr_schedule, ThreeSample) and joint <= lr_schedule.first:
        log.info("mmd: learning rates stay as they are, base step %d is the first to lower them", lr_schedule.first)
    elif config.use_scheduler and config.scheduler != "mmd":
        log.info("%s: an epoch is %.4g energy steps", config.scheduler, len(data.train) / config.b_size)
    try:
        train(
            trainer,
            schedule,
            run,
            config=resolved.to_yaml(),
            held_out=held_out,
            save=not config.save_nothing,
            evaluations=evaluations,
        )
    except Interrupted as stop:
        kept = f"saved as {stop.checkpoint}; go on with --resume {run}" if stop.checkpoint else "nothing was saved"
        log.info("stopped by signal %d: %s", stop.signum, kept)
        raise SystemExit(128 + stop.signum) from None
    log.info("done: %s", newest_checkpoint(run) or run)
    if of_table(config):
        summary = evaluate_table(trainer.model, data, config)
        write_table(run, summary, text_of(summary, run.name))
    elif config.mode == "train":  # the demo goes on, and reports at its end
        log.info("report: %s", write_report(run, code_of(resolved)))
    return run


def build_trainer(
    config: Config, given: frozenset[str], data: ImageData | TableData, device: torch.device
) -> tuple[Trainer, torch.Tensor | None]:
    """Networks, optimisers and batches as configured, and the images set aside for `--refine_kale`."""
    torch.manual_seed(config.seed)
    dtype = torch.float64 if config.dtype == 64 else torch.float32
    model = GEBM.build(architecture_of(config, given, data.shape), dtype).to(device)
    if config.g_path:
        model.load_base(newest_checkpoint(Path(config.g_path)) or config.g_path)
    if config.d_path:
        model.load_energy(newest_checkpoint(Path(config.d_path)) or config.d_path)
    images, held_out, noise, selection = data.train, None, None, None
    if of_table(config):
        if config.fresh_noise and data.noise is not None:
            images, noise = data.exact, data.noise
        rows = torch.from_numpy(np.array(data.valid)).to(model.log_partition)
        if model.has_density:
            selection = EarlyStopping(ValidationNLL(rows, data.shift, config.seed), config.patience)
    elif config.refine_kale and schedule_of(config).refines:
        images, held_out = set_aside(images)
        held_out = from_uint8(torch.tensor(held_out)).to(model.log_partition)
    objective = OBJECTIVES[config.criterion](
        model.energy, model.log_partition, penalty_type=config.penalty_type, penalty_lambda=config.penalty_lambda
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
        negatives=_negatives(config, model),
        selection=selection,
        generator=torch.Generator(device).manual_seed(stream(config.seed, "latents")),
    )
    if schedule_of(config, len(data.train)).ml_steps:
        trainer.counters.stage = "base"
    if config.train_mode == "energy":
        trainer.start("refine")
    if config.train_mode == "base":
        trainer.freeze_energy()
    return trainer, held_out


def _negatives(config: Config, model: GEBM) -> Negatives:
    """Where the samples of energy steps come from: chains for cd, a pool where sampling takes d passes."""
    if config.criterion == "cd":
        kernel = kernel_of(config)
        persists = kernel.moves and kernel.anneals  # as the default of tables does not: chains of `Replay`'s own kernel
        return Replay(kernel if persists else None, config.cd_steps)
    if getattr(model.base, "sequential", False):
        return Pool(POOL * config.noise_factor * config.b_size)
    return Fresh()


def _optimizer(config: Config, network: nn.Module, lr: float, c: nn.Parameter | None = None) -> torch.optim.Optimizer:
    """The configured optimiser of a network and, for the energy's, of c, which has no weight decay."""
    groups: list[dict] = [{"params": list(network.parameters()), "weight_decay": config.weight_decay}]
    if c is not None:
        groups.append({"params": [c], "weight_decay": 0.0})
    if config.optimizer == "SGD":
        return torch.optim.SGD(groups, lr, momentum=config.sgd_momentum)
    return torch.optim.Adam(groups, lr, betas=(config.beta_1, config.beta_2))


def _check(config: Config) -> None:
    """What one flag demands of another."""
    if config.train_mode == "energy" and not config.g_path and config.g_model in BASES:
        raise InputError(
            "--train_mode energy trains on a frozen base: give it with --g_path (run, checkpoint or file), or as "
            "--g_model package.module:factory, whose factory returns it trained"
        )
    if config.train_mode == "energy" and schedule_of(config, 1).refine_steps == 0:
        flag = "--refine_epochs passes of" if of_table(config) else "--refine_iter"
        raise InputError(f"--train_mode energy takes {flag} energy steps, and that is 0: give a number")
    if config.train_mode == "base" and not config.d_path and not (of_table(config) and not config.total_epochs):
        raise InputError("--train_mode base trains against a frozen energy: give it with --d_path")


def _check_kind(config: Config, given: frozenset[str]) -> None:
    """Refuse flags of images for tables and flags of tables for images, and a likelihood without a density."""
    rows = of_table(config)
    for flag in sorted(given & (OF_IMAGES_ALONE if rows else OF_TABLES_ALONE).keys()):
        if getattr(config, flag) != getattr(Config, flag):
            what, instead = ("a table", OF_IMAGES_ALONE) if rows else ("images", OF_TABLES_ALONE)
            hint = f"; {instead[flag]}" if instead[flag] else ""
            raise InputError(f"--{flag} {getattr(config, flag)}: --dataset {config.dataset} is {what}{hint}")
    if config.criterion == "ml" and config.g_model in BASES and config.g_model not in FLOWS:
        raise InputError(f"--criterion ml: needs a base with a density, --g_model {', '.join(FLOWS)}")


def _milestones(config: Config) -> list[int]:
    return [int(epoch) for epoch in config.milestone.split(",")]


def _lr_schedule(config: Config, model: GEBM, data: ImageData, images: np.ndarray, device: torch.device) -> LRSchedule:
    """The schedule of `--use_scheduler`; for mmd, on a part of the images that the model is trained on."""
    if not config.use_scheduler:
        return LRSchedule()
    if config.scheduler == "MultiStepLR":
        return MultiStep(_milestones(config), config.scheduler_gamma)
    if config.scheduler == "ExponentialLR":
        return Exponential(config.scheduler_gamma)
    extractor = check_features(config, data, device)
    chosen = np.random.default_rng(stream(config.seed, "mmd")).permutation(len(images))[:TEST_SAMPLES]
    drawn = replace(config, fid_samples=len(chosen))

    def sample(base: nn.Module) -> Tensor:
        return base_features(LatentPosterior(model.prior, base, model.energy), extractor, drawn, device)

    real = extract(images[chosen], extractor, config.fid_b_size, device)
    return ThreeSample(config.lr_decay, real, sample, extractor.key)


def _check_scheduler(config: Config, given: frozenset[str]) -> None:
    """Refuse milestones that do not rise, flags of a schedule that is not the one in use, and one that cannot act."""
    for flag, schedulers in {"scheduler": (config.scheduler,), **SCHEDULERS_OF}.items():
        value, used = getattr(config, flag), config.use_scheduler and config.scheduler in schedulers
        if flag in given and value != getattr(Config, flag) and not used:
            needed = "" if flag == "scheduler" else f" --scheduler {' or '.join(schedulers)}"
            raise InputError(f"--{flag} {value}: needs --use_scheduler{needed}; give that too, or leave the flag out")
    if not config.use_scheduler:
        return
    if config.scheduler == "MultiStepLR" and any(a >= b for a, b in pairwise(_milestones(config))):
        raise InputError(f"--milestone {config.milestone}: epochs must rise, as in {Config.milestone}")
    if config.train_mode == "energy":
        raise InputError("--use_scheduler: is of the joint stage, and --train_mode energy has none; leave it out")
    if config.train_mode == "base" and config.scheduler != "mmd":
        counts = "counts epochs of the energy, and --train_mode base has none"
        raise InputError(f"--scheduler {config.scheduler}: {counts}; take mmd")


def _changed(stored: Config, config: Config, given: frozenset[str]) -> Config:
    """A run's configuration with the flags given now."""
    return replace(stored, **{k: getattr(config, k) for k in given - {"mode", "resume", "log_dir", "log_name"}})


def _run_to_resume(config: Config, given: frozenset[str]) -> Path | None:
    """The run `--resume` means; auto: the one of `--log_name`, else the newest that agrees with the flags given."""
    if not config.resume:
        return None
    if config.resume != "auto":
        run = Path(config.resume)
        file = run / "config.yaml"
        if not file.is_file() or Config.load(file).mode not in ("train", "demo"):
            raise InputError(f"--resume {run}: no training run there; give a folder that `gebm train` made, or auto")
        return run
    flags = {"mode", *given} - {"resume", "log_dir", "device"}
    for run in reversed(runs_of(config)):
        stored = Config.load(run / "config.yaml")
        if run.name == config.log_name or all(getattr(stored, flag) == getattr(config, flag) for flag in flags):
            return run
    log.info("resume: no run of --dataset %s with these flags to go on with, starting a new one", config.dataset)
    return None


def _check_resumable(stored: Config, config: Config, checkpoint: Path | None) -> None:
    """Refuse what a run cannot change on its way."""
    fixed = ["train_mode", "ema", "dtype"]
    if checkpoint is not None and checkpoint.name.startswith("refine"):
        fixed.append("total_gen_iter")  # the base is frozen
    for flag in fixed if checkpoint is not None else ():
        if getattr(config, flag) != getattr(stored, flag):
            raise InputError(
                f"--{flag} {getattr(config, flag)}: {checkpoint} was made with {getattr(stored, flag)} and cannot go "
                "on otherwise; leave the flag out, or start a new run from it with --g_path and --d_path"
            )


def _evaluations(
    config: Config, data: ImageData, device: torch.device
) -> list[tuple[int, Callable[[Trainer], dict[str, float]]]]:
    """What `--eval_fid` and `--eval_kale` add to the log, and how often."""
    evaluations = []
    if config.eval_fid:
        check_features(config, data, device)
        extractor, reference = features_of(config, data, device)
        metric = Frechet(reference.moments, metric_name("FD", extractor))

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
            return trainer.lr_schedule.test(trainer.sampled_base) if trainer.counters.stage == "joint" else {}

        evaluations.append((ThreeSample.every, progress))
    return evaluations
