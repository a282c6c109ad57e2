"""Trying networks on a few inputs: whether two forms are the same function, and whether one computes in half precision.

A trial leaves a network's parameters, buffers and mode, and everybody's random numbers, as they were.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["difference", "is_cut", "is_random", "reason", "rounds", "same_noise", "unchanged", "values_and_gradients"]

KINK = 0.05  # what a unit that rounding moved over the kink of its ReLU may do to the gradient of one row


@contextmanager
def same_noise(device: torch.device) -> Iterator[None]:
    """Within, torch's own random numbers are those of seed 0; afterwards they go on as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


@contextmanager
def unchanged(*networks: nn.Module) -> Iterator[None]:
    """Put parameters and buffers back afterwards: some networks write theirs in evaluation mode too."""
    kept = [
        (module, name, tensor, tensor.detach().clone())
        for network in networks
        for module in network.modules()
        for named in (module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for name, tensor in named
    ]
    try:
        yield
    finally:
        for module, name, tensor, value in kept:
            if getattr(module, name) is not tensor:
                setattr(module, name, tensor)
            if not torch.equal(tensor, value):
                with torch.no_grad():
                    tensor.copy_(value)


def reason(error: Exception) -> str:
    """What an exception says, on one line, for the brackets of a message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def values_and_gradients(network: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (N, -1), and the gradients (N, -1) of a fixed combination of them; random numbers as of seed 0."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False), same_noise(x.device):
        out: Tensor = network(x).reshape(len(x), -1)
        gradient = None
        if out.requires_grad:
            weights = torch.linspace(1, 2, out.shape[1], dtype=out.dtype, device=out.device)
            (gradient,) = torch.autograd.grad((weights * out).sum(), x, allow_unused=True)
    gradient = torch.zeros_like(x) if gradient is None else gradient
    return out.detach().double(), gradient.reshape(len(x), -1).double()


def is_cut(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether no graph leads from outputs to inputs, as under a `no_grad` or behind a `detach` in the function."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        out = function(x)
        return not out.requires_grad or torch.autograd.grad(out.sum(), x, allow_unused=True)[0] is None


def is_random(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a function gives other values when it is called again; random numbers go on as if it had not been."""
    with torch.no_grad(), same_noise(x.device):
        once, again = function(x).double(), function(x).double()
    return not torch.allclose(once, again, rtol=1e-3, equal_nan=True)


def difference(ours: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor]) -> float:
    """The largest relative difference of values and gradients; infinite where only one of them is finite.

    Of values, relative to the largest row. Of gradients, relative to each row; where no row is off by more than `KINK`
    the worst quarter is left out, as rounding may move rows over the kink of a ReLU.
    """
    if any(not torch.equal(a.isfinite(), b.isfinite()) for a, b in zip(ours, plain)):
        return torch.inf
    values, gradients, expected, slopes = (torch.nan_to_num(t, 0.0, 0.0, 0.0) for t in (*ours, *plain))
    of_values = (values - expected).norm(dim=1).max() / expected.norm(dim=1).max().clamp(min=1e-30)
    of_rows = (gradients - slopes).norm(dim=1) / slopes.norm(dim=1).clamp(min=1e-30)
    of_gradients = of_rows.max() if of_rows.max() > KINK else of_rows.sort().values[-1 - len(of_rows) // 4]
    return float(torch.maximum(of_values, of_gradients))


def rounds(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a function computes anything in less than float32, as under a `torch.autocast` of its own."""
    with torch.no_grad(), same_noise(x.device), _HalfPrecision() as seen:
        function(x)
    return bool(seen.any)


class _HalfPrecision(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch: untyped
    """Notes whether any operation within gives floating-point numbers of less than 32 bits."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.any = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = (t for t in tree_leaves(out) if isinstance(t, Tensor))
        self.any = self.any or any(t.is_floating_point() and t.dtype.itemsize < 4 for t in tensors)
        return out
