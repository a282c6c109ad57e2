"""Training from Python: any pair of modules, any data, with or without a folder."""

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from gebm import fast
from gebm.arguments import check_number, check_whole
from gebm.bounded import read_json
from gebm.checkpoints import newest_checkpoint
from gebm.data.batches import Batches
from gebm.data.given import as_items, content_key, note_on_levels, seen
from gebm.data.tabular import TableData, load_table
from gebm.errors import InputError
from gebm.files import LEFT, alone, naming, write_json
from gebm.latent import one_a_row
from gebm.metrics.partition import base_energies, energies, evaluate_kale
from gebm.model import GEBM
from gebm.networks.common import called, evaluating
from gebm.objectives import OBJECTIVES
from gebm.own_modules import state_of
from gebm.penalties import PENALTIES
from gebm.precision import for_training
from gebm.seeds import stream
from gebm.text import hint, show
from gebm.training.checkpoint import load_checkpoint, save_checkpoint
from gebm.training.guard import DivergenceError
from gebm.training.history import History
from gebm.training.loop import Interrupted, Schedule
from gebm.training.negatives import Fresh, Replay
from gebm.training.rollback import train_with_rollbacks
from gebm.training.selection import EarlyStopping
from gebm.training.trainer import Trainer

__all__ = ["Callback", "Training", "fit", "refine"]

RECORD = "fit.json"  # of the settings and of the data, in the folder of a run
HELD_OUT = 2000  # base samples and data, at most, of a look at held-out data

Callback = Callable[[Trainer], Mapping[str, float] | None]


