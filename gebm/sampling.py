"""Draw many samples from a latent posterior, in chunks of chains, observing them on the way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gebm.data import to_uint8
from gebm.latent import LatentPosterior
from gebm.samplers import SMC, Adapted, DrawFiles, Kernel, State, adapt, run
from gebm.samplers.smc import log_partition_of
from gebm.samplers.trace import Diagnostics, Recorder
from gebm.seeds import stream

__all__ = ["Draws", "Observer", "draw"]


def as_data(samples: Tensor) -> np.ndarray:
    """Samples as datasets hold them: images (n, C, H, W) as uint8, rows (n, d) as float32."""
    return (to_uint8(samples) if samples.ndim == 4 else samples.float()).cpu().numpy()


@dataclass
class Observer:
    """What is looked at, and when, while chains run; it holds what it saw.

    images: uint8 images (B, C, H, W) -> tensor (B, ...), as features of a distance, called at the steps `images_at`; 0
    is the base, before any warm-up; frames_at: steps at which pictures of the first `frame_chains` chains are kept;
    files: where thinned draws go; on_step: called after every step with the number of chains it moved.

    seen: step -> what `images` made, (n, ...); energies: step -> E, (n,); frames: (step, uint8 images); seconds: time
    spent in looking.
    """

    images: Callable[[np.ndarray], Tensor] | None = None
    images_at: Sequence[int] = ()
    frames_at: Sequence[int] = ()
    frame_chains: int = 64
    files: DrawFiles | None = None
    on_step: Callable[[int], object] | None = None
    seen: dict[int, list[Tensor]] = field(default_factory=dict)
    energies: dict[int, list[Tensor]] = field(default_factory=dict)
    frames: list[tuple[int, np.ndarray]] = field(default_factory=list)
    seconds: float = 0.0

    def features(self) -> dict[int, Tensor]:
        """Step -> what `images` made of all chains, (n, ...); handed out once, as it may be large."""
        return {step: torch.cat(self.seen.pop(step)) for step in list(self.seen)}

    def look(self, target: LatentPosterior, first: int, step: int, state: State) -> None:
        """Look at the chains `first`, ... after a step."""
        if target.device.type == "cuda":
            torch.cuda.synchronize(target.device)  # or the steps still queued would count as looking
        since = time.perf_counter()
        if step in self.images_at:
            samples, energies = target.decode_with_energies(state.position)
            self.energies.setdefault(step, []).append(energies.cpu())
            if self.images is not None:
                self.seen.setdefault(step, []).append(self.images(as_data(samples)))
        if step in self.frames_at and first == 0:
            frame = as_data(target.decode(state.position[: self.frame_chains]))
            self.frames.append((step, frame))
        if self.files is not None:
            self.files.add(first, step, state)
        if self.on_step is not None and step:
            self.on_step(len(state.position))
        self.seconds += time.perf_counter() - since


@dataclass
class Draws:
    """What `draw` returns, on the CPU.

    start, images: uint8 (n, C, H, W), or rows of a table as float32 (n, d), of the base and of the chains' ends, one by
    one from the same latent; latents (n, d): the ends, in Gaussian coordinates; energies_start, energies (n,): E before
    and after; kernel: the one used, tuned if there was a warm-up, of which adapted is the result, or by itself;
    acceptance: mean over chains and steps; nonfinite: share of the proposals whose potential was not finite;
    diagnostics: of the first chunk's chains, from trace, the arrays of `Recorder.arrays`; seconds: time in steps,
    looking left out; log_partition: log Z and its standard error, where the sampler estimates it.
    """

    start: np.ndarray
    images: np.ndarray
    latents: Tensor
    energies_start: Tensor
    energies: Tensor
    kernel: Kernel
    adapted: Adapted | None
    acceptance: float
    nonfinite: float
    diagnostics: Diagnostics
    trace: dict[str, np.ndarray]
    seconds: float
    log_partition: tuple[float, float] | None


def draw(
    target: LatentPosterior,
    kernel: Kernel,
    n: int,
    steps: int,
    *,
    schedule: Callable[[int], float] | None = None,
    beta_schedule: Callable[[int], float] | None = None,
    warm_up: int = 0,
    precondition: bool = False,
    chunk: int = 1000,
    seed: int = 0,
    observer: Observer | None = None,
) -> Draws:
    """Run n chains from the prior for `steps` steps, `chunk` at a time.

    Every chunk has a generator of its own, made from `seed` and the chunk's number, so the first chunks of a longer
    run are those of a shorter one.

    Arguments:
        target: latent posterior, frozen for speed.
        kernel, steps, schedule, beta_schedule: as in `gebm.samplers.run`.
        warm_up: steps before step 0 in which the first chunk tunes the kernel (`gebm.samplers.adapt`); the other chunks
            take that kernel and as many steps.
        precondition: whether the warm-up sets the kernel's scale too.
        observer: looks at the chains on the way.

    Raises:
        InputError: the kernel cannot be tuned.
        NonFiniteError: see `run`.
        UnfinishedError: the sampler needs more steps.

    Example:

        >>> from gebm.latent import GaussianPrior
        >>> from gebm.samplers import MALA
        >>> target = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: (x - 1).square().sum(1) / 2)
        >>> draws = draw(target, MALA(0.1), n=2000, steps=100, warm_up=50)
        >>> draws.diagnostics.mixed, round(float(draws.latents.mean()), 1), round(float(draws.latents.var()), 1)
        (True, 0.5, 0.5)
    """
    observer = observer or Observer()
    adapted = recorder = None
    starts, chains = [], []
    begin, looked = time.perf_counter(), observer.seconds
    for index, first in enumerate(range(0, n, chunk)):
        generator = torch.Generator(target.device).manual_seed(stream(seed, "chains", index))
        starts.append(target.start(min(chunk, n - first), generator))
        state = kernel.init(starts[-1], target)
        observer.look(target, first, 0, state._replace(position=starts[-1]))  # which `init` may have moved
        if warm_up and adapted is None:
            adapted = adapt(kernel, target, state, warm_up, precondition=precondition, generator=generator)
            kernel, state = adapted.kernel, adapted.state
        elif warm_up:
            state = run(kernel, target, state, warm_up, generator=generator).state
        recorder = recorder or Recorder(state.position, steps)

        def callback(step: int, state: State, first: int = first, recorder: Recorder = recorder) -> None:
            observer.look(target, first, step, state)
            if first == 0:
                recorder.add(step, state)

        chain = run(
            kernel, target, state, steps, schedule=schedule, beta_schedule=beta_schedule, callback=callback,
            generator=generator,
        )  # fmt: skip
        used = kernel.finished(chain.state) if steps else kernel
        chains.append(chain)
    assert recorder is not None, "n is 0"
    seconds = time.perf_counter() - begin - (observer.seconds - looked)
    start, energies_start = _decode(target, starts)
    ends = [chain.state.position for chain in chains] if steps else starts
    images, energies = _decode(target, ends) if steps else (start, energies_start)
    acceptance = float(torch.cat([chain.acceptance for chain in chains]).mean())
    nonfinite = float(torch.cat([chain.nonfinite for chain in chains]).double().mean())
    return Draws(
        start, images, torch.cat(ends).cpu(), energies_start, energies,
        used, adapted, acceptance if steps else 1.0, nonfinite / max(steps, 1),
        recorder.diagnose(kernel, warmed_up=warm_up > 0),
        {name: values.float().cpu().numpy() for name, values in recorder.arrays().items()},
        seconds,
        _mean_partition([chain.state for chain in chains]) if isinstance(kernel, SMC) and steps else None,
    )  # fmt: skip


def _decode(target: LatentPosterior, positions: Sequence[Tensor]) -> tuple[np.ndarray, Tensor]:
    """Samples as data (n, ...) and energies (n,) of chunks of positions."""
    images, energies = [], []
    for position in positions:
        samples, e = target.decode_with_energies(position)
        images.append(as_data(samples))
        energies.append(e.cpu())
    return np.concatenate(images), torch.cat(energies)


def _mean_partition(populations: Sequence[State]) -> tuple[float, float]:
    """log of the mean Z of independent populations, weighted by their sizes, with its standard error."""
    log_z, se = (torch.stack(values) for values in zip(*map(log_partition_of, populations)))
    sizes = torch.tensor([len(state.position) for state in populations]).to(log_z)
    weighted = log_z + torch.log(sizes / sizes.sum())
    return float(torch.logsumexp(weighted, 0)), float((torch.softmax(weighted, 0) * se).norm())
