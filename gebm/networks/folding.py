"""Inference form of a network: the same function with fewer operations, where that was seen by trying it."""

import copy
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, skip_init
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode

from gebm import fast
from gebm.errors import InputError
from gebm.networks.common import called, modes_kept
from gebm.networks.resampling import Paired, Strided, fused, is_stock, untouched
from gebm.networks.trials import difference, is_random, reason, unchanged, values_and_gradients

__all__ = ["ROWS", "Original", "copied", "folded", "inference_form", "is_known"]

ROWS = 4  # inputs that a network is tried on

log = logging.getLogger("gebm")

_told: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()  # networks of which it was said that they run as they are
_told_random: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def inference_form(network: nn.Module, inputs: Callable[[bool], Tensor], what: str) -> nn.Module:
    """Copy a network for inference in its fastest form that is seen to compute the same function.

    That is `folded` with weights in channels-last layout. A network with modules that are neither torch's nor ours is
    tried first: where values or gradients differ by more than rounding, or gradients are zero at nearly all inputs, a
    plain copy is returned; where that itself is not the network in evaluation mode, an `Original`. The log says so once
    for each network.

    Arguments:
        inputs: returns inputs (N, ...), with True more of them and spread wider; called for networks that are tried.
        what: the network's name in messages.

    Raises:
        InputError: the network cannot be copied, or fails on these inputs.
    """
    if isinstance(network, Original):
        return network
    return _quick(network) if is_known(network) else _tried(network, inputs, what)


class Original(nn.Module):
    """A network itself, each call in evaluation mode, where a copy of it computes something else.

    A forward or a hook that was set on an instance may keep the layers it was made with, in whatever mode those are.
    The network is none of its submodules: mode and parameters stay its owner's.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.networks = (network,)

    def forward(self, x: Tensor) -> Tensor:
        (network,) = self.networks
        with modes_kept(network):
            out: Tensor = network.eval()(x)
        return out


def is_known(network: object) -> bool:
    """Whether all modules of a network are torch's or ours as they were made: none of these uses the layers of a
    Sequential one by one, keeps another's layers, or computes in less than the precision of its weights.
    """
    return isinstance(network, nn.Module) and all(_is_known(module) for module in network.modules())


def _quick(network: nn.Module) -> nn.Module:
    quick = folded(network)
    for tensor in (*quick.parameters(), *quick.buffers()) if fast.enabled() else ():
        if tensor.ndim == 4:
            tensor.data = tensor.contiguous(memory_format=torch.channels_last)
    return quick


def _tried(network: nn.Module, inputs: Callable[[bool], Tensor], what: str) -> nn.Module:
    plain, x = copied(network), inputs(False)
    with modes_kept(network), unchanged(network):
        network.eval()
        expected = values_and_gradients(lambda x: called(network, x, what), x)
        random = is_random(network, x)
        for module in network.modules():
            module.training = True  # which is nothing to a copy
        fault = _fault(plain, x, expected)
    if random and network not in _told_random:
        _told_random.add(network)
        log.warning(
            "%s (%s) gives other values at each call in evaluation mode, so that chains target no density: draw no "
            "random numbers in it (F.dropout wants training=self.training)", what, type(network).__name__,
        )  # fmt: skip
    if fault:
        _tell(network, what, f"is computed by the network itself in evaluation mode and not by a copy, which {fault}")
        return Original(network)
    if not fast.enabled():
        return plain
    if _slopes(expected) < len(x):  # as of saturated units, or of energies on their floor
        with suppress(Exception):  # of inputs that the network was not made for
            wider = inputs(True)
            x, expected = wider, values_and_gradients(plain, wider)
    quick = _quick(network)
    fault = "cannot be compared with it, as gradients are zero"
    if _slopes(expected) >= ROWS and not (fault := _fault(quick, x, expected)):
        return quick
    _tell(network, what, f"runs as it is written and not in its faster form, which {fault}")
    return plain


def _slopes(of_network: tuple[Tensor, Tensor]) -> int:
    """In how many rows the gradient is not zero."""
    return int(of_network[1].any(1).sum())


def _fault(form: nn.Module, x: Tensor, expected: tuple[Tensor, Tensor]) -> str:
    """What is wrong with a form that is to have these values and gradients; empty: nothing."""
    try:
        apart = difference(values_and_gradients(form, x), expected)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a user's network may raise
        return f"fails ({reason(error)})"
    return (
        "" if apart <= torch.finfo(x.dtype).eps ** 0.5 else f"gives other values or gradients (by {apart:.1g} of them)"
    )


def _tell(network: nn.Module, what: str, fate: str) -> None:
    if network not in _told:
        _told.add(network)
        log.warning("%s (%s) %s", what, type(network).__name__, fate)


def folded(module: nn.Module) -> nn.Module:
    """Copy `module` for inference: evaluation mode, no parameter gradients, norms and resampling folded into weights.

    Parametrisations such as spectral norm become plain weights. Neighbours in an `nn.Sequential` are merged: a
    BatchNorm2d into the convolution, or the linear layer and its `Unflatten`, before it; doubling and pooling into the
    convolution beside them (`gebm.networks.resampling`). Only layers of exactly these classes are merged, without hooks
    or a forward of their own. A module that uses layers of its `nn.Sequential` one by one may then compute something
    else: `inference_form` compares. The original is left as it was. Under `gebm.fast.plain` nothing is folded.
    """
    module = copied(module)
    if not fast.enabled():
        return module
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer):
            _fold_parametrizations(layer)
    for sequence in module.modules():
        if _is_plain_chain(sequence):
            _fold_batch_norms(sequence)
            _fold_resampling(sequence)
    return _without_gradients(module)


def copied(module: nn.Module) -> nn.Module:
    """Copy `module` as it is, into evaluation mode and without parameter gradients.

    Raises:
        InputError: it holds something that cannot be copied.
    """
    try:
        with torch.no_grad(), _Detached():  # copies of compiled modules (torch.jit) would have a graph to the original
            module = copy.deepcopy(module)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a user's module may raise
        name = type(module).__name__
        raise InputError(f"{name}: cannot be copied ({reason(error)}): keep that outside of the module") from error
    return _without_gradients(module.eval())


def _without_gradients(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():  # compiled modules refuse `module.requires_grad_`
        parameter.requires_grad_(False)
    return module


class _Detached(TorchFunctionMode):
    """Within, `copy.deepcopy` copies the values of tensors with a graph, which it otherwise refuses.

    Such are weights that pre-forward hooks leave on their layers (the older spectral and weight norms, pruning), and
    whatever a module remembers of its last pass.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _is_known(module: nn.Module) -> bool:
    kind: type[nn.Module] = parametrize.type_before_parametrizations(module)
    return kind.__module__.startswith(("torch.nn.", "gebm.networks.")) and untouched(module)


