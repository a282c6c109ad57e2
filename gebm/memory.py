"""How much memory is free, how many chains may go through the networks at a time, and what becomes of freed memory."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from gebm import parallel

if TYPE_CHECKING:
    from gebm.latent import LatentPosterior

__all__ = ["free_bytes", "keep_freed", "rows_that_fit"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of malloc.h
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> float:
    """Memory that new tensors on a device can have; infinite where the system does not tell.

    Of the processes that share a machine's memory each has its part.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if trim := _of_libc("malloc_trim"):
        trim(0)  # what `keep_freed` keeps is free
    free = float("inf")
    if MEMINFO.exists():
        (kib,) = (line.split()[1] for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable"))
        free = 1024.0 * int(kib)
    limit, used, stat = (CGROUP / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.exists() and limit.read_text().strip() != "max":
        cached = (line.split()[1] for line in stat.read_text().splitlines() if line.startswith("inactive_file "))
        taken = float(used.read_text()) - float(next(cached, 0))  # files that were read, and can be dropped
        free = min(free, float(limit.read_text()) - taken)
    return free / parallel.on_this_machine()


def keep_freed() -> bool:
    """Have this process keep freed memory for its next tensors.

    The GNU C library gives large blocks back to the system, which hands each new one out in pages that it clears first:
    a fifth of a step of wide networks. The process holds on to the most it ever used, and to gaps between blocks in
    use: up to 42 % more at the peak of a training step (docs/speed.md).

    Returns:
        whether the C library of this system takes the setting.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is None or not mallopt(M_TRIM_THRESHOLD, -1):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 2**31 - 1) or mallopt(M_MMAP_MAX, 0))  # older ones take the latter alone


def _of_libc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None


def rows_that_fit(target: "LatentPosterior", rows: int) -> int:
    """The positions to send through the networks at a time, so that they take half of the free memory; 0: all `rows`.

    What a pass holds at its end is measured on two rows and on one, and its largest passing tensors are taken to
    be as much again.
    """
    saved = _saved_bytes(target, 2) - _saved_bytes(target, 1)
    fit = int(0.5 * min(free_bytes(target.device), 2.0**62) // max(2 * saved, 1))
    return 0 if fit >= rows else max(fit, 1)


def _saved_bytes(target: "LatentPosterior", rows: int) -> int:
    """Bytes that a potential keeps for its gradient, each storage once."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    u = target.start(rows, torch.Generator(target.device).manual_seed(0)).requires_grad_()
    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.enable_grad():
        target.potential(u)
    return sum(found.values())
