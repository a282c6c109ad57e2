"""Draw many samples from a latent posterior, in chunks of chains, observing them on the way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gebm import parallel
from gebm.arguments import check_whole
from gebm.data import to_uint8
from gebm.importance import LogPartition, importance_sampling
from gebm.latent import LatentPosterior
from gebm.samplers import SMC, Adapted, DrawFiles, Kernel, State, adapt, run
from gebm.samplers.chains import Chain
from gebm.samplers.smc import log_weights_of
from gebm.samplers.trace import Diagnostics, Recorder
from gebm.seeds import stream

__all__ = ["Draws", "Observer", "as_made", "draw"]


def as_made(samples: Tensor) -> np.ndarray:
    """Samples as the base makes them, float32 or float64."""
    samples = samples.detach().cpu()
    return (samples if samples.dtype == torch.float64 else samples.float()).numpy()


def as_data(samples: Tensor) -> np.ndarray:
    """Samples as datasets hold them: images (n, C, H, W) as uint8, rows (n, d) as float32."""
    return (to_uint8(samples) if samples.ndim == 4 else samples.float()).cpu().numpy()


@dataclass
class Observer:
    """What is looked at, and when, while chains run; it holds what it saw.

    images: converted samples (B, ...) -> tensor (B, ...), as features of a distance, called at the steps `images_at`; 0
    is the base, before any warm-up; frames_at: steps at which pictures of the first `frame_chains` chains are kept;
    files: where thinned draws go; on_step: called after every step with the number of chains it moved; convert: what
    becomes of samples as the base makes them, by default uint8 images and float32 rows.

    seen: step -> what `images` made, (n, ...); energies: step -> E, (n,); frames: (step, uint8 images); seconds: time
    spent in looking.
    """

    images: Callable[[np.ndarray], Tensor] | None = None
    images_at: Sequence[int] = ()
    frames_at: Sequence[int] = ()
    frame_chains: int = 64
    files: DrawFiles | None = None
    on_step: Callable[[int], object] | None = None
    convert: Callable[[Tensor], np.ndarray] = as_data
    seen: dict[int, list[Tensor]] = field(default_factory=dict)
    energies: dict[int, list[Tensor]] = field(default_factory=dict)
    frames: list[tuple[int, np.ndarray]] = field(default_factory=list)
    seconds: float = 0.0

    def features(self) -> dict[int, Tensor]:
        """Step -> what `images` made of all chains, (n, ...); handed out once, as it may be large."""
        return {step: torch.cat(self.seen.pop(step)) for step in list(self.seen)}

    def look(self, target: LatentPosterior, first: int, step: int, state: State) -> None:
        """Look at the chains `first`, ... after a step."""
        stored = self.files is not None and self.files.keeps(step)
        if (stored or step in self.images_at or step in self.frames_at) and target.device.type == "cuda":
            torch.cuda.synchronize(target.device)  # or the steps still queued would count as looking
        since = time.perf_counter()
        if step in self.images_at:
            samples, energies = target.decode_with_energies(state.position)
            self.energies.setdefault(step, []).append(energies.cpu())
            if self.images is not None:
                self.seen.setdefault(step, []).append(self.images(self.convert(samples)))
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
    and after; kernel: the one used, tuned if there was a warm-up, of which adapted is the result (None but in the
    process that ran the first chunk), or by itself; acceptance: mean over chains and steps; nonfinite: share of the
    proposals whose potential was not finite; diagnostics: of the first chunk's chains, from trace, the arrays of
    `Recorder.arrays`; seconds: time in steps, looking left out; log_partition: log Z with its standard error, where the
    sampler estimates it.
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
    log_partition: LogPartition | None


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
    run are those of a shorter one. Several processes take turns at the chunks; all get all draws, each once and in
    order, and the same error where one of them fails.

    Arguments:
        target: latent posterior, frozen for speed.
        kernel, steps, schedule, beta_schedule: as in `gebm.samplers.run`.
        warm_up: steps before step 0 in which the first chunk tunes the kernel (`gebm.samplers.adapt`); the other chunks
            take that kernel and as many steps.
        precondition: whether the warm-up sets the kernel's scale too.
        observer: looks at the chains on the way, and says what becomes of samples.

    Raises:
        InputError: the kernel cannot be tuned; a number below the least it may be; chunks that leave SMC a last
            population of too few.
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
    check_whole(1, n=n, chunk=chunk)
    check_whole(0, steps=steps, warm_up=warm_up, seed=seed)
    if isinstance(kernel, SMC):
        kernel.check_populations(n, chunk)
    observer = observer or Observer()
    tuned, adapted = kernel, None
    begun_s, looked_s = time.perf_counter(), observer.seconds

    def begin(index: int) -> tuple[Tensor, torch.Generator]:
        generator = torch.Generator(target.device).manual_seed(stream(seed, "chains", index))
        return target.start(min(chunk, n - index * chunk), generator), generator

    if warm_up:
        first_start, first_generator = begin(0)

        def tune() -> Kernel:
            nonlocal adapted
            state = kernel.init(first_start, target)
            adapted = adapt(kernel, target, state, warm_up, precondition=precondition, generator=first_generator)
            return _moved(adapted.kernel, "cpu")

        tuned = _moved(parallel.from_first(tune), target.device)

    def own() -> _Share:
        """The chunks of this process; the first of all is the first process's."""
        chunks, recorder = [], None
        for index in parallel.mine(range(-(-n // chunk))):
            if adapted is not None and index == 0:
                start, generator, state = first_start, first_generator, adapted.state
            else:
                start, generator = begin(index)
                state = tuned.init(start, target)
            observer.look(target, index * chunk, 0, state._replace(position=start))  # which `init` may have moved
            if warm_up and index:
                state = run(tuned, target, state, warm_up, generator=generator).state
            record = Recorder(state.position, steps) if index == 0 else None
            recorder = recorder or record

            def callback(step: int, state: State, first: int = index * chunk, record: Recorder | None = record) -> None:
                observer.look(target, first, step, state)
                if record is not None:
                    record.add(step, state)

            chain = run(
                tuned, target, state, steps, schedule=schedule, beta_schedule=beta_schedule, callback=callback,
                generator=generator,
            )  # fmt: skip
            chunks.append((start, chain, tuned.finished(chain.state) if steps else tuned))
        seconds = time.perf_counter() - begun_s - (observer.seconds - looked_s)
        drawn = [_drawn(target, *each, steps, observer.convert) for each in chunks]
        share = _Share(drawn, observer.seen, observer.energies, seconds)
        if recorder is None:
            return share
        trace = {name: values.float().cpu().numpy() for name, values in recorder.arrays().items()}
        return share._replace(diagnostics=recorder.diagnose(tuned, warmed_up=warm_up > 0), trace=trace)

    shares = parallel.everyones(own)
    observer.seen, observer.energies = (
        {step: parallel.in_order([s.get(step, []) for s in of_shares]) for step in of_shares[0]}
        for of_shares in ([s.seen for s in shares], [s.energies for s in shares])
    )
    return _joined(parallel.in_order([s.drawn for s in shares]), shares[0], adapted, steps, target.device)


class _Drawn(NamedTuple):
    """What is kept of a chunk of chains, on the CPU; log_weights: of the starts of a population."""

    start: np.ndarray
    images: np.ndarray
    latents: Tensor
    energies_start: Tensor
    energies: Tensor
    kernel: Kernel
    acceptance: Tensor
    nonfinite: Tensor
    log_weights: Tensor | None


class _Share(NamedTuple):
    """What one process has: its chunks, what their observer saw, and of the first chunk alone the rest."""

    drawn: list[_Drawn]
    seen: dict[int, list[Tensor]]
    energies: dict[int, list[Tensor]]
    seconds: float
    diagnostics: Diagnostics | None = None
    trace: dict[str, np.ndarray] | None = None


def _drawn(
    target: LatentPosterior,
    start: Tensor,
    chain: Chain,
    kernel: Kernel,
    steps: int,
    convert: Callable[[Tensor], np.ndarray],
) -> _Drawn:
    def decoded(position: Tensor) -> tuple[np.ndarray, Tensor]:
        samples, energies = target.decode_with_energies(position)
        return convert(samples), energies.cpu()

    base, energies_start = decoded(start)
    images, energies = decoded(chain.state.position) if steps else (base, energies_start)
    latents = chain.state.position if steps else start
    log_weights = log_weights_of(chain.state).cpu() if isinstance(kernel, SMC) and steps else None
    return _Drawn(
        base, images, latents.cpu(), energies_start, energies, _moved(kernel, "cpu"),
        chain.acceptance.cpu() if steps else torch.ones(len(start)),
        chain.nonfinite.cpu(), log_weights,
    )  # fmt: skip


def _joined(drawn: list[_Drawn], first: _Share, adapted: Adapted | None, steps: int, device: torch.device) -> Draws:
    """All chunks, in their order."""
    populations = [d.log_weights for d in drawn if d.log_weights is not None]
    assert first.diagnostics is not None and first.trace is not None
    return Draws(
        np.concatenate([d.start for d in drawn]), np.concatenate([d.images for d in drawn]),
        torch.cat([d.latents for d in drawn]),
        torch.cat([d.energies_start for d in drawn]), torch.cat([d.energies for d in drawn]),
        _moved(drawn[-1].kernel, device), adapted,
        float(torch.cat([d.acceptance for d in drawn]).mean()),
        float(torch.cat([d.nonfinite for d in drawn]).double().mean()) / max(steps, 1),
        first.diagnostics, first.trace, first.seconds,
        importance_sampling(torch.cat(populations)) if populations else None,
    )  # fmt: skip


def _moved(kernel: Kernel, device: torch.device | str) -> Kernel:
    """The kernel with its tensors on a device."""
    tensors = {f.name: getattr(kernel, f.name) for f in fields(kernel)}
    tensors = {name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)}
    return replace(kernel, **tensors) if tensors else kernel