log = logging.getLogger("gebm")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a pair is trained. The defaults are for networks of moderate size; see docs/method.md for what each does.

    Attributes:
        steps: base steps of the joint stage; 0: there is none.
        refine_steps: energy steps after it, with the base at rest; 0: there are none.
        batch_size: of the data; an energy step draws `base_factor` times as many samples of the base.
        energy_steps, first_energy_steps: energy steps for each base step, and before the first and every 500th one.
        learning_rate, base_learning_rate: of Adam; None: that of the base is the energy's. In the refinement it falls
            to zero.
        betas: of Adam.
        criterion: a name in `gebm.objectives.OBJECTIVES`.
        penalty, penalty_weight: 'gradient', 'l2', 'gradient_l2' or 'none', and its weight in the loss.
        ema: decay of the moving average of the base, which is then the one that is sampled; 0: no average.
        grad_clip: largest gradient norm of a step; 0: no limit.
        precision: 'auto', 32 or 'bf16', what networks compute in.
        patience: passes over the data without a better KALE on the held-out data that end the refinement; 0: none do.
        max_rollbacks: how often a training that diverges goes back to its last checkpoint, at half the learning rates;
            takes a folder.
        log_every, checkpoint_every: in base steps, and in energy steps while refining.
        keep: newest checkpoints of a stage that stay.
        seed: of batches, latents and dropout; the weights are the caller's.

    Raises:
        InputError: a number below the least it may be, or an unknown name.

    Example:

        >>> Training(steps=1000, criterion="donsker").energy_steps
        5
    """

    steps: int = 20_000
    refine_steps: int = 3_000
    batch_size: int = 128
    base_factor: int = 1
    energy_steps: int = 5
    first_energy_steps: int = 100
    learning_rate: float = 2e-4
    base_learning_rate: float | None = None
    betas: tuple[float, float] = (0.5, 0.999)
    criterion: str = "kale"
    penalty: str = "gradient"
    penalty_weight: float = 1.0
    ema: float = 0.0
    grad_clip: float = 0.0
    precision: int | str = 32
    patience: int = 0
    max_rollbacks: int = 3
    log_every: int = 100
    checkpoint_every: int = 1000
    keep: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise InputError(f"betas: must be two numbers, as (0.5, 0.999), not {show(self.betas)}")
        check_whole(0, steps=self.steps, refine_steps=self.refine_steps, patience=self.patience, seed=self.seed)
        check_whole(0, first_energy_steps=self.first_energy_steps, max_rollbacks=self.max_rollbacks)
        check_whole(1, batch_size=self.batch_size, base_factor=self.base_factor, energy_steps=self.energy_steps)
        check_whole(1, log_every=self.log_every, checkpoint_every=self.checkpoint_every, keep=self.keep)
        check_number(0, learning_rate=self.learning_rate, penalty_weight=self.penalty_weight, grad_clip=self.grad_clip)
        check_number(0, ema=self.ema, **{f"betas[{i}]": beta for i, beta in enumerate(self.betas)})
        if self.base_learning_rate is not None:
            check_number(0, base_learning_rate=self.base_learning_rate)
        if max(*self.betas, self.ema) >= 1:
            raise InputError(f"betas and ema must be below 1, not {self.betas} and {self.ema}")
        for name, allowed in (
            ("criterion", list(OBJECTIVES)), ("penalty", list(PENALTIES)), ("precision", ["auto", 32, "bf16"]),
        ):  # fmt: skip
            value = getattr(self, name)
            if value not in allowed:
                near = hint(str(value), map(str, allowed))
                raise InputError(f"{name} must be one of {', '.join(map(str, allowed))}, not {show(value)}{near}")
        if not self.steps + self.refine_steps:
            raise InputError("steps and refine_steps are both 0: there is nothing to train")
        for f in fields(self):  # numbers of numpy become Python's, which can be written down
            value = getattr(self, f.name)
            if isinstance(value, tuple | list):
                object.__setattr__(self, f.name, tuple(float(v) for v in value))
            elif isinstance(value, np.generic):
                object.__setattr__(self, f.name, value.item())


def fit(
    model: GEBM,
    data: Any,
    training: Training | None = None,
    *,
    out: str | Path | None = None,
    valid: Any = None,
    device: str | torch.device | None = None,
    callbacks: Sequence[tuple[int, Callback]] = (),
    progress: bool = True,
    **settings: Any,
) -> History:
    r"""Train a pair: base and energy in turn, then the energy alone on the base at rest.

    Energy steps maximise KALE over E (and c follows), base steps minimise it over G:

    .. math:: \max_{E, c}\; -\mathbb E_{data}[E] - c - \mathbb E_G[e^{-(E + c)}] + 1

    The model is trained in place and left in evaluation mode; its parameters require gradients as they did before.

    Arguments:
        model: the pair, of any modules.
        data: what it is trained on: a tensor or an array, uint8 images (N, C, H, W) or floats (N, ...) as the base
            makes them; a `Dataset`, a `DataLoader` over one, a path or the name of a data set
            (`gebm.data.given.as_items`). The rows of a table are whitened, and its units are kept in `model.units`.
        training: all settings; None: the defaults.
        out: a folder for the log, pictures and checkpoints. A training that was interrupted goes on from there, on the
            CPU to the same bits (where transforms of a `Dataset` draw from torch's random numbers), and one that is
            finished is loaded.
        valid: data of the same kind that the pair is not trained on: `patience` looks at it, and the refinement ends
            with the energy of the best KALE there.
        device: where to; None: where the model is.
        callbacks: pairs of a number of steps and a function of the `Trainer` that is called that often; what it returns
            goes into the history.
        progress: show a bar and what is to be said.
        settings: fields of `Training`, in the place of its own.

    Returns:
        The log of the training.

    Raises:
        InputError: data of another shape than the base makes, an energy that is not one number a sample, an unknown
            setting, a folder that holds something else; nothing is written then.
        DivergenceError: a loss was not finite or beyond 1e8, after all rollbacks.
        KeyboardInterrupt: it was interrupted; in `out` is a checkpoint of that moment.

    Reference: Arbel, Zhou and Gretton, *Generalized Energy Based Models*, ICLR 2021, arXiv 2003.05033, Algorithm 1.

    Example:

        >>> import gebm
        >>> _ = torch.manual_seed(0)
        >>> base, energy = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1), nn.Flatten(0))
        >>> model = gebm.GEBM(base, energy, gebm.GaussianPrior(2))
        >>> data = torch.randn(1000, 2) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]])
        >>> history = gebm.fit(model, data, steps=20, refine_steps=10, log_every=10, progress=False)
        >>> [row["stage"] for row in history]
        ['joint', 'joint', 'refine']
    """
    settled = _settled(training, settings)
    run = _folder(out)
    _check_arguments(model, callbacks)
    with _speaking(progress), _as_it_was(model, settled.seed) as frozen:
        _move(model, device)
        data = _table(data)
        items = as_items(data)
        held_back = None if valid is None else as_items(valid, "valid", "valid")
        if settled.patience and held_back is None:
            raise InputError(f"patience={settled.patience}: looks at data that the pair is not trained on: give valid=")
        if held_back is not None and not settled.refine_steps:
            raise InputError("valid: is looked at in the refinement, and refine_steps is 0: leave it out")
        if held_back is not None and held_back.shape[1:] != items.shape[1:]:
            shapes = f"{tuple(held_back.shape[1:])}, the data of {tuple(items.shape[1:])}"
            raise InputError(f"valid: samples of shape {shapes}")
        _check_pair(model, items, settled)
        held_out = None if held_back is None else _some(held_back, model, HELD_OUT)
        record = _record(model, items, held_back, settled)
        if isinstance(data, TableData):
            model.units = data

        def trainer_at(checkpoint: Path | None) -> Trainer:
            trainer = _trainer(model, items, settled, held_out)
            for module in frozen:  # a part that the caller has frozen in evaluation mode stays so
                module.eval()
            if checkpoint is not None:
                load_checkpoint(checkpoint, trainer)
            elif trainer.objective.maximises_kale:
                trainer.prepare_energy()
            return trainer

        history, schedule = History(out=run), _schedule(settled)
        with _held(run):
            checkpoint = None if run is None else _resumed(run, record)
            trainer = trainer_at(checkpoint)
            if run is not None and checkpoint is None:
                write_json(run / RECORD, record)
                save_checkpoint(run, trainer, "", settled.keep)  # the weights that the caller began with
            try:
                trainer = train_with_rollbacks(
                    trainer, trainer_at, schedule, run, max_rollbacks=settled.max_rollbacks, keep=settled.keep,
                    evaluations=[(every, _dict_of(look)) for every, look in callbacks],
                    rows=history.rows, progress=progress, config=yaml.safe_dump(record["settings"], sort_keys=False),
                )  # fmt: skip
            except Interrupted as stop:
                raise KeyboardInterrupt(f"saved as {stop.checkpoint}" if run else "nothing was saved") from None
            except DivergenceError:
                if run is not None and (good := newest_checkpoint(run)):  # not the weights that were lost
                    model.load_base(good)
                    model.load_energy(good)
                raise
            finally:
                if trainer.average is not None:  # the base that is sampled, and that c is of
                    model.base.load_state_dict(trainer.average.module.state_dict())
    return history


def refine(model: GEBM, data: Any, training: Training | None = None, *, steps: int = 3_000, **options: Any) -> History:
    """Train the energy alone, on the base as it is: `fit` without its joint stage, with the same other arguments.

    The base's weights stay as they are. This is how an energy is put on a generator that was trained elsewhere.

    Arguments:
        steps: energy steps, over which the learning rate falls to zero.

    Example:

        >>> import gebm
        >>> base, energy = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1), nn.Flatten(0))
        >>> model, before = gebm.GEBM(base, energy, gebm.GaussianPrior(2)), base.weight.clone()
        >>> history = gebm.refine(model, torch.randn(1000, 2), steps=20, progress=False)
        >>> bool((base.weight == before).all())
        True
    """
    if "refine_steps" in options:
        raise InputError("refine: its number of energy steps is steps=")
    for name in ("base_learning_rate", "ema"):
        if name in options:
            raise InputError(f"refine: {name} is of fit's joint stage; leave it out")
    check_whole(1, steps=steps)
    return fit(model, data, training, steps=0, refine_steps=steps, **options)


def _settled(training: Training | None, settings: Mapping[str, Any]) -> Training:
    known = [field.name for field in fields(Training)]
    if unknown := next((name for name in settings if name not in known), None):
        raise InputError(f"fit: {unknown} is no setting{hint(unknown, known)}; choose {', '.join(known)}")
    if training is not None and not isinstance(training, Training):
        raise InputError(f"training: must be a gebm.Training, not a {type(training).__name__}")
    return replace(training or Training(), **settings)


def _schedule(settled: Training) -> Schedule:
    return Schedule(
        train_mode="both" if settled.steps else "energy",
        base_steps=settled.steps,
        n_iter_d=settled.energy_steps,
        n_iter_d_init=settled.first_energy_steps,
        refine_steps=settled.refine_steps,
        log_every=settled.log_every,
        checkpoint_every=settled.checkpoint_every,
    )


def _trainer(model: GEBM, items: Tensor | Any, settled: Training, held_out: Tensor | None) -> Trainer:
    """The trainer of a fit at its start."""
    device = model.log_partition.device
    objective = OBJECTIVES[settled.criterion](
        model.energy, model.log_partition, penalty_type=settled.penalty, penalty_lambda=settled.penalty_weight
    )
    base_rate = settled.learning_rate if settled.base_learning_rate is None else settled.base_learning_rate
    fused = fast.enabled() or None
    optimizers = [
        torch.optim.Adam([{"params": list(network.parameters())}], rate, betas=settled.betas, fused=fused)
        for network, rate in ((objective, settled.learning_rate), (model.base, base_rate))
    ]
    trainer = Trainer(
        model,
        Batches(items, settled.batch_size, device, torch.Generator().manual_seed(stream(settled.seed, "batches"))),
        objective,
        *optimizers,
        negatives=Fresh() if objective.fake_from == "base" else Replay(),
        noise_factor=settled.base_factor,
        grad_clip=settled.grad_clip,
        ema=settled.ema if settled.steps else 0.0,
        selection=_selection(held_out, settled),
        set_log_partition=True,
        generator=torch.Generator(device).manual_seed(stream(settled.seed, "latents")),
        autocast=torch.bfloat16 if for_training(settled.precision, model).precision == "bf16" else None,
    )
    if not settled.steps:
        trainer.start("refine")
    return trainer


def _selection(held_out: Tensor | None, settled: Training) -> EarlyStopping | None:
    """The refinement ends with the energy of the largest KALE on held-out data."""
    if held_out is None:
        return None

    def loss(trainer: Trainer) -> float:
        model = trainer.model
        generator = torch.Generator(model.log_partition.device).manual_seed(stream(settled.seed, "valid"))
        fake = base_energies(model, HELD_OUT, generator)
        return -evaluate_kale(energies(model.energy, held_out), fake, model.log_partition.item()).donsker_varadhan

    return EarlyStopping(loss, settled.patience, "minus_kale_valid", ("refine",))


def _some(items: Any, model: GEBM, most: int) -> Tensor:
    """The first samples (k, ...), as networks see them, like the model's weights."""
    return seen(items, torch.arange(min(len(items), most))).to(model.log_partition)


