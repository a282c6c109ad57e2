"""Where the samples come from that an energy step contrasts the data with."""

from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from gebm.errors import InputError
from gebm.model import GEBM
from gebm.networks.common import called, evaluating
from gebm.parallel import share
from gebm.samplers import Kernel, Langevin
from gebm.samplers.base import normal_like

__all__ = ["Fresh", "Negatives", "Pool", "Replay"]


class Negatives:
    """A source of samples (n, ...) without a graph.

    fake_from: whose samples they are, the 'base''s or the 'model''s (see `Objective.fake_from`).
    """

    fake_from: ClassVar[str] = "base"

    def __call__(self, model: GEBM, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n samples."""
        raise NotImplementedError

    def base_changed(self) -> None:
        """To be told whenever the base is no longer what it was."""

    def state_dict(self) -> dict[str, Any]:
        """What the next samples depend on besides the model and the generator."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; with the state of another source, or none, start afresh."""


class Fresh(Negatives):
    """New samples of the base each time; each process makes its share of the n."""

    def __call__(self, model: GEBM, n: int, generator: torch.Generator | None = None) -> Tensor:
        with torch.no_grad():
            return called(model.base, share(model.prior.sample(n, generator, like=model.log_partition)), "the base")


class Pool(Negatives):
    """Samples of the base drawn many at a time, and batches taken from them at random, with replacement.

    For bases that are slow to sample, such as autoregressive flows: each sample serves several times. A base step
    empties the pool, so `size` should be below what the energy steps between two of them use.

    Arguments:
        size: samples in the pool.
        refresh: how often, on average, a sample is used before all are drawn anew.
    """

    def __init__(self, size: int, refresh: float = 10):
        if size < 1 or not refresh > 0:
            raise InputError(f"Pool: size {size} and refresh {refresh} must be above 0")
        self.size, self.refresh = size, refresh
        self.samples: Tensor | None = None
        self.used = 0

    def __call__(self, model: GEBM, n: int, generator: torch.Generator | None = None) -> Tensor:
        if self.samples is None or self.used >= self.refresh * self.size:
            with torch.no_grad():
                self.samples, self.used = model.generate(self.size, generator), 0
        self.samples = self.samples.to(model.log_partition.device)  # of a checkpoint, on the CPU
        self.used += n
        rows = torch.randint(len(self.samples), (n,), generator=generator, device=self.samples.device)
        return self.samples.index_select(0, rows)

    def base_changed(self) -> None:
        self.samples, self.used = None, 0

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.samples, "used": self.used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.samples, self.used = state.get("samples"), state.get("used", 0)


class Replay(Negatives):
    """Persistent chains in latent space: samples of the model as it changes (Tieleman 2008; Du and Mordatch 2019).

    Each draw takes n of the `size` chains at random, starts a share of them again from the prior, moves them under the
    latent posterior at beta 1 of the networks as they are now, in evaluation mode, and puts them back. Those started
    again have not got far: when a draw moves chains for a time tau (of Langevin steps * h), in units of the time they
    take to mix, up to restart / (restart + tau) of the samples are still the base's.

    Arguments:
        kernel: what moves them, any that travels through its target and has no memory of its own; velocities are drawn
            anew at each draw, which leaves their law as it is. None is Langevin with h = 0.05.
        steps: steps of the kernel at each draw.
        size: number of chains; a draw takes at most so many.
        restart: share of the drawn chains that start again.

    Raises (when made or called):
        InputError: numbers out of range, a kernel of another kind, more samples wanted than there are chains.
    """

    fake_from = "model"

    def __init__(self, kernel: Kernel | None = None, steps: int = 20, size: int = 10_000, restart: float = 0.05):
        if size < 1 or steps < 1 or not 0 <= restart <= 1:
            raise InputError(f"Replay: size {size} and steps {steps} must be 1 or more, restart {restart} in [0, 1]")
        self.kernel, self.steps, self.size, self.restart = kernel or Langevin(0.05), steps, size, restart
        if not (self.kernel.moves and self.kernel.anneals):
            name = type(self.kernel).__name__
            raise InputError(f"Replay: the chains of {name} cannot go on while the energy changes: take Langevin, MALA")
        self.positions: Tensor | None = None

    def __call__(self, model: GEBM, n: int, generator: torch.Generator | None = None) -> Tensor:
        if n > self.size:
            raise InputError(f"Replay: {n} samples of {self.size} chains; give more chains or a smaller batch")
        target = model.posterior()
        if self.positions is None or len(self.positions) != self.size:
            self.positions = target.start(self.size, generator)
        self.positions = self.positions.to(target.device)  # of a checkpoint, on the CPU
        rows = torch.randperm(self.size, generator=generator, device=target.device)[:n]
        again = torch.rand(n, 1, generator=generator, device=target.device) < self.restart
        position = torch.where(again, target.start(n, generator), self.positions[rows])
        full = torch.autocast(target.device.type, enabled=False) if self.kernel.exact else nullcontext()
        with evaluating(model), full:
            state = self.kernel.init(position, target)
            if state.velocity is not None:
                state = state._replace(velocity=normal_like(position, generator))
            for _ in range(self.steps):
                state, _ = self.kernel.step(state, target, generator)
            self.positions[rows] = state.position
            return target.decode(state.position)

    def state_dict(self) -> dict[str, Any]:
        return {"positions": self.positions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        positions = state.get("positions")
        self.positions = None if positions is None else positions.clone()  # they are moved in place
