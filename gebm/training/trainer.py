"""The two training steps and all state they change."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gebm.data import Batches
from gebm.errors import InputError
from gebm.graphs import Graphed
from gebm.metrics.partition import base_energies
from gebm.model import GEBM
from gebm.networks import DensityRatio
from gebm.networks.batch_norm import over_processes
from gebm.networks.common import HasDensity
from gebm.objectives import Objective, log_mean_exp
from gebm.parallel import gathered, processes, share, wrapped
from gebm.seeds import stream
from gebm.training.negatives import Fresh, Negatives
from gebm.training.schedules import LRSchedule, ramped
from gebm.training.selection import EarlyStopping

__all__ = ["Counters", "Trainer"]


@dataclass
class Counters:
    """Where a run is.

    stage: 'base' (maximum likelihood of the base, a flow), 'joint' (base and energy in turn) or 'refine' (the energy
    alone, base frozen); ml_step: steps done in the first; g_step: base steps done in the second; pending: energy steps
    done since the last of those; refine_step: energy steps done in the third; e_step: energy steps done in all; images:
    data seen by energy steps, or drawn by base steps where there are none; rollbacks: how often the run has diverged
    and gone on from an earlier state.
    """

    stage: str = "joint"
    ml_step: int = 0
    g_step: int = 0
    pending: int = 0
    refine_step: int = 0
    e_step: int = 0
    images: int = 0
    rollbacks: int = 0

    def __post_init__(self) -> None:
        numbers = [value for name, value in vars(self).items() if name != "stage"]
        if self.stage not in ("base", "joint", "refine") or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("counters that no run has")

    @property
    def stage_step(self) -> int:
        """Steps done in this stage, as its checkpoints and log count them."""
        return {"base": self.ml_step, "joint": self.g_step, "refine": self.refine_step}[self.stage]


C_BATCHES = 100  # of base samples, that c is set from before a training and at the end of a stage

MOMENTS = {"Adam": {"step", "exp_avg", "exp_avg_sq"}, "SGD": {"momentum_buffer"}}  # what they keep of a parameter


class Trainer:
    r"""One energy step and one base step on a model, and everything that has to be saved between them.

    The base is in training mode (batch statistics) in both kinds of step of the joint stage, so that the energy is
    fitted to the very base that is updated. The refinement puts it into evaluation mode, that of sampling, for good.

    Arguments:
        model: the GEBM, on its device and in its dtype.
        batches: endless training batches.
        objective: losses of both steps, around the model's energy and c.
        energy_optimizer, base_optimizer: of each network's parameters; the first may hold c too, which no criterion but
            `Fenchel` gives a gradient.
        negatives: where the samples of an energy step come from; None: new ones of the base.
        noise_factor: such samples for each one of the data.
        grad_clip: largest gradient norm of a step; 0: no limit.
        ema: decay of the moving average of the base, to which it rises (`schedules.ramped`); 0: no average.
        lr_schedule: of both learning rates in the joint stage; None: constant.
        rollback_factor: on both learning rates, once more for each rollback.
        selection: of each stage's weights, and of its end; None: the last ones are kept.
        match_base: whether an energy that is a flow starts as a copy of the base, E = 0; not one that was trained.
        set_log_partition: whether c starts at the Monte-Carlo log-partition.
        generator: source of the latents and of the penalty's interpolation, on the model's device.
        autocast: dtype the networks compute in, while weights, energies and their exponentials keep that of the model;
            None: no other.
        graphs: whether each step is replayed as a CUDA graph (untested on CUDA): on one process, with new samples of
            the base for negatives, a criterion whose base steps see no data, and optimisers that are `capturable`.

    Raises:
        InputError: the objective needs samples of the model and the negatives are the base's, or the reverse; or
            `graphs` of what cannot be replayed.

    Example:

        >>> from gebm.latent import GaussianPrior
        >>> from gebm.objectives import KALE
        >>> base, energy = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
        >>> model = GEBM(base, energy, GaussianPrior(2))
        >>> objective = KALE(model.energy, model.log_partition)
        >>> optimizers = (torch.optim.Adam(module.parameters()) for module in (objective, base))
        >>> trainer = Trainer(model, Batches(torch.randn(100, 2), 10), objective, *optimizers)
        >>> for _ in range(3):
        ...     stats = trainer.energy_step()
        ...     stats |= trainer.base_step()
        >>> sorted(stats)[:4]
        ['base_loss', 'c', 'c_batch', 'energy_fake']
    """

    def __init__(
        self,
        model: GEBM,
        batches: Batches,
        objective: Objective,
        energy_optimizer: torch.optim.Optimizer,
        base_optimizer: torch.optim.Optimizer,
        *,
        negatives: Negatives | None = None,
        noise_factor: int = 1,
        grad_clip: float = 0.0,
        ema: float = 0.0,
        lr_schedule: LRSchedule | None = None,
        rollback_factor: float = 0.5,
        selection: EarlyStopping | None = None,
        match_base: bool = False,
        set_log_partition: bool = False,
        generator: torch.Generator | None = None,
        autocast: torch.dtype | None = None,
        graphs: bool = False,
    ):
        model.base = over_processes(model.base)
        self.model = model.train()
        self.batches = batches
        self.objective = objective
        self.energy_pass, self.base_pass = wrapped(objective), wrapped(model.base)
        self.energy_optimizer = energy_optimizer
        self.base_optimizer = base_optimizer
        self.negatives = negatives or Fresh()
        if self.negatives.fake_from != objective.fake_from:
            have, want = type(self.negatives).__name__, objective.fake_from
            raise InputError(f"{type(objective).__name__} needs samples of the {want}: not from negatives {have}")
        if graphs and (type(self.negatives) is not Fresh or processes() > 1 or objective.base_sees_data):
            raise InputError("graphs: are of one process, negatives Fresh and a criterion whose base steps see no data")
        self.noise_factor = noise_factor
        self.grad_clip = grad_clip
        self.lr_schedule = lr_schedule or LRSchedule()
        self.rollback_factor = rollback_factor
        self.selection = selection
        self.match_base = match_base
        self.set_log_partition = set_log_partition
        self.generator = generator
        self.autocast = autocast
        self.graphs = graphs
        self.lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.trained = [p for p in objective.parameters() if p.requires_grad]  # a user's energy may hold frozen parts
        self.average = None
        if ema:
            self.average = AveragedModel(model.base, multi_avg_fn=ramped(ema), use_buffers=True).requires_grad_(False)
        self.counters = Counters()
        self._record()

    def energy_step(self) -> dict[str, Tensor]:
        """Fit E and c to one batch of data against the negatives; returns the objective's statistics."""
        stats = (self._graphs["energy"] if self._graphs else self._energy_update)(self._real())
        self.counters.e_step += 1
        self.counters.images += self.batches.batch_size
        return {**stats, "lr": _lr(self.energy_optimizer)}

    def base_step(self) -> dict[str, Tensor]:
        """Move the base by its part of the objective, most often towards low energy; returns its loss."""
        self._train_energy(False)
        z = share(self.model.prior.sample(self.batches.batch_size, self.generator, like=self.model.log_partition))
        stats = (self._graphs["base"] if self._graphs else self._base_update)(z)
        self._train_energy(True)
        self._base_moved()
        if not self.objective.energy.training:  # else energy steps do it
            self.objective.follow(stats["e_fake"])
        self.counters.g_step += 1
        self.counters.pending = 0
        if not self.objective.energy.training:  # no energy steps that count them
            self.counters.images += self.batches.batch_size
        return {"base_loss": stats["base_loss"], "lr_generator": _lr(self.base_optimizer)}

    def initialize_log_partition(self, batches: int = C_BATCHES) -> None:
        """Set c to the Monte-Carlo log-partition, log-mean-exp of -E over `batches` batches of base samples.

        In the modes of training, as energy steps see it: with dropout where there is any, and power iterations go on.
        Of an energy that is one constant on the first batch, as new ones of tables are, that batch says all.
        """
        with torch.no_grad():
            energies = gathered(self.objective.energies(self._generate_batch()))
            if bool((energies != energies[0]).any()):
                rest = [self.objective.energies(self._generate_batch()) for _ in range(batches - 1)]
                energies = torch.cat([energies, gathered(torch.cat(rest))])
            self.objective.remember(energies)

    def end_stage(self) -> bool:
        """Set c to the log-partition of 100 batches of the base as it will be sampled; return whether it changed.

        Training sees the base with the statistics of its batches, and c follows that one. The latents depend on the
        counters alone, so that a run which is resumed here finds the same c. A base that is slow to sample keeps the c
        of its last batches, unless the criterion does not follow them.
        """
        slow = getattr(self.model.base, "sequential", False) is True and self.objective.fake_from == "base"
        if slow:  # and the weights may be earlier ones, of which the last batches say nothing
            self.objective.forget()
        if self.counters.stage == "base" or slow or self.objective.c_is_known:
            return False
        generator = torch.Generator(self.model.log_partition.device).manual_seed(self.counters.e_step)
        energies = base_energies(self.sampled_model, C_BATCHES * self._samples, generator)
        before = self.model.log_partition.detach().clone()
        with torch.no_grad():  # what c remembers is left alone: a stage that is made longer goes on from there
            self.model.log_partition.copy_(log_mean_exp(-energies))
        if self.selection is not None and self.selection.weights:  # which a run that goes on from here takes again
            self.selection.weights["log_partition"] = self.model.log_partition.detach().clone()
        return not torch.equal(before, self.model.log_partition)

    def likelihood_step(self) -> dict[str, Tensor]:
        """Raise the likelihood of one batch of data under the base, a flow; returns its loss."""
        real = self._real()
        assert isinstance(self.model.base, HasDensity)
        loss = -self.model.base.log_prob(real).mean()
        self._descend(self.base_optimizer, loss, self.model.base.parameters())
        self._base_moved()
        self.counters.ml_step += 1
        self.counters.images += len(real)
        return {"base_loss": loss.detach(), "lr_generator": _lr(self.base_optimizer)}

    def start(self, stage: str) -> None:
        """Begin a stage, if it is not the one that the run is in.

        The refinement freezes the base as it will be sampled: its moving average if there is one, in evaluation mode.
        """
        if stage == self.counters.stage:
            return
        trained_base, self.counters.stage = self.counters.stage == "base", stage
        self.counters.pending = 0
        self.objective.forget()  # of a base that was trained another way
        if self.selection is not None:
            self.selection.start(self.epoch)
        if stage == "refine":
            if self.average is not None:
                self.model.base.load_state_dict(self.average.module.state_dict())
                self.average = None
            self.negatives.base_changed()
            self._freeze_base()
        if trained_base:
            self.prepare_energy()
        self._record()

    def prepare_energy(self) -> None:
        """Before the first step that looks at the energy, on the base as it then is: `match_base`, and c."""
        if self.match_base and isinstance(self.model.energy, DensityRatio):
            self.model.energy.match_base()
        if self.set_log_partition:
            self.initialize_log_partition()

    def freeze_energy(self) -> None:
        """Leave the energy as it is, in evaluation mode, for base steps alone; c goes on following the base."""
        self.model.energy.eval()
        self._record()

    def scale_lr(self, factor: float, base_lr: float | None = None) -> None:
        """Set the learning rates of both networks to `factor` times the configured ones, lower by rollbacks.

        base_lr: in the place of that of the base.
        """
        factor *= self.rollback_factor**self.counters.rollbacks
        for optimizer, lrs in zip(self.optimizers, self.lrs):
            for group, lr in zip(optimizer.param_groups, lrs):
                own = base_lr if base_lr is not None and optimizer is self.base_optimizer else lr
                if isinstance(group["lr"], Tensor):  # that of a graph, which reads it where it is
                    group["lr"].fill_(factor * own)
                else:
                    group["lr"] = factor * own

    def roll_back(self, rollbacks: int) -> None:
        """Go on from this earlier state as after so many rollbacks: at lower learning rates, with other random numbers.

        From here, the same random numbers have led into divergence; even at lower rates they might again.
        """
        self.counters.rollbacks = rollbacks
        generators = self.generator, self.batches.generator, torch.default_generator, self._of_device
        for generator in filter(None, generators):
            generator.manual_seed(stream(generator.initial_seed(), "rollback", rollbacks))
        self.batches.start_epoch()

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """That of the energy and c, and that of the base."""
        return self.energy_optimizer, self.base_optimizer

    @property
    def _of_device(self) -> torch.Generator | None:
        """torch's own generator of the GPU, which dropout draws from; untested on CUDA."""
        device = self.model.log_partition.device
        return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else None

    @property
    def epoch(self) -> int:
        """Whole passes of the energy over the training data so far."""
        return self.counters.images // len(self.batches.data)

    @property
    def sampled_base(self) -> nn.Module:
        """The base that sampling would use now."""
        return self.model.base if self.average is None else self.average.module

    @property
    def sampled_model(self) -> GEBM:
        """The model with that base."""
        if self.average is None:
            return self.model
        base, energy = self.sampled_base, self.model.energy
        energy = energy.on(base) if isinstance(energy, DensityRatio) else energy
        sampled = GEBM(base, energy, self.model.prior, self.model.architecture)
        sampled.log_partition = self.model.log_partition
        return sampled

    def state_dict(self) -> dict[str, Any]:
        """Nested state of everything but the model's own weights: dicts and lists of tensors and plain numbers."""
        return {
            "counters": asdict(self.counters),
            "batches": self.batches.state_dict(),
            "negatives": self.negatives.state_dict(),
            "energy_optimizer": self.energy_optimizer.state_dict(),
            "base_optimizer": self.base_optimizer.state_dict(),
            "lr_schedule": self.lr_schedule.state_dict(),
            "selection": None if self.selection is None else self.selection.state_dict(),
            "generator": None if self.generator is None else self.generator.get_state(),
            "device": self.model.log_partition.device.type,
            "torch_rng": torch.get_rng_state(),
            "device_rng": None if self._of_device is None else self._of_device.get_state(),
            "recent": self.objective.recent,
            "level": self.objective.level,
            "raw_base": None if self.average is None else self.model.base.state_dict(),
            "averaged": None if self.average is None else self.average.n_averaged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the model already has the weights saved with it."""
        self.counters = Counters(**state["counters"])
        self.batches.load_state_dict(state["batches"])
        self.negatives.load_state_dict(state.get("negatives", {}))  # absent in runs from before there were any
        _restore(self.energy_optimizer, state["energy_optimizer"])
        _restore(self.base_optimizer, state["base_optimizer"])
        self.lr_schedule.load_state_dict(state.get("lr_schedule", {}))  # absent in runs from before there was one
        if self.selection is not None and state.get("selection"):
            self.selection.load_state_dict(state["selection"])
        if self.generator is not None and state["device"] == self.generator.device.type:
            self.generator.set_state(state["generator"].cpu())
        elif self.generator is not None:  # a GPU's state means nothing to a CPU
            self.generator.manual_seed(stream(self.generator.initial_seed(), self.counters.e_step))
        torch.set_rng_state(state["torch_rng"].cpu())
        if self._of_device is not None and state.get("device_rng") is not None:
            self._of_device.set_state(state["device_rng"].cpu())
        if "recent" in state:  # absent in older runs: c starts with the next batch
            self.objective.forget()
            recent, kept = self.objective.recent, state["recent"][-len(self.objective.recent) :]
            recent[len(recent) - len(kept) :] = kept.to(recent)  # of another --c_memory too
            self.objective.level.copy_(state["level"])
        if self.counters.stage == "refine":
            self.average = None
            self._freeze_base()
        elif self.average is not None:
            # The saved weights are those of the average.
            self.average.module.load_state_dict(self.model.base.state_dict())
            self.average.n_averaged.copy_(state["averaged"])
            self.model.base.load_state_dict(state["raw_base"])
        self._record()

    def _record(self) -> None:
        """With `graphs`, make them anew: of the modes and the memory of now."""
        self._graphs: dict[str, Graphed[dict[str, Tensor]]] = {}
        if self.graphs:
            own = [] if self.generator is None else [self.generator]
            self._graphs = {"energy": Graphed(self._energy_update, own), "base": Graphed(self._base_update, own)}
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=self.model.log_partition.device)

    def _energy_update(self, real: Tensor) -> dict[str, Tensor]:
        fake = None
        with self._precision():
            if self.objective.uses_samples:
                fake = self.negatives(self.model, self._samples, self.generator).to(real.dtype)
            loss, stats = self.energy_pass(real, fake, self.generator)
        self._descend(self.energy_optimizer, loss, self.objective.parameters())
        return {"energy_loss": loss.detach(), **stats}

    def _base_update(self, z: Tensor) -> dict[str, Tensor]:
        with self._precision():
            loss, e_fake = self.objective.base_loss(self.base_pass, z, self._real)
        self._descend(self.base_optimizer, loss, self.model.base.parameters())
        return {"base_loss": loss.detach(), "e_fake": e_fake}

    def _real(self) -> Tensor:
        return next(self.batches).to(self.model.log_partition.dtype)

    @property
    def _samples(self) -> int:
        """Of an energy step, in all processes."""
        return self.noise_factor * self.batches.batch_size

    def _generate_batch(self) -> Tensor:
        return Fresh()(self.model, self._samples, self.generator)

    def _precision(self) -> torch.autocast:
        on = self.autocast is not None
        return torch.autocast(self.model.log_partition.device.type, self.autocast or torch.bfloat16, enabled=on)

    def _train_energy(self, on: bool) -> None:
        for parameter in self.trained:
            parameter.requires_grad_(on)

    def _base_moved(self) -> None:
        self.negatives.base_changed()
        if self.average is not None:
            self.average.update_parameters(self.model.base)

    def _freeze_base(self) -> None:
        self.model.base.eval().requires_grad_(False)

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        optimizer.zero_grad(set_to_none=True)
        # Of these alone: the gradient penalty would have its second derivative in the samples too.
        inputs = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        loss.backward(inputs=inputs)  # type: ignore[no-untyped-call]  # torch: untyped
        if self.grad_clip:
            nn.utils.clip_grad_norm_(parameters, self.grad_clip)
        optimizer.step()


def _lr(optimizer: torch.optim.Optimizer) -> Tensor:
    return torch.as_tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64).clone()


def _restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take the moments of a saved optimiser; learning rates and the like stay as configured now."""
    groups = optimizer.state_dict()["param_groups"]
    if [group.keys() for group in groups] != [group.keys() for group in saved["param_groups"]]:
        raise ValueError("it was trained with another --optimizer")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    wanted = MOMENTS.get(type(optimizer).__name__)
    for parameter, moments in optimizer.state.items():
        shapes = {name: () if name == "step" else parameter.shape for name in moments}
        wrong = moments and wanted is not None and not wanted <= moments.keys()
        if wrong or any(m is not None and getattr(m, "shape", None) != shapes[name] for name, m in moments.items()):
            raise ValueError("its moments are of another network, or damaged")
        for name, moment in moments.items():
            if moment is not None and moment.shape == parameter.shape:
                # In the layout of the weights: fused steps go through memory and do not look at strides.
                moments[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)
