"""What the image families share: the ladder of resolutions, the energy's head, initialisation."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from gebm.errors import InputError
from gebm.parallel import is_lost

__all__ = ["ENERGY_FLOOR", "HasDensity", "ImageEnergy", "doublings", "evaluating", "initialise", "ladder", "scaled"]
__all__ += ["IMAGE_SIZES", "called", "floats", "modes_kept", "spectral_norm", "upsampler", "weights_once"]

ENERGY_FLOOR = -10.0
IMAGE_SIZES = (8, 16, 28, 32, 64)  # sides that the networks of images take
OF_INPUTS = RuntimeError, ValueError, TypeError, IndexError, AssertionError  # what inputs of a wrong kind may raise


@runtime_checkable
class HasDensity(Protocol):
    """What a base with a density has, as flows do: the log-density of rows (N, d), (N,)."""

    def log_prob(self, x: Tensor, /) -> Tensor: ...


def doublings(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """The coarsest side, 4 or 7, and the number of factor-two steps from there to the side of images (C, S, S).

    Raises:
        InputError: the images are not squares of a side in `IMAGE_SIZES`.
    """
    _, height, width = image_shape
    if height != width or height not in IMAGE_SIZES:
        *sizes, last = IMAGE_SIZES
        allowed = f"squares of {', '.join(map(str, sizes))} or {last}"
        raise InputError(f"images of {height} x {width}: these networks take {allowed}; see --image_size")
    side = 7 if height % 7 == 0 else 4
    return side, int(math.log2(height // side))


def scaled(channels: int, width: float) -> int:
    """`channels` times the width factor, at least one."""
    return max(1, round(channels * width))


def ladder(levels: int, width: float) -> list[int]:
    """Channels from fine to coarse: 64, doubling, at most 512, times the width factor."""
    return [scaled(min(64 * 2**k, 512), width) for k in range(levels)]


def upsampler(latent_dim: int, channels: Sequence[int], side: int) -> list[nn.Module]:
    """Layers from latents (N, d) to (N, channels[-1], S, S): linear to `side` squared, then BN, ReLU, ConvT k4 s2 per
    doubling.
    """
    first = (channels[0], side, side)
    layers: list[nn.Module] = [nn.Linear(latent_dim, math.prod(first)), nn.Unflatten(1, first)]
    for before, after in pairwise(channels):
        layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1)]
    return layers


def initialise(module: nn.Module, weight: Callable[[Tensor], object]) -> None:
    """Apply `weight` to every convolution's and linear layer's weight, zero their biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            weight(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def floats(network: nn.Module) -> Iterator[Tensor]:
    """Its floating-point parameters and buffers."""
    for tensors in (network.parameters(), network.buffers()):
        yield from (tensor for tensor in tensors if tensor.is_floating_point())


def called(network: Callable[[Tensor], Tensor], x: Tensor, what: str) -> Tensor:
    """network(x); InputError where it does not take inputs of this shape or dtype.

    Of other failures, which two rows alone do not have, the error is its own.
    """
    try:
        return network(x)
    except InputError:
        raise
    except OF_INPUTS as error:
        capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
        if capturing or is_lost(error) or not _fails(network, x):
            raise
        dtype = next((t.dtype for t in floats(network)), x.dtype) if isinstance(network, nn.Module) else x.dtype
        mend = "give the prior the dimension that the base takes, and the energy what the base makes"
        if what == "the base" and x.ndim == 2 and not _fails(network, x[:, :, None, None]):
            mend = "it takes (N, d, 1, 1), and latents come as (N, d): let it begin with z = z[:, :, None, None]"
        if dtype != x.dtype:
            mend = f"its weights are {dtype}: give base and energy one dtype"
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{what} fails on inputs {tuple(x.shape)}, {x.dtype} ({reason}): {mend}") from error


def _fails(network: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether two rows alone fail, not one: a batch norm in training mode takes no single row of any shape."""
    try:
        with torch.no_grad():
            network(torch.cat([x[:1], x[-1:]]))
    except OF_INPUTS:
        return True
    return False


@contextmanager
def modes_kept(*callables: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Afterwards every submodule is in its own mode again; a plain function has none."""
    networks = [network for network in callables if isinstance(network, nn.Module)]
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(*networks: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Evaluation mode and no gradients within; afterwards every submodule is in its own mode again."""
    with modes_kept(*networks), torch.no_grad():
        for network in networks:
            if isinstance(network, nn.Module):
                network.eval()
        yield


@contextmanager
def weights_once(network: nn.Module) -> Iterator[None]:
    """Compute parametrised weights now, and for all passes within: one power iteration of a spectral norm, in full.

    `torch.autocast` would let parts of that iteration run in half precision.
    """
    with parametrize.cached():
        with torch.autocast(next(network.parameters(), torch.empty(0)).device.type, enabled=False):
            for layer in filter(parametrize.is_parametrized, network.modules()):
                assert isinstance(layer.parametrizations, nn.ModuleDict)
                for name in layer.parametrizations:
                    getattr(layer, name)
        yield


class ImageEnergy(nn.Module):
    r"""Scalar energy of an image: features, a linear head, an optional floor.

    .. math:: E(x) = \max(w^\top \phi(x) + b,\; f)

    The floor f = -10 is that of the reference code (paper.md section 6, item 17): below it the energy is flat.
    The head works in the precision of its own weights, so the energy stays float32 when the features are bfloat16, by
    their weights or by `torch.autocast`.

    Arguments:
        features: network (N, C, H, W) -> (N, ...), flattened before the head.
        head: linear layer to one output.
        trunc: whether the floor applies.

    Shapes: images (N, C, H, W) in [-1, 1] -> energies (N,).
    """

    def __init__(self, features: nn.Module, head: nn.Linear, trunc: bool = True):
        super().__init__()
        self.features = features
        self.head = head
        self.trunc = trunc

    @property
    def floor(self) -> float | None:
        """The lowest energy there is; None: no bound."""
        return ENERGY_FLOOR if self.trunc else None

    def forward(self, x: Tensor) -> Tensor:
        phi: Tensor = self.features(x).flatten(1)
        with torch.autocast(x.device.type, enabled=False):
            # The bias, not the weight: reading a spectrally normalised weight would run its power iteration.
            e: Tensor = self.head(phi.to(self.head.bias.dtype)).squeeze(1)
        return e.clamp(min=ENERGY_FLOOR) if self.trunc else e

    def extra_repr(self) -> str:
        return f"floor={self.floor}"
