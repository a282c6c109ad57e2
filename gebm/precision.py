"""Which precision networks compute in, by what was measured to be right (docs/speed.md)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gebm import fast
from gebm.errors import InputError
from gebm.latent import LatentPosterior
from gebm.model import GEBM
from gebm.networks.common import evaluating
from gebm.networks.trials import reason
from gebm.samplers import Kernel

__all__ = ["Choice", "Operations", "for_chains", "for_training", "has_bfloat16"]

# From so many operations of a potential and its gradient on, bfloat16 was 1.6 times as fast or more, and below less.
PAYS = 1e8
# The error that bfloat16 may make in gradients of the energy, relative to each, on average. Ours have 0.07 to 0.19.
ERROR = 0.4


class Choice(NamedTuple):
    """The value of `--precision` that was settled on, and what to say of it (empty: nothing)."""

    precision: int | str
    reason: str = ""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch: untyped
    """Counts the floating-point operations of convolutions and matrix products within: a multiply-add is two."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Older torch does not tell: then float32 it is.
    get: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    capabilities = get() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def for_chains(asked: int | str, kernel: Kernel | type[Kernel], target: LatentPosterior) -> Choice:
    """The precision of the gradients that chains move by.

    `auto` takes bfloat16 for kernels without an accept step, on images, on a device that has it, where the networks are
    large enough; samples and energies are float32 in any case.

    Arguments:
        asked: 'auto', 32, 'bf16' or 64.
        target: a frozen posterior, on its device.

    Raises:
        InputError: bfloat16 for an exact kernel, for a table, or with networks in float64.
    """
    if asked == "bf16":
        if kernel.exact:
            raise InputError(
                "--precision bf16: this sampler is exact only with float32 potentials; give --precision 32"
            )
        _check(_starts(target, 1).dtype, of_images(target))
    if asked != "auto":
        return Choice(asked)
    return Choice(32) if kernel.exact else _where_it_pays(target, "gradients, float32 samples and energies")


def for_training(asked: int | str, model: GEBM, measured: bool = True) -> Choice:
    """The precision that a pair computes in while it is trained; weights, energies and losses keep float32.

    `auto` takes bfloat16 on a CPU that has it, for images, where the networks are large enough.

    Arguments:
        asked: 'auto', 32, 'bf16' or 64.
        model: the pair, on its device.
        measured: whether such a training was seen to end at the same figures; `auto` takes no other.

    Raises:
        InputError: bfloat16 for a table, or with weights in float64.
    """
    if asked not in ("auto", "bf16"):
        return Choice(asked)
    device = model.log_partition.device
    with evaluating(model):  # norms of a base in training refuse a single sample
        images = of_images(model.posterior())
    if asked == "bf16":
        _check(model.log_partition.dtype, images)
        return Choice(asked)
    if not (measured and images and device.type == "cpu" and has_bfloat16(device)):
        return Choice(32)
    return _where_it_pays(model.posterior().frozen(), "passes, float32 weights, energies and losses")


def _where_it_pays(target: LatentPosterior, what: str) -> Choice:
    """bfloat16 for large networks of images in float32 on a device that has it, where gradients are nearly the same."""
    if not (fast.enabled() and has_bfloat16(target.device) and of_images(target)):
        return Choice(32)
    start = _starts(target, 8)
    with Operations() as operations:
        target(start[:1])
    if start.dtype != torch.float32 or operations.total < PAYS:
        return Choice(32)
    size = f"{operations.total / 1e6:,.0f} million operations a sample and its gradient"
    full, failure = _slopes(target, start), "precision: float32, as bfloat16"
    if not full.any():
        return Choice(32, f"{failure} cannot be compared with it here (the gradients of the energy are zero)")
    try:
        low = _slopes(target.frozen(torch.bfloat16), start)
    except Exception as error:  # whatever a user's network may raise
        return Choice(32, f"{failure} fails here ({reason(error)})")
    apart = float(((low - full).norm(dim=1) / full.norm(dim=1).clamp(min=1e-30)).mean())
    if not apart <= ERROR:  # not a number, if a gradient is not finite
        off = f"gradients are off by {apart:.2g} of their size, {ERROR:.2g} is allowed"
        return Choice(32, f"{failure} is too coarse for these networks ({off})")
    return Choice("bf16", f"precision: bfloat16 {what} ({size}); see --precision")


def _slopes(target: LatentPosterior, u: Tensor) -> Tensor:
    """Gradients (N, d) of 100 times the energy by positions: of the energy alone, the prior's would hide small ones."""
    return target.at(100.0)(u)[1] - u


def of_images(target: LatentPosterior) -> bool:
    """Whether the base is a network that makes images."""
    return isinstance(target.base, nn.Module) and target.decode(_starts(target, 1)).ndim == 4


def _starts(target: LatentPosterior, n: int) -> Tensor:
    """Positions that take nothing from anybody's random numbers: a run is the same whether or not it asks."""
    return target.start(n, torch.Generator(target.device).manual_seed(0))


def _check(dtype: torch.dtype, images: bool) -> None:
    if not images:
        raise InputError("--precision bf16: is for networks of images; give --precision 32")
    if dtype != torch.float32:
        raise InputError("--precision bf16: contradicts float64 (--dtype 64); give one of them")
