r"""The gradient of a network in its input, with a graph that is cheap to go back through.

A gradient penalty needs the derivative of :math:`v = \nabla_x E(x)` in the parameters. A network of convolutions and
(leaky) ReLUs is piecewise linear: v depends on the input through nothing but which units are on, so no derivative goes
back along the forward pass, and with the signals :math:`\delta_l` that the first pass backward left and the forward
product t of the network along :math:`\bar v` (the units held fixed) the weight of layer l gets
:math:`\delta_l \otimes t_{l-1}`. That is a forward and a weight pass. Autograd by itself makes two passes more, which
carry zeros, and computes weight gradients as convolutions with kernels as large as the image.

That holds for convolutions whose weight and bias do not depend on the input. Those of others, and every other layer,
are differentiated by autograd itself, so that the derivative is exact for every network.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gebm import fast

__all__ = ["input_gradient"]


def input_gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradients of network(x) (N,), independent rows, by x (N, ...): (N, ...), with a graph to the parameters."""
    x = x.detach().requires_grad_()
    first = _Pass()
    with _CheapDoubleBackward(x, first) if fast.enabled() else torch.enable_grad():
        value = network(x).sum()
    with first:
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    return gradient


class _Pass:
    """The first pass backward, to the input alone: torch does not tell a `Function` that weights are not asked for.

    A network that itself asks for gradients by weights does so before.
    """

    running = False

    def __enter__(self) -> None:
        self.running = True

    def __exit__(self, *error: object) -> None:
        self.running = False


class _CheapDoubleBackward(TorchFunctionMode):
    """Calls of convolutions and ReLUs within go through functions whose second derivative is written out."""

    def __init__(self, x: Tensor, first: _Pass):
        super().__init__()
        self.x = x
        self.first = first

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own: dict[Callable[..., Any], Callable[..., Any]] = {
            F.conv2d: self._conv2d, F.relu: _relu, F.leaky_relu: _leaky_relu,
        }  # fmt: skip
        # Functions of ours have no rules for torch.func's transforms and for forward-mode derivatives.
        plain = func not in own or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        return (func if plain else own[func])(*args, **(kwargs or {}))

    def _conv2d(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        sizes = [[s, s] if isinstance(s, int) else [*s] for s in (stride, padding, dilation)]
        images = input.ndim == 4 and not input.is_complex()
        by_pairs = not isinstance(padding, str) and all(len(size) == 2 for size in sizes)
        if not images or not by_pairs or any(_depends(w, self.x) for w in (weight, bias)):
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            input, weight = _cast(input, dtype), _cast(weight, dtype)
            bias = None if bias is None else _cast(bias, dtype)
        return _applied(_Convolution, input, weight, bias, (*sizes, groups), self.first)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast does, which leaves float64 alone."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def _depends(weight: Tensor | None, x: Tensor) -> bool:
    """Whether the graph of a weight goes back to x."""
    if weight is x:
        return True
    ahead = [] if weight is None or weight.grad_fn is None else [weight.grad_fn]
    seen = {*ahead}
    while ahead:
        node = ahead.pop()
        if getattr(node, "variable", None) is x:
            return True
        fresh = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= fresh
        ahead += fresh
    return False


def _applied(function: type[Function], *arguments: object) -> Tensor:
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]  # torch: untyped
    return result


# The names of arguments are torch's own, by which they may be given.


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu(input, inplace=True) if inplace else _applied(_PiecewiseLinear, input, None)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    if inplace:
        return F.leaky_relu(input, negative_slope, inplace=True)
    return _applied(_PiecewiseLinear, input, negative_slope)


class _PiecewiseLinear(Function):
    """x where it is positive, else slope times x (None: a ReLU); its slope has no derivative, and torch is told so.

    Like torch's own, a ReLU keeps its output and a leaky one its input: a network may overwrite the other in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float | None) -> Tensor:
        y = F.relu(x) if slope is None else F.leaky_relu(x, slope)
        ctx.save_for_backward(y if slope is None else x)
        ctx.slope = slope or 0.0
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors  # x and y are positive alike
        return torch.ops.aten.leaky_relu_backward(g, kept.detach(), ctx.slope, False), None


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: Any, first: _Pass) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape, ctx.first = shape, first
        return F.conv2d(x, weight, bias, *shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (of_x, of_weight, of_bias, *_) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            _applied(_InputGradient, g, weight, x.detach(), ctx.shape) if of_x else None,
            _backward(g, x, weight, ctx.shape, 1) if of_weight and not ctx.first.running else None,
            g.sum((0, 2, 3)) if of_bias and not ctx.first.running else None,
            None,
            None,
        )


class _InputGradient(Function):
    """The gradient of a convolution in its input, linear in the gradient of its output and in its weight."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, x: Tensor, shape: Any) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.shape = shape
        return _backward(g, x, weight, shape, 0)

    @staticmethod
    def backward(ctx: Any, t: Tensor) -> tuple[Tensor | None, ...]:
        (g, weight), (of_g, of_weight, *_) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            F.conv2d(t, weight, None, *ctx.shape) if of_g else None,
            _backward(g, t, weight, ctx.shape, 1) if of_weight else None,
            None,
            None,
        )


def _backward(g: Tensor, x: Tensor, weight: Tensor, shape: Any, which: int) -> Tensor:
    """The gradient of a convolution in its input (0) or in its weight (1)."""
    *sizes, groups = shape
    mask = [which == 0, which == 1, False]
    gradients = torch.ops.aten.convolution_backward(g, x, weight, None, *sizes, False, [0, 0], groups, mask)
    gradient: Tensor = gradients[which]
    return gradient