def _fold_parametrizations(layer: nn.Module) -> None:
    # Not `remove_parametrizations`: it edits the layer's class, which the copy shares with the original.
    assert isinstance(layer.parametrizations, nn.ModuleDict)
    weights = {name: getattr(layer, name).detach() for name in layer.parametrizations}
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    for name, weight in weights.items():
        layer.register_parameter(name, nn.Parameter(weight))


def _is_plain_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a call of it is nothing but calls of its layers in turn."""
    kind, methods = type(module), ("__call__", "__iter__", "__getitem__", "__setitem__", "__len__")
    return (
        isinstance(module, nn.Sequential)
        and kind.forward in (nn.Sequential.forward, Paired.forward)
        and all(getattr(kind, method) is getattr(nn.Sequential, method) for method in methods)
        and untouched(module)
    )


def _fold_batch_norms(sequence: nn.Sequential) -> None:
    for i in range(1, len(sequence)):
        norm, before = sequence[i], sequence[i - 1]
        if not is_stock(norm, nn.BatchNorm2d) or norm.training or norm.running_mean is None or before.training:
            continue
        if is_stock(before, nn.Conv2d) or is_stock(before, nn.ConvTranspose2d) and before.groups == 1:
            sequence[i - 1] = fuse_conv_bn_eval(before, norm, transpose=isinstance(before, nn.ConvTranspose2d))
        elif i > 1 and is_stock(linear := sequence[i - 2], nn.Linear) and _makes_channels(before, linear, norm):
            sequence[i - 2] = fuse_linear_bn_eval(linear, _per_feature(norm, linear.out_features))
        else:
            continue
        sequence[i] = nn.Identity()


def _makes_channels(layer: nn.Module, linear: nn.Linear, norm: nn.BatchNorm2d) -> bool:
    """Whether it unflattens the features of the linear layer, (N, F) -> (N, C, H, W), C the channels of the norm."""
    if not is_stock(layer, nn.Unflatten) or linear.training or layer.dim != 1:
        return False
    sizes = layer.unflattened_size
    whole = isinstance(sizes, tuple | list) and len(sizes) == 3 and all(isinstance(size, int) for size in sizes)
    return whole and sizes[0] == norm.num_features and linear.out_features % norm.num_features == 0


def _per_feature(norm: nn.BatchNorm2d, features: int) -> nn.BatchNorm1d:
    """The channel norm seen from before the unflattening: every channel's values repeated over its pixels."""
    repeats = features // norm.num_features
    flat = nn.BatchNorm1d(features, eps=norm.eps).to(norm.running_mean).eval()  # weight 1, bias 0 if norm has none
    with torch.no_grad():
        for name, value in norm.state_dict().items():
            if value.ndim:
                getattr(flat, name).copy_(value.repeat_interleave(repeats))
    return flat


def _fold_resampling(sequence: nn.Sequential) -> None:
    for i in range(1, len(sequence)):
        pair = fused(sequence[i - 1], sequence[i])
        if pair is not None:
            at = i if pair.transposed else i - 1  # where the convolution was
            sequence[i - 1], sequence[i] = nn.Identity(), nn.Identity()
            sequence[at] = _layer(pair)


def _layer(pair: Strided) -> nn.Module:
    # `skip_init`: drawing initial weights would move the global random state.
    weight, kind = pair.weight, nn.ConvTranspose2d if pair.transposed else nn.Conv2d
    channels = weight.shape[:2] if pair.transposed else weight.shape[1::-1]
    size, like = tuple(weight.shape[2:]), {"device": weight.device, "dtype": weight.dtype}
    layer: nn.Conv2d | nn.ConvTranspose2d = skip_init(  # type: ignore[no-untyped-call]  # torch: untyped
        kind, *channels, size, stride=2, padding=pair.padding, **like
    )
    layer.weight, layer.bias = nn.Parameter(weight), pair.bias
    return layer.eval()