def _check_pair(model: GEBM, items: Any, settled: Training) -> None:
    """Raise InputError unless base and energy fit the data and each other, before anything is written or moved."""
    trained = [("energy", model.energy)] + ([("base", model.base)] if settled.steps else [])
    for part, network in trained:
        if not isinstance(network, nn.Module) or not any(p.requires_grad for p in network.parameters()):
            mend = "; to train the energy alone, use gebm.refine" if part == "base" else ""
            raise InputError(f"fit: the {part} has no parameters to train{mend}")
    real, generator = _some(items, model, 2), torch.Generator(model.log_partition.device).manual_seed(0)
    with evaluating(model):
        fake = model.generate(2, generator)
    if fake.shape[1:] != items.shape[1:]:
        raise InputError(
            f"fit: the base makes samples of shape {tuple(fake.shape[1:])}, the data have {tuple(items.shape[1:])}"
        )
    with evaluating(model):
        one_a_row(called(model.energy, real, "the energy"), real, "the energy")
        many = torch.cat([model.generate(32, generator) for _ in range(2)])
    if note := note_on_levels(items, many):
        log.warning("fit: %s", note)


def _resumed(run: Path, record: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a run goes on from; None: it begins.

    Raises:
        InputError: the folder holds something else, or a run on other data, or what cannot change has.
    """
    file = run / RECORD
    if not file.is_file():
        if any(path.name != ".lock" and not LEFT.fullmatch(path.name) for path in run.iterdir()):
            raise InputError(f"out: {run} is not empty, and holds no run of gebm.fit; name another folder")
        return None
    try:
        stored = read_json(file)
        before, shape, key = stored["settings"], stored["shape"], stored["data"]
        pair = {name: stored[name] for name in ("prior", "valid", "base")}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{file}: damaged; restore it, or name another folder") from None
    if (shape, key) != (record["shape"], record["data"]):
        raise InputError(f"out: {run} is of other data, of shape {tuple(shape)}; name another folder")
    if bool(before.get("steps")) != bool(record["settings"]["steps"]):
        raise InputError(f"out: {run} is of gebm.{'fit' if before.get('steps') else 'refine'}; name another folder")
    for name, value in pair.items():
        if value != record[name]:
            what = {"valid": "other held-out data", "base": "a base with other weights"}.get(name, f"a prior {value}")
            raise InputError(f"out: {run} is of {what}; name another folder")
    checkpoint = newest_checkpoint(run)
    for name, value in record["settings"].items():
        value = list(value) if isinstance(value, tuple) else value
        if before.get(name) != value and (checkpoint is None or name in ("criterion", "ema", "seed")):
            raise InputError(f"out: {run} was begun with {name} {before.get(name)}, not {value}; name another folder")
        if before.get(name) != value:
            log.warning("%s goes on with %s %s, which was %s", run, name, value, before.get(name))
    return checkpoint


def _record(model: GEBM, items: Any, held_out: Any, settled: Training) -> dict[str, Any]:
    """What a run goes on with: settings, data, prior and, of a base that is not trained, its weights."""
    base = hashlib.sha256()
    for key, value in state_of(model.base, "base").items():
        value = value.detach().cpu()
        base.update(key.encode() + (value.float() if value.dtype == torch.bfloat16 else value).numpy().tobytes())
    return {
        "settings": {**asdict(settled), "betas": list(settled.betas)},
        "data": content_key(items),
        "shape": list(items.shape),
        "valid": None if held_out is None else content_key(held_out),
        "prior": f"{type(model.prior).__name__}({model.prior.dim})",
        "base": "" if settled.steps else base.hexdigest()[:16],
    }


def _folder(out: str | Path | None) -> Path | None:
    """The folder of a run."""
    if out is None:
        return None
    if not isinstance(out, str | Path) or not str(out):
        raise InputError(f"out: must be the path of a folder, not {out!r:.80}")
    existing = next((p for p in (Path(out), *Path(out).absolute().parents) if p.exists()), None)
    if existing is not None and not existing.is_dir():
        raise InputError(f"out: {existing} is a file; name a folder")
    return Path(out)


def _check_arguments(model: GEBM, callbacks: Sequence[tuple[int, Callback]]) -> None:
    if not isinstance(model, GEBM):
        raise InputError(f"model: must be a gebm.GEBM(base, energy, prior), not a {type(model).__name__}")
    if not isinstance(callbacks, list | tuple):
        raise InputError("callbacks: must be a list of pairs (steps, function)")
    for pair in callbacks:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not callable(pair[1]):
            raise InputError(f"callbacks: must be pairs (steps, function), not {pair!r:.80}")
        check_whole(1, **{"callbacks: steps": pair[0]})


def _move(model: GEBM, device: str | torch.device | None) -> None:
    if device is None:
        return
    try:
        model.to(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device: {device!r:.40} cannot be used ({' '.join(str(error).split())[:120]})") from None


def _table(data: Any) -> Any:
    """A table by its path, loaded, so that its units are known; anything else as it is."""
    is_table = isinstance(data, str | Path) and Path(data).suffix in (".csv", ".tsv") and Path(data).is_file()
    return load_table(f"csv:{data}") if is_table else data


@contextmanager
def _held(run: Path | None) -> Iterator[None]:
    """Hold the folder of a run, which is made; one that stays empty because of bad input is removed again."""
    if run is None:
        yield
        return
    new = not run.exists()
    with naming(run):
        run.mkdir(parents=True, exist_ok=True)
    try:
        with alone(run):
            yield
    except InputError:
        if new:
            with suppress(OSError):
                run.rmdir()
        raise


def _dict_of(look: Callback) -> Callable[[Trainer], dict[str, float]]:
    """A callback whose values are plain numbers."""

    def values(trainer: Trainer) -> dict[str, float]:
        found = look(trainer) or {}
        try:
            return {str(name): float(value) for name, value in found.items()}
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"callbacks: must return numbers by name, or None ({error})") from error

    return values


@contextmanager
def _as_it_was(model: GEBM, seed: int) -> Iterator[list[nn.Module]]:
    """Train with random numbers of its own, and leave the model in evaluation mode with its gradients as they were.

    Yields the parts that the caller has frozen in evaluation mode.
    """
    frozen = [
        module
        for module in model.modules()
        if not module.training and not any(p.requires_grad for p in module.parameters()) and module is not model
    ]
    held = {name for name, p in model.named_parameters() if p.grad is not None}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    device = model.log_partition.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(stream(seed, "fit"))
        try:
            yield frozen
        finally:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(wanted.get(name, True))
                if name not in held:
                    parameter.grad = None
            model.eval()


@contextmanager
def _speaking(on: bool) -> Iterator[None]:
    """Show what gebm logs where the caller has set no logging up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level, silent = log.level, on and not log.hasHandlers()
    if silent:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        if silent:
            log.removeHandler(handler)
            log.setLevel(level)
