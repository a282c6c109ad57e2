"""`gebm train`."""

import errno
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from gebm import fast, parallel
from gebm.bounded import read_json
from gebm.checkpoints import checkpoints, newest_checkpoint, order
from gebm.commands import launch
from gebm.commands.build import build_trainer, evaluations_of, measures_of
from gebm.commands.checks import check_flags, check_kind, check_processes, check_scheduler
from gebm.commands.datasets import check_shape, dataset
from gebm.commands.density import (
    LIKELIHOOD,
    check_split,
    evaluate_table,
    mean_over_splits,
    text_of,
    write_table,
)
from gebm.commands.history import NOT_SETTINGS, record_changes
from gebm.commands.pairs import ARCHITECTURE_FLAGS, architecture_of, settle_weights
from gebm.commands.records import check_resumed, compare_images, save_images, split_then
from gebm.commands.report import code_of, write_report
from gebm.commands.runs import check_new_run, open_run, resolve, runs_of
from gebm.commands.setup import choose_device, join, log, schedule_of, start_log
from gebm.commands.tables import settled
from gebm.config import Config
from gebm.data import ImageData, TableData
from gebm.data.units import save_units
from gebm.errors import InputError
from gebm.files import alone, atomic_folder, check_writable, sweep
from gebm.model import GEBM, read_architecture
from gebm.report import nll_rows, table
from gebm.training.checkpoint import best_checkpoint, load_checkpoint, measure_of
from gebm.training.loop import Interrupted, Schedule, exit_code
from gebm.training.rollback import train_with_rollbacks
from gebm.training.schedules import ThreeSample
from gebm.training.trainer import Trainer

__all__ = ["main"]


def main(config: Config, given: frozenset[str]) -> Path:
    """Train as configured, on one split or on several; returns the run's folder."""
    start_log()
    config, given = settled(config, given)
    if config.dataparallel and parallel.launched() == 1:
        if (gpus := launch.local_gpus()) > 1:
            raise SystemExit(launch.launch(gpus, "train", launch.as_arguments(config, given)))
        log.info("dataparallel: %d GPU%s here, so this is one process", gpus, "" if gpus == 1 else "s")
    join(config)
    run = parallel.from_first(lambda: _run_to_resume(config, given))
    if run is None:
        check_kind(config, given)
    else:
        _check_splits(run, config, given)
    splits = Config.load(run / "config.yaml").n_splits if run is not None else config.n_splits
    return train_splits(config, given, run) if splits > 1 else train_run(config, given, run)


def train_splits(config: Config, given: frozenset[str], run: Path | None) -> Path:
    """Train on every split, each a run `split-SEED` in the folder, and average; goes on with those that are begun."""
    if run is not None:
        check_writable(run, "--log_dir")
        config = _changed(Config.load(run / "config.yaml"), config, given)
    else:
        run = check_new_run(config)
        check_flags(config)
        check_scheduler(config, given)
        check_processes(config)
        if not GEBM.build(architecture_of(config, given, dataset(config).shape)).has_density:
            raise InputError("--n_splits: averages likelihoods, and this base has no density (log_prob); leave it out")
        with atomic_folder(run, new=True) as temporary:
            config.save(temporary / "config.yaml")
    found = []
    with alone(run):
        for seed in range(config.seed, config.seed + config.n_splits):
            split = run / f"split-{seed}"
            own = replace(config, seed=seed, n_splits=1, log_dir=str(run), log_name=split.name, resume="")
            train_run(own, given, split if split.exists() else None, whole=run)
            found.append(read_json(split / LIKELIHOOD))
        summary = mean_over_splits(found)
        write_table(run, summary, table(nll_rows(summary), run.name))
    return run


def train_run(config: Config, given: frozenset[str], run: Path | None, whole: Path | None = None) -> Path:
    """Train one pair, or go on with the run that is given; `whole` is the folder of all splits, for one of them.

    Its folder is this process's alone until the end.
    """
    with ExitStack() as held:
        if run is not None:
            check_writable(run, "--log_dir")
            parallel.from_first(lambda: held.enter_context(alone(run)))
        return _train_run(config, given, run, whole, held)


def _newest(run: Path) -> Path | None:
    """The newest whole checkpoint, with one that a killed process was about to replace given back first."""
    sweep(run / "checkpoints")
    return newest_checkpoint(run)


