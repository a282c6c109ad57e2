"""Sampling from Python: a pair, a number, and how."""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gebm.arguments import check_number, check_whole
from gebm.data.given import levels_of
from gebm.data.images import pixels
from gebm.errors import InputError
from gebm.files import atomic_write
from gebm.importance import relative_ess
from gebm.memory import rows_that_fit
from gebm.model import GEBM
from gebm.networks.common import modes_kept
from gebm.registry import resolve
from gebm.samplers import SAMPLERS, Kernel
from gebm.samplers.trace import Diagnostics
from gebm.sampling import Observer, as_made, draw
from gebm.text import hint

__all__ = ["Samples", "Setting", "kernel_of", "sample"]

FIRST_STEP = 0.1  # the step size that a tuning begins at, and that of samplers that are not tuned


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a pair is sampled. The default draws from the model itself: beta 1, by MALA, tuned in a warm-up.

    Attributes:
        sampler: a name in `gebm.samplers.SAMPLERS`, a dotted path `package.module:Kernel`, or a kernel.
        beta: the inverse temperature; 1 is the model, more is nearer to the energy's lowest values.
        steps: steps of every chain.
        step_size: the sampler's own h, that of a kernel as it is; None: 0.1, from which the warm-up tunes it.
        warm_up: steps before these in which the step size is tuned; 0: it is not. None: 100 where the sampler has an
            acceptance to tune to and no step size is given, else 0.
        options: the sampler's other hyperparameters, fields of its class: leapfrog of 'hmc', friction of 'lmc', ...

    Raises:
        InputError: an unknown sampler or option, or a number below the least it may be.

    Example:

        >>> setting = Setting(sampler="hmc", step_size=0.2, options={"leapfrog": 5})
        >>> setting.kernel, setting.tuning_steps
        (HMC(step_size=0.2, leapfrog=5, scale=1.0), 0)
    """

    sampler: str | Kernel = "mala"
    beta: float = 1.0
    steps: int = 200
    step_size: float | None = None
    warm_up: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_number(0, beta=self.beta)
        check_whole(0, steps=self.steps, **({} if self.warm_up is None else {"warm_up": self.warm_up}))
        kernel = self.kernel
        if self.warm_up and kernel.goal is None:
            raise InputError(f"warm_up={self.warm_up}: {type(kernel).__name__} has no acceptance to tune to; give 0")

    @property
    def kernel(self) -> Kernel:
        """The kernel, untuned."""
        return kernel_of(self.sampler, self.step_size, **self.options)

    @property
    def tuning_steps(self) -> int:
        """Steps of the warm-up."""
        if self.warm_up is not None:
            return self.warm_up
        given = self.step_size is not None or isinstance(self.sampler, Kernel)
        return 0 if given or self.kernel.goal is None or not self.steps else 100


@dataclass(eq=False)
class Samples:
    """What `sample` draws. All tensors are on the CPU; row i of each is of the same chain.

    Attributes:
        samples: (n, ...), as the base makes them.
        base_samples: (n, ...), those of the base alone, where the chains began.
        latents: (n, d), the ends of the chains, in Gaussian coordinates.
        energies, base_energies: E of both, (n,).
        setting: how they were drawn.
        kernel: the one used, tuned if there was a warm-up.
        acceptance: mean over chains and steps.
        diagnostics: R-hat and effective sample sizes of the chains (`gebm.samplers.trace.Diagnostics`).
        relative_ess: that of the weights exp(-beta E) of the base samples, from 0 to 1: how near the base is to the
            model.

    Example:

        >>> import gebm
        >>> from torch import nn
        >>> model = gebm.GEBM(nn.Linear(3, 2), lambda x: x.square().sum(1), gebm.GaussianPrior(3))
        >>> draws = sample(model, 50, sampler="langevin", steps=2)
        >>> draws.samples.shape, draws.latents.shape, draws.are_draws
        (torch.Size([50, 2]), torch.Size([50, 3]), False)
    """

    samples: Tensor
    base_samples: Tensor
    latents: Tensor
    energies: Tensor
    base_energies: Tensor
    setting: Setting
    kernel: Kernel
    acceptance: float
    diagnostics: Diagnostics
    relative_ess: float

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def are_draws(self) -> bool:
        """Whether they can be taken for draws from the model at this beta: of a kernel that is exact, not biased by its
        step size as one without an accept step is, whose chains have mixed (R-hat at most 1.05)."""
        return self.kernel.exact and (self.diagnostics.mixed or not self.kernel.moves)

    @property
    def caveat(self) -> str:
        """Why they are no draws from the model itself; empty where they are."""
        rhat = self.diagnostics.rhat_projection
        if self.are_draws:
            return "" if self.setting.beta == 1 else f"at beta {self.setting.beta:g}; the model itself is beta 1"
        if not self.setting.steps:
            return "samples of the base"
        if self.kernel.moves and not self.diagnostics.mixed:
            why = "too few steps to tell whether the chains have mixed"
            why = why if math.isnan(rhat) else "the chains have not mixed"
            return f"refined samples, not draws from the model: {why}"
        return "refined samples, not draws from the model: this sampler has no accept step, so its step size biases it"

    def images(self, of: Tensor | None = None, levels: tuple[float, float] | None = None) -> np.ndarray:
        """Samples as uint8 images (n, C, H, W), to look at.

        Arguments:
            of: `base_samples`, for example; None: the samples.
            levels: what is black and what is white in them; None: 0 and 1 where all base samples lie there, else -1
                and 1.

        Raises:
            InputError: they are no images (n, C, H, W).
        """
        if self.samples.ndim != 4:
            raise InputError(f"images: samples of shape {tuple(self.samples.shape[1:])} are no images (C, H, W)")
        levels = levels or levels_of(self.base_samples) or (-1.0, 1.0)
        return pixels(self.samples if of is None else of, levels).numpy()

    def to_dict(self) -> dict[str, np.ndarray]:
        """Arrays by name: samples, base_samples, latents, energies, base_energies."""
        names = ("samples", "base_samples", "latents", "energies", "base_energies")
        return {name: getattr(self, name).numpy() for name in names}

    def save(self, file: str | Path) -> None:
        """Write `to_dict` as an .npz file."""
        with atomic_write(file) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(stream, **self.to_dict())  # type: ignore[arg-type]  # numpy: one keyword is a switch

    def __repr__(self) -> str:
        d = self.diagnostics
        return (
            f"Samples({len(self)} {tuple(self.samples.shape[1:])}, {self.kernel}, beta {self.setting.beta:g}, "
            f"{self.setting.steps} steps, acceptance {self.acceptance:.2f}, R-hat {d.rhat_energy:.2f} / "
            f"{d.rhat_projection:.2f}, relative ESS {self.relative_ess:.3f}: {self.caveat or 'draws from the model'})"
        )


def kernel_of(sampler: str | Kernel, step_size: float | None = None, **options: Any) -> Kernel:
    """A kernel, by its name, a dotted path or as it is.

    Raises:
        InputError: an unknown name, or an option that is no field of that kernel.

    Example:

        >>> kernel_of("hmc", 0.2, leapfrog=5)
        HMC(step_size=0.2, leapfrog=5, scale=1.0)
    """
    if isinstance(sampler, Kernel):
        return replace(sampler, **_known(type(sampler), step_size, options))
    kind = resolve(sampler, SAMPLERS, "sampler") if isinstance(sampler, str) else sampler
    if not (isinstance(kind, type) and issubclass(kind, Kernel)):
        raise InputError(f"sampler: must be a name, a dotted path or a gebm.samplers.Kernel, not {kind!r:.80}")
    return kind(**{"step_size": FIRST_STEP, **_known(kind, step_size, options)})


def _known(kind: type[Kernel], step_size: float | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters given, all of which the kernel has."""
    names = [f.name for f in fields(kind)]
    if unknown := next((name for name in options if name not in names), None):
        raise InputError(f"{kind.__name__}: has no {unknown}{hint(unknown, names)}; choose {', '.join(names)}")
    return {**options, **({} if step_size is None else {"step_size": step_size})}


