"""Draw many samples from a latent posterior, in chunks of chains, observing them on the way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gebm.data import to_uint8
from gebm.latent import LatentPosterior
from gebm.samplers import Kernel, State, constant, run
from gebm.seeds import stream

__all__ = ["Draws", "draw"]


@dataclass
class Draws:
    """What `draw` returns, on the CPU.

    start, images: uint8 (n, C, H, W) of the base and of the chains' ends, row by row from the same latent; latents
    (n, d): the ends, in Gaussian coordinates; energies_start, energies (n,): E before and after; acceptance: mean over
    chains and steps; observed: step -> what `observe` made of the images there, (n, ...); energy_trace: step -> mean E;
    frames: (step, uint8 images of the first chains).
    """

    start: np.ndarray
    images: np.ndarray
    latents: Tensor
    energies_start: Tensor
    energies: Tensor
    acceptance: float
    observed: dict[int, Tensor] = field(default_factory=dict)
    energy_trace: dict[int, float] = field(default_factory=dict)
    frames: list[tuple[int, np.ndarray]] = field(default_factory=list)


def draw(
    target: LatentPosterior,
    kernel: Kernel,
    n: int,
    steps: int,
    *,
    schedule: Callable[[int], float] = constant,
    chunk: int = 1000,
    seed: int = 0,
    observe: Callable[[np.ndarray], Tensor] | None = None,
    observe_at: Sequence[int] = (),
    frames_at: Sequence[int] = (),
    frame_chains: int = 64,
    on_step: Callable[[int], None] | None = None,
) -> Draws:
    """Run n chains from the prior for `steps` steps, `chunk` at a time.

    Every chunk has a generator of its own, made from `seed` and the chunk's number, so the first chunks of a longer
    run are those of a shorter one.

    Arguments:
        target: latent posterior, frozen for speed.
        kernel, steps, schedule: as in `gebm.samplers.run`.
        observe: uint8 images (B, C, H, W) -> tensor (B, ...), as features of a distance.
        observe_at: steps at which to observe; 0 is the base.
        frames_at: steps at which to keep pictures of the first `frame_chains` chains.
        on_step: called after every step with the number of chains it moved.

    Raises:
        NonFiniteError: see `run`.
    """
    parts: list[tuple] = []
    observed: dict[int, list[Tensor]] = {}
    traces: dict[int, list[Tensor]] = {}
    frames: list[tuple[int, np.ndarray]] = []
    acceptance = 0.0
    for index, first in enumerate(range(0, n, chunk)):
        size = min(chunk, n - first)
        generator = torch.Generator(target.device).manual_seed(stream(seed, "chains", index))
        start = target.start(size, generator)

        ends: list[tuple[np.ndarray, Tensor]] = []

        def look(step: int, state: State, first: int = first, ends: list = ends) -> None:
            if step in (0, steps) or step in observe_at:
                samples, energies = target.decode_with_energies(state.position)
                images, energies = to_uint8(samples).cpu().numpy(), energies.cpu()
                if step in (0, steps):
                    ends.append((images, energies))
                if step in observe_at:
                    traces.setdefault(step, []).append(energies)
                    if observe is not None:
                        observed.setdefault(step, []).append(observe(images))
            if step in frames_at and first == 0:
                frames.append((step, to_uint8(target.decode(state.position[:frame_chains])).cpu().numpy()))
            if on_step is not None and step:
                on_step(len(state.position))

        state = kernel.init(start, target)
        look(0, state)
        chain = run(kernel, target, state, steps, schedule=schedule, callback=look, generator=generator)
        (start_images, start_energies), (end_images, end_energies) = ends[0], ends[-1]
        parts.append((start_images, end_images, chain.state.position.cpu(), start_energies, end_energies))
        acceptance += float(chain.acceptance.sum())
    start, images, latents, e_start, e_end = zip(*parts)
    return Draws(
        np.concatenate(start), np.concatenate(images), torch.cat(latents), torch.cat(e_start), torch.cat(e_end),
        acceptance / n if steps else 1.0,
        {step: torch.cat(values) for step, values in observed.items()},
        {step: float(torch.cat(values).mean()) for step, values in traces.items()},
        frames,
    )  # fmt: skip
