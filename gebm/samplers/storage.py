"""Chains on disk: a state to go on from, and thinned draws as they come."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.lib.format import open_memmap

from gebm.bounded import parse_json, reason
from gebm.errors import InputError
from gebm.files import atomic_write
from gebm.samplers.base import State
from gebm.samplers.tempering import excess
from gebm.weights import metadata_of, read_tensors

__all__ = ["DrawFiles", "StoredChain", "load_chain", "save_chain"]

RANDOM = "generator"


class StoredChain(NamedTuple):
    """A chain to go on with: `run(kernel, target, state, ..., first_step=step, generator=generator)`."""

    state: State
    step: int
    generator: torch.Generator


def save_chain(path: str | Path, state: State, step: int, generator: torch.Generator) -> None:
    """Write a state, the number of steps done and the random state as safetensors, whole or not at all.

    Example:

        >>> from gebm.latent import value_and_grad
        >>> from gebm.samplers import Langevin, run
        >>> folder, generator = getfixture("tmp_path"), torch.Generator().manual_seed(0)
        >>> target = value_and_grad(lambda z: z.square().sum(1) / 2)
        >>> chain = run(Langevin(0.1), target, torch.zeros(4, 2), 10, generator=generator)
        >>> save_chain(folder / "chain.safetensors", chain.state, 10, generator)
        >>> state, step, generator = load_chain(folder / "chain.safetensors")
        >>> chain = run(Langevin(0.1), target, state, 10, first_step=step, generator=generator)
    """
    fields = {name: value for name, value in state._asdict().items() if isinstance(value, torch.Tensor)}
    tensors = {**fields, **{f"extra.{name}": value for name, value in state.extra.items()}}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    tensors[RANDOM] = generator.get_state()
    with atomic_write(Path(path)) as temporary:
        header = {"gebm_chain": json.dumps({"step": step, "device": generator.device.type})}
        safetensors.torch.save_file(tensors, temporary, header)


def load_chain(path: str | Path, device: torch.device | str = "cpu") -> StoredChain:
    """Read what `save_chain` wrote; on the same kind of device the chain goes on bit for bit as if never stopped.

    Raises:
        InputError: no such file, one that `save_chain` did not write, or one from another kind of device.
    """
    device = torch.device(device)
    if not Path(path).exists():
        raise InputError(f"{path}: no such file; give one that save_chain wrote")
    try:
        about, tensors = parse_json(metadata_of(Path(path))["gebm_chain"]), read_tensors(Path(path))
        if about["device"] != device.type:
            raise InputError(f"{path}: a chain of {about['device']} cannot go on on {device.type}; give that device")
        generator = torch.Generator(device)
        generator.set_state(tensors.pop(RANDOM))
        extra = {name: tensors.pop(name) for name in list(tensors) if name.startswith("extra.")}
        extra = {name.removeprefix("extra."): value.to(device) for name, value in extra.items()}
        state = State(**{name: value.to(device) for name, value in tensors.items()}, extra=extra)
        step = int(about["step"])
    except InputError:
        raise
    except Exception as error:  # a damaged state may raise anything
        raise InputError(f"{path}: not a chain that gebm saved ({reason(error):.100})") from None
    return StoredChain(state, step, generator)


class DrawFiles:
    """Thinned draws, written as they come: memory stays flat however many there are.

    Makes `position.npy` (chain, draw, d), float32, in Gaussian coordinates, and `energy.npy` (chain, draw), beta E (of
    ABOBA at a step's midpoint): the arrays that ArviZ takes. `np.load(..., mmap_mode="r")` opens them at any size.

    Arguments:
        folder: an existing folder.
        chains, steps, dim: sizes of the run.
        thin: every thin-th step is kept.
    """

    def __init__(self, folder: Path, chains: int, steps: int, dim: int, thin: int):
        self.thin = thin
        shape = (chains, steps // thin)
        self.positions = open_memmap(folder / "position.npy", "w+", np.float32, (*shape, dim))
        self.energies = open_memmap(folder / "energy.npy", "w+", np.float32, shape)

    def keeps(self, step: int) -> bool:
        """Whether the states after a step are among those kept."""
        return step > 0 and step % self.thin == 0

    def add(self, first: int, step: int, state: State) -> None:
        """Keep the state of chains `first`, ... after a step, if it is one to keep."""
        if not self.keeps(step):
            return
        rows, draw = slice(first, first + len(state.position)), step // self.thin - 1
        self.positions[rows, draw] = state.position.float().cpu().numpy()
        self.energies[rows, draw] = excess(state).float().cpu().numpy()