def sample(
    model: GEBM,
    n: int,
    setting: Setting | str | Kernel | None = None,
    *,
    sampler: str | Kernel | None = None,
    beta: float | None = None,
    steps: int | None = None,
    step_size: float | None = None,
    warm_up: int | None = None,
    chunk: int = 1000,
    seed: int = 0,
    progress: bool = False,
    callback: Callable[[int], object] | None = None,
    **options: Any,
) -> Samples:
    r"""Draw n samples of a pair by MCMC in the latent space of its base.

    Chains start at latents of the prior and move under :math:`U(z) = -\log \eta(z) + \beta E(G(z))`.

    Arguments:
        model: the pair, sampled in evaluation mode and left in its own.
        n: number of chains, and of samples.
        setting: how, or a sampler; None: the default, draws from the model itself.
        sampler, beta, steps, step_size, warm_up, options: in the place of the setting's own, see `Setting`.
        chunk: chains that run side by side. The first chunk tunes the step size for all.
        seed: of the latents and of the chains.
        progress: show a bar.
        callback: called with the number of chains moved, after every step.

    Raises:
        InputError: an unknown sampler or option, or a number below the least it may be.
        NonFiniteError: all proposals of a chain had potentials that are not finite.

    Example:

        >>> import gebm
        >>> from torch import nn
        >>> model = gebm.GEBM(nn.Identity(), lambda x: (x - 1).square().sum(1) / 2, gebm.GaussianPrior(2))
        >>> draws = sample(model, 2000)  # N(1/2, 1/2) in each coordinate
        >>> draws.are_draws, round(float(draws.samples.mean()), 1), round(float(draws.samples.var()), 1)
        (True, 0.5, 0.5)
    """
    if isinstance(setting, str | Kernel):  # sample(model, n, "mala")
        sampler, setting = setting, None
    given = {"sampler": sampler, "beta": beta, "steps": steps, "step_size": step_size, "warm_up": warm_up}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if setting is not None and not isinstance(setting, Setting):
        raise InputError(f"setting: must be a gebm.Setting or a sampler, not a {type(setting).__name__}")
    settled = setting or Setting()
    if options or "sampler" in changes:
        own = {} if "sampler" in changes else settled.options
        changes["options"] = {**own, **options}
        if "sampler" in changes and setting is not None:  # its step size and warm-up are of another sampler
            changes = {"step_size": None, "warm_up": None, **changes}
    settled = replace(settled, **changes)
    check_whole(1, n=n, chunk=chunk)
    if not isinstance(model, GEBM):
        raise InputError(f"model: must be a gebm.GEBM(base, energy, prior), not a {type(model).__name__}")
    with modes_kept(model):
        model.eval()
        target = model.posterior(settled.beta).frozen()
        if rows := rows_that_fit(target, min(n, chunk)):
            target = model.posterior(settled.beta).frozen(rows=rows)
        bar = tqdm(total=n * settled.steps, unit=" chain steps", unit_scale=True, disable=not progress, file=sys.stderr)
        with bar:

            def moved(count: int) -> None:
                bar.update(count)
                if callback is not None:
                    callback(count)

            draws = draw(
                target, settled.kernel, n, settled.steps, warm_up=settled.tuning_steps, chunk=chunk, seed=seed,
                observer=Observer(on_step=moved, convert=as_made),
            )  # fmt: skip
    return Samples(
        torch.from_numpy(draws.images), torch.from_numpy(draws.start), draws.latents, draws.energies,
        draws.energies_start, settled, draws.kernel, draws.acceptance, draws.diagnostics,
        relative_ess(-settled.beta * draws.energies_start),
    )  # fmt: skip
