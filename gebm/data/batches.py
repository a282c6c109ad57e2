"""Endless batches of one split, cut on the device that trains."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm.arguments import check_whole
from gebm.data.given import Items, levels_of
from gebm.data.images import from_uint8
from gebm.errors import InputError
from gebm.memory import free_bytes
from gebm.parallel import share

__all__ = ["Batches", "OtherSize"]


class OtherSize(InputError):
    """A saved place in a set of another number of items."""


class Batches(Iterator[Tensor]):
    """Endless shuffled batches on `device`: of uint8 images float32 (batch_size, C, H, W) in [-1, 1], of floats
    (batch_size, ...) as they are.

    Each epoch goes through a fresh permutation, every item once; a batch that reaches its end goes on into the next
    one, so no item is dropped, and a split smaller than a batch is repeated within it. The array lies on the device
    whole, and a batch is one `index_select`; a memory-mapped array that would take more than half of what is free
    there stays where it is, and a batch reads its own rows. The order depends on the generator alone. Of several
    processes each gets its share of every batch.

    Attributes:
        levels: black and white of the images, as networks see them; None of data that are no images (`levels_of`).

    Args:
        data: images, uint8 (N, C, H, W), or floats (N, ...); an array is copied, a tensor is moved to the device. The
            `Items` of a dataset are fetched batch by batch.
        noise: of a table, a map (d, d): each batch gets u @ noise added, u uniform on [-1, 1]^d.
        generator: draws one seed an epoch; may be shared with other users. None is a new one with torch's own seed.

    Raises:
        InputError: no data, data of another type or shape, or a batch size below 1.

    Example:

        >>> images = np.zeros((100, 1, 8, 8), np.uint8)
        >>> batch = next(Batches(images, batch_size=16))
        >>> batch.shape, batch.min()
        (torch.Size([16, 1, 8, 8]), tensor(-1.))
    """

    def __init__(
        self,
        data: np.ndarray | Tensor | Items,
        batch_size: int,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
        noise: np.ndarray | None = None,
    ):
        self.device = torch.device(device)
        mapped = isinstance(data, np.memmap) and data.nbytes > free_bytes(self.device) / 2
        if isinstance(data, np.memmap) and mapped:
            data = _as_it_is(data)
        elif isinstance(data, np.ndarray):
            data = torch.from_numpy(np.array(data))  # a copy: the cache is mapped read-only
        fits = data.ndim == 4 if data.dtype == torch.uint8 else data.ndim > 1 and data.dtype.is_floating_point
        if not (fits and len(data)):
            allowed = "images uint8 (N, C, H, W) or floats (N, ...), N > 0"
            raise InputError(f"batches are of {allowed}, not of {data.dtype} {tuple(data.shape)}")
        check_whole(1, batch_size=batch_size)
        self.levels = levels_of(data)
        self.data = data if mapped or isinstance(data, Items) else data.to(device)
        self.batch_size = batch_size
        self.noise = None if noise is None else torch.from_numpy(np.array(noise)).to(device)
        self.generator = generator or torch.Generator()
        self.start_epoch()

    def __next__(self) -> Tensor:
        parts, missing = [], self.batch_size
        while missing:
            if self.position == len(self.order):
                self.start_epoch()
            parts.append(self.order[self.position : self.position + missing])
            self.position += len(parts[-1])
            missing -= len(parts[-1])
        batch = self.data.index_select(0, share(torch.cat(parts))).to(self.device)
        if self.noise is not None:
            u = torch.rand(batch.shape, generator=self.generator, device=self.generator.device) * 2 - 1
            batch = batch + u.to(batch.device) @ self.noise
        return from_uint8(batch) if batch.dtype == torch.uint8 else batch

    def state_dict(self) -> dict[str, Any]:
        """All that the next batches depend on besides the data: the epoch's seed, the place in it, the generator."""
        generator = self.generator.get_state()
        return {"size": len(self.data), "seed": self.seed, "position": self.position, "generator": generator}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken, bit for bit; raises OtherSize if it is of a set of another size."""
        if state["size"] != len(self.data):
            what = "images" if self.data.ndim == 4 else "rows" if self.data.ndim == 2 else "samples"
            raise OtherSize(f"the saved run drew from {state['size']} {what}, this data set has {len(self.data)}")
        if not (0 <= state["position"] <= len(self.data) and 0 <= state["seed"] < 2**63):
            raise ValueError("a place outside the data")
        self.generator.set_state(state["generator"].cpu())  # wherever the checkpoint was loaded to
        self._permute(state["seed"])
        self.position = state["position"]

    def start_epoch(self) -> None:
        """Begin an epoch, with an order of its own, wherever the present one is."""
        device = self.generator.device
        self._permute(int(torch.randint(2**63 - 1, (), generator=self.generator, device=device)))

    def _permute(self, seed: int) -> None:
        self.seed, self.position = seed, 0
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(seed))
        self.order = order.to(self.data.device)


def _as_it_is(data: np.memmap) -> Tensor:
    """A tensor on a mapped file's memory, which is read only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that writing to it would be undefined
        return torch.from_numpy(data)
