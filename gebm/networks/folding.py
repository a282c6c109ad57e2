"""Inference form of a network: the same function with fewer operations."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, skip_init
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

__all__ = ["folded"]


def folded(module: nn.Module) -> nn.Module:
    """Copy `module` for inference: evaluation mode, no parameter gradients, norms and resampling folded into weights.

    Parametrisations such as spectral norm become plain weights. Neighbours in an `nn.Sequential` are merged: a
    BatchNorm2d into the convolution, or the linear layer and its `Unflatten`, before it; nearest doubling into the
    convolution after it, and 2x2 mean pooling into the one before it, which then has stride 2. The copy computes the
    function of `module.eval()` up to rounding; the original is left as it was.
    """
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer):
            _fold_parametrizations(layer)
    for sequence in module.modules():
        if isinstance(sequence, nn.Sequential) and type(sequence).forward is nn.Sequential.forward:
            _fold_batch_norms(sequence)
            _fold_resampling(sequence)
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
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or _hooked(norm):
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
    """Whether something acts at every call, such as the older `torch.nn.utils.spectral_norm` on the weight."""
    return bool(layer._forward_pre_hooks or layer._forward_hooks)


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


def _fold_resampling(sequence: nn.Sequential) -> None:
    # Exact to the border: both forms see zeros outside the image, and the stride drops an odd last row as pooling does.
    for i in range(1, len(sequence)):
        before, after = sequence[i - 1], sequence[i]
        if _doubles(before) and _is_plain_convolution(after):
            sequence[i - 1], sequence[i] = nn.Identity(), _after_doubling(after)
        elif _is_plain_convolution(before) and _halves(after):
            sequence[i - 1], sequence[i] = _before_halving(before), nn.Identity()


def _doubles(layer: nn.Module) -> bool:
    nearest = isinstance(layer, nn.Upsample) and layer.mode == "nearest" and layer.scale_factor == 2
    return nearest and not _hooked(layer)


def _halves(layer: nn.Module) -> bool:
    settings = ("kernel_size", "stride", "padding", "ceil_mode", "divisor_override")
    plain = isinstance(layer, nn.AvgPool2d) and [getattr(layer, s) for s in settings] == [2, 2, 0, False, None]
    return plain and not _hooked(layer)


def _is_plain_convolution(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
        and not isinstance(layer.padding, str)
        and all(padding < size for padding, size in zip(layer.padding, layer.kernel_size, strict=True))
        and not _hooked(layer)
    )


def _after_doubling(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """The convolution of a doubled image: each pixel spreads the flipped kernel from its four copies."""
    weight = 4 * _mean_of_shifts(conv.weight).flip(2, 3).transpose(0, 1)
    padding = tuple(size - 1 - padding for size, padding in zip(conv.kernel_size, conv.padding, strict=True))
    return _stride_2(nn.ConvTranspose2d, conv, weight, padding)


def _before_halving(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution whose output is the mean of four neighbouring outputs."""
    return _stride_2(nn.Conv2d, conv, _mean_of_shifts(conv.weight), conv.padding)


def _mean_of_shifts(weight: Tensor) -> Tensor:
    """Kernels k x k -> (k+1) x (k+1): the mean of the four shifts by zero or one pixel along either axis."""
    return F.avg_pool2d(F.pad(weight, (1, 1, 1, 1)), 2, stride=1)


def _stride_2(kind: type, conv: nn.Conv2d, weight: Tensor, padding: tuple[int, ...]) -> nn.Module:
    # `skip_init`: drawing initial weights would move the global random state.
    channels, size = (conv.in_channels, conv.out_channels), weight.shape[2:]
    layer = skip_init(kind, *channels, tuple(size), stride=2, padding=padding, device=weight.device, dtype=weight.dtype)
    layer.weight, layer.bias = nn.Parameter(weight), conv.bias
    return layer.eval()
