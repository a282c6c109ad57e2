"""Inference form of a network: the same function with fewer operations."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

__all__ = ["folded"]


def folded(module: nn.Module) -> nn.Module:
    """Copy `module` for inference: evaluation mode, no parameter gradients, normalisations folded into weights.

    Parametrisations such as spectral norm become plain weights; a BatchNorm2d that directly follows a convolution, or a
    linear layer and its `Unflatten`, in an `nn.Sequential` is merged into that layer. The copy computes the function of
    `module.eval()` up to rounding; the original is left as it was.
    """
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer):
            _fold_parametrizations(layer)
    for sequence in module.modules():
        if isinstance(sequence, nn.Sequential):
            _fold_batch_norms(sequence)
    return module.requires_grad_(False)


def _fold_parametrizations(layer: nn.Module) -> None:
    # Not `remove_parametrizations`: it edits the layer's class, which the copy shares with the original.
    weights = {name: getattr(layer, name).detach() for name in layer.parametrizations}
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    for name, weight in weights.items():
        layer.register_parameter(name, nn.Parameter(weight))


def _fold_batch_norms(sequence: nn.Sequential) -> None:
    for i in range(1, len(sequence)):
        norm = sequence[i]
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        before = sequence[i - 1]
        if isinstance(before, nn.Conv2d | nn.ConvTranspose2d) and not _hooked(before):
            sequence[i - 1] = fuse_conv_bn_eval(before, norm, transpose=isinstance(before, nn.ConvTranspose2d))
        elif isinstance(before, nn.Unflatten) and i > 1 and _is_plain_linear(sequence[i - 2]):
            sequence[i - 2] = fuse_linear_bn_eval(sequence[i - 2], _per_feature(norm, sequence[i - 2].out_features))
        else:
            continue
        sequence[i] = nn.Identity()


def _hooked(layer: nn.Module) -> bool:
    """Whether something, such as the older `torch.nn.utils.spectral_norm`, sets the layer's weight at every call."""
    return bool(layer._forward_pre_hooks)


def _is_plain_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and not _hooked(layer)


def _per_feature(norm: nn.BatchNorm2d, features: int) -> nn.BatchNorm1d:
    """The channel norm seen from before the unflattening: every channel's values repeated over its pixels."""
    repeats = features // norm.num_features
    flat = nn.BatchNorm1d(features, eps=norm.eps).to(norm.running_mean).eval()  # weight 1, bias 0 if norm has none
    with torch.no_grad():
        for name, value in norm.state_dict().items():
            if value.ndim:
                getattr(flat, name).copy_(value.repeat_interleave(repeats))
    return flat