def _train_run(config: Config, given: frozenset[str], run: Path | None, whole: Path | None, held: ExitStack) -> Path:
    stored = None
    checkpoint = parallel.from_first(lambda: _newest(run) if run is not None else None)
    if run is not None:
        stored = Config.load(run / "config.yaml")
        config = _changed(stored, config, given)
        _check_resumable(stored, config, checkpoint)
        for flag in sorted(given - NOT_SETTINGS):
            if getattr(config, flag) != getattr(stored, flag):
                log.info("changed: --%s %s, was %s", flag, getattr(config, flag), getattr(stored, flag))
        log.info("resuming %s from %s", run, checkpoint.name if checkpoint else "the start (it has no checkpoint)")
    held.enter_context(fast.plain(config.fast == "off"))  # as the run was, where it goes on
    check_flags(config)
    check_scheduler(config, given)
    check_processes(config)
    device = choose_device(config, given)
    run = run or parallel.from_first(lambda: check_new_run(config))
    data = dataset(config)
    # A checkpoint holds all that these flags gave, and they may be gone.
    start = replace(config, g_path="", d_path="") if checkpoint else settle_weights(config)
    begun_from = [Path(path) for path in (start.g_path, start.d_path) if path]
    if isinstance(data, TableData):
        for weights in {*begun_from} | ({run} if checkpoint else set()):
            check_split(weights, data)
    elif checkpoint:
        check_shape(config, data, read_architecture(checkpoint, "base", {config.g_model}).shape)
        check_resumed(run, data)
    elif note := compare_images(data, *begun_from):
        log.warning(note)

    def trainer_at(checkpoint: Path | None) -> tuple[Trainer, Tensor | None]:
        """The trainer as it was at a checkpoint, or at the start, and the images set aside."""
        trainer, held_out = build_trainer(
            replace(start, g_path="", d_path="") if checkpoint else start, given, data, device
        )
        if checkpoint is not None:
            with split_then(run, data):
                load_checkpoint(checkpoint, trainer)
        elif trainer.counters.stage != "base":
            trainer.prepare_energy()
        return trainer, held_out

    trainer, held_out = trainer_at(checkpoint)
    if config.precision == "auto":  # a run keeps its own, wherever it goes on
        config, start = (replace(c, precision="bf16" if trainer.autocast else 32) for c in (config, start))
    schedule = schedule_of(config, len(data.train))
    if checkpoint is not None:
        if schedule.finished(trainer.counters):
            if isinstance(data, TableData) and not (run / LIKELIHOOD).is_file():  # killed between the two
                return _write_likelihoods(run, trainer, data, config)
            has_a_page = config.mode == "train" and isinstance(data, ImageData)
            if parallel.leave() and has_a_page and not (run / "report.html").exists():  # killed before it was written
                log.info("%s is finished, so only its page is made: %s", run, write_report(run, code_of(config)))
            else:
                log.info("%s is finished: nothing was changed", run)
            return run
        if stored is not None and _was_the_end(checkpoint, schedule_of(stored, len(data.train)), schedule):
            log.info(
                "%s was the end of its stage, where c was set anew; a stage as long from the start has other weights",
                checkpoint.name,
            )
    evaluations = evaluations_of(config, data, device) if isinstance(data, ImageData) else []
    measures = measures_of(config, data, device)
    if stored is not None and parallel.is_first():
        record_changes(run, checkpoint, stored, resolve(run, config, device, trainer.model.built_as))
    resolved = open_run(run, config, device, trainer.model.built_as, resume=stored is not None)
    if stored is None:
        parallel.from_first(lambda: held.enter_context(alone(run)))
    if isinstance(data, TableData):
        save_units(run, data)
    elif checkpoint is None:  # of a run that goes on, the images that it was begun with stay on record
        parallel.from_first(lambda: save_images(run, data, *begun_from))
    _announce(run, config, data, schedule, trainer)
    try:
        with parallel.together(f"go on with --resume {run}"):
            trainer = train_with_rollbacks(
                trainer,
                lambda checkpoint: trainer_at(checkpoint)[0],
                schedule,
                run,
                max_rollbacks=config.max_rollbacks if config.on_divergence == "rollback" else 0,
                config=resolved.to_yaml(),
                keep=config.keep,
                loss_limit=config.loss_limit,
                held_out=held_out,
                save=not config.save_nothing,
                evaluations=evaluations,
                measures=measures,
            )
    except Interrupted as stop:
        onward = f"saved as {stop.checkpoint}; go on with --resume {whole or run}"
        kept = onward if stop.checkpoint else "nothing was saved"
        log.info("stopped by signal %d: %s", stop.signum, kept)
        raise SystemExit(exit_code(stop.signum)) from None
    except OSError as error:
        raise _with_advice(error, whole or run) from error
    if not parallel.leave():
        return run
    log.info("done: %s", newest_checkpoint(run) or run)
    for stage in measures:
        if (best := best_checkpoint(run, stage)) and (measure := measure_of(best)):
            log.info("best of its stage, %s %.4g: %s", measure.name, measure.value, best)
    if isinstance(data, TableData):
        return _write_likelihoods(run, trainer, data, config)
    if config.mode == "train":  # the demo goes on, and reports at its end
        log.info("report: %s", write_report(run, code_of(resolved)))
    return run


def _was_the_end(checkpoint: Path, stored: Schedule, schedule: Schedule) -> bool:
    """Whether a stage ended with a checkpoint by the schedule that it was made by, and by the present one goes on."""
    stage, step = order(checkpoint)
    last, now = (
        {"base": s.ml_steps, "joint": s.base_steps, "refine": s.refine_steps}[stage] for s in (stored, schedule)
    )
    return last <= step < now


