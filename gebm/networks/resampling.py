r"""Resampling and the convolution beside it as one convolution, exactly.

Nearest doubling and a convolution k x k are one transposed convolution (k+1) x (k+1) of stride 2, a convolution and 2x2
mean pooling one convolution (k+1) x (k+1) of stride 2. For k = 3 either costs 16/36 of the pair. Both forms see zeros
outside the image, and the stride drops an odd last row as pooling does.
"""

from typing import NamedTuple, TypeGuard, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gebm import fast

__all__ = ["Paired", "Strided", "fused", "is_stock", "untouched"]

OVERRIDES = {"forward", "_conv_forward"}  # methods that a module may be given as attributes of its own

M = TypeVar("M", bound=nn.Module)


class Strided(NamedTuple):
    """One convolution in the place of a pair: transposed or not, stride 2."""

    transposed: bool
    weight: Tensor
    bias: Tensor | None
    padding: tuple[int, int]

    def __call__(self, x: Tensor) -> Tensor:
        convolution = F.conv_transpose2d if self.transposed else F.conv2d
        return convolution(x, self.weight, self.bias, 2, self.padding)


def fused(first: nn.Module, second: nn.Module) -> Strided | None:
    """What two neighbours come to, with a graph to the weights of the convolution; None if they are no such pair."""
    if _doubles(first) and _is_plain_convolution(second):
        # Each pixel spreads the flipped kernel from its four copies.
        weight = 4 * _mean_of_shifts(second.weight).flip(2, 3).transpose(0, 1)
        (height, width), (rows, columns) = second.kernel_size, _padding(second)
        return Strided(True, weight, second.bias, (height - 1 - rows, width - 1 - columns))
    if _is_plain_convolution(first) and _halves(second):
        return Strided(False, _mean_of_shifts(first.weight), first.bias, _padding(first))
    return None


class Paired(nn.Sequential):
    """An `nn.Sequential` that computes its resampling pairs as one convolution, in training too.

    Parameters and their names are those of the layers. Under `gebm.fast.plain` it is an `nn.Sequential`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not fast.enabled():
            return super().forward(x)  # type: ignore[no-untyped-call, no-any-return]  # torch: untyped
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            pair = fused(layer, layers[0]) if layers else None
            if pair is not None:
                del layers[0]
            x = (pair or layer)(x)
        return x


def _doubles(layer: nn.Module) -> bool:
    return is_stock(layer, nn.Upsample) and layer.mode == "nearest" and layer.scale_factor == 2


def _halves(layer: nn.Module) -> bool:
    settings = ("kernel_size", "stride", "padding", "ceil_mode", "divisor_override")
    return is_stock(layer, nn.AvgPool2d) and [getattr(layer, s) for s in settings] == [2, 2, 0, False, None]


def _is_plain_convolution(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        is_stock(layer, nn.Conv2d)
        and (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
        and not isinstance(layer.padding, str)
        and all(padding < size for padding, size in zip(layer.padding, layer.kernel_size, strict=True))
    )


def _padding(plain: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(plain.padding, str)
    rows, columns = plain.padding
    return rows, columns


def is_stock(layer: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Whether a call of the layer is the stock forward of this very class, of its weights as they are, and no more.

    Subclasses, which often have a forward of their own, are not; parametrised layers are.
    """
    return parametrize.type_before_parametrizations(layer) is kind and untouched(layer)


def untouched(layer: nn.Module) -> bool:
    """Whether nothing acts at its calls but its class: no hooks, such as that of the older `spectral_norm`, no methods
    set on the instance.
    """
    hooks = layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks
    return not any(hooks) and not OVERRIDES & vars(layer).keys()


def _mean_of_shifts(weight: Tensor) -> Tensor:
    """Kernels k x k -> (k+1) x (k+1): the mean of the four shifts by zero or one pixel along either axis."""
    return F.avg_pool2d(F.pad(weight, (1, 1, 1, 1)), 2, stride=1)
