"""Inference form of a network: the same function with fewer operations."""

import copy
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.utils import parametrize, skip_init
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from gebm import fast
from gebm.networks.resampling import Paired, Strided, fused, hooked

__all__ = ["folded"]


def folded(module: nn.Module) -> nn.Module:
    """Copy `module` for inference: evaluation mode, no parameter gradients, norms and resampling folded into weights.

    Parametrisations such as spectral norm become plain weights. Neighbours in an `nn.Sequential` are merged: a
    BatchNorm2d into the convolution, or the linear layer and its `Unflatten`, before it; doubling and pooling into the
    convolution beside them (`gebm.networks.resampling`). The copy computes the function of `module.eval()` up to
    rounding; the original is left as it was. Under `gebm.fast.plain` nothing is folded.
    """
    module = copy.deepcopy(module).eval().requires_grad_(False)
    if not fast.enabled():
        return module
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer):
            _fold_parametrizations(layer)
    for sequence in module.modules():
        if isinstance(sequence, nn.Sequential) and type(sequence).forward in (nn.Sequential.forward, Paired.forward):
            _fold_batch_norms(sequence)
            _fold_resampling(sequence)
    return module.requires_grad_(False)


def _fold_parametrizations(layer: nn.Module) -> None:
    # Not `remove_parametrizations`: it edits the layer's class, which the copy shares with the original.
    assert isinstance(layer.parametrizations, nn.ModuleDict)
    weights = {name: getattr(layer, name).detach() for name in layer.parametrizations}
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    for name, weight in weights.items():
        layer.register_parameter(name, nn.Parameter(weight))


def _fold_batch_norms(sequence: nn.Sequential) -> None:
    for i in range(1, len(sequence)):
        norm = sequence[i]
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or hooked(norm):
            continue
        before = sequence[i - 1]
        if isinstance(before, nn.Conv2d | nn.ConvTranspose2d) and not hooked(before):
            sequence[i - 1] = fuse_conv_bn_eval(before, norm, transpose=isinstance(before, nn.ConvTranspose2d))
        elif isinstance(before, nn.Unflatten) and i > 1 and _is_plain_linear(linear := sequence[i - 2]):
            sequence[i - 2] = fuse_linear_bn_eval(linear, _per_feature(norm, linear.out_features))
        else:
            continue
        sequence[i] = nn.Identity()


def _is_plain_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(layer, nn.Linear) and not hooked(layer)


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