def _announce(run: Path, config: Config, data: ImageData | TableData, schedule: Schedule, trainer: Trainer) -> None:
    """Say what will be trained, on what, for how long."""
    joint = schedule.base_steps if schedule.train_mode != "energy" else 0
    refine = schedule.refine_steps if schedule.refines else 0
    what = "rows" if isinstance(data, TableData) else "images"
    log.info("training on %s: %d %s %s, in %s", data.name, len(data.train), what, data.shape, run)
    if len(data.train) < config.b_size:
        log.info("fewer than a batch of %d: %s repeat within it; see --b_size", config.b_size, what)
    ml_steps = schedule.ml_steps if trainer.counters.ml_step < schedule.ml_steps else 0
    likelihood = f"{ml_steps} steps of maximum likelihood on the base, " if ml_steps else ""
    log.info("%s%d base steps, then %d energy steps with the base frozen", likelihood, joint, refine)
    lr_schedule = trainer.lr_schedule
    if isinstance(lr_schedule, ThreeSample) and joint <= lr_schedule.first:
        log.info("mmd: learning rates stay as they are, base step %d is the first to lower them", lr_schedule.first)
    elif config.use_scheduler and config.scheduler != "mmd":
        log.info("%s: an epoch is %.4g energy steps", config.scheduler, len(data.train) / config.b_size)
    if parallel.processes() > 1:
        count, each = parallel.processes(), config.b_size // parallel.processes()
        log.info("%d processes, each with %d images of every batch of %d", count, each, config.b_size)


def _write_likelihoods(run: Path, trainer: Trainer, data: TableData, config: Config) -> Path:
    """What a finished run on a table comes to, into its folder."""
    if not trainer.model.has_density:
        log.info("no likelihoods: the base has no density (log_prob)")
        return run
    summary = evaluate_table(trainer.sampled_model, data, config)
    summary["checkpoint"] = getattr(newest_checkpoint(run), "name", "")  # that these are of
    write_table(run, summary, text_of(summary, run.name))
    return run


def _with_advice(error: OSError, run: Path) -> OSError:
    """A failed write, with what to do about it."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    onward = f"{'free some space and ' if full else ''}go on with --resume {run}"
    return OSError(error.errno, f"{error.strerror or error}; {onward}", error.filename)


def _changed(stored: Config, config: Config, given: frozenset[str]) -> Config:
    """A run's configuration with the flags given now."""
    changes = {k: getattr(config, k) for k in given - {"mode", "resume", "log_dir", "log_name"}}
    return replace(stored, **{"slurm_id": "", **changes})  # the job that was is over


def _check_splits(run: Path, config: Config, given: frozenset[str]) -> None:
    """Refuse another set of splits than the run was made with."""
    stored = Config.load(run / "config.yaml")
    for flag in ("n_splits", "seed") if stored.n_splits > 1 else ("n_splits",):
        have, want = getattr(stored, flag), getattr(config, flag)
        if flag in given and have != want:
            raise InputError(f"--{flag} {want}: {run} was made with {have} and goes on so; leave the flag out")


def _run_to_resume(config: Config, given: frozenset[str]) -> Path | None:
    """The run `--resume` means; auto: the one of `--log_name`, else the newest that agrees with the flags given."""
    if not config.resume:
        return None
    if config.resume != "auto":
        run = Path(config.resume)
        file = run / "config.yaml"
        if not file.is_file() and (found := checkpoints(run)):
            raise InputError(f"--resume {run}: its config.yaml is missing; copy {found[-1] / 'config.yaml'} there")
        if not file.is_file() or Config.load(file).mode not in ("train", "demo"):
            raise InputError(f"--resume {run}: no training run there; give a folder that `gebm train` made, or auto")
        return run
    flags = {"mode", *given} - {"resume", "log_dir", "device"}
    for run in runs_of(config):
        stored = Config.load(run / "config.yaml")
        if run.name == config.log_name or all(getattr(stored, flag) == getattr(config, flag) for flag in flags):
            return run
    log.info("resume: no run of --dataset %s with these flags to go on with, starting a new one", config.dataset)
    return None


def _check_resumable(stored: Config, config: Config, checkpoint: Path | None) -> None:
    """Refuse what a run cannot change on its way."""
    fixed = ["train_mode", "ema", "dtype", *sorted({*ARCHITECTURE_FLAGS["base"], *ARCHITECTURE_FLAGS["energy"]})]
    if checkpoint is not None and checkpoint.name.startswith("refine"):
        fixed.append("total_gen_iter")  # the base is frozen
    for flag in fixed if checkpoint is not None else ():
        if getattr(config, flag) != getattr(stored, flag):
            raise InputError(
                f"--{flag} {getattr(config, flag)}: {checkpoint} was made with {getattr(stored, flag)} and cannot go "
                "on otherwise; leave the flag out, or start a new run from it with --g_path and --d_path"
            )
