"""Checkpoints of the authors' code of 2021 (github.com/MichaelArbel/GeneralizedEBM), `g_*.pth` and `d_*.pth`.

They are state dicts saved by `torch.save`. Its `sngan` and `resnet-sn` networks are ours layer by layer, so tensors are
matched by their order and shape. What differs: spectral norm by hooks (`weight_orig`, `weight_u`, `weight_v`), not by a
parametrisation; layers that stand under two names; the `module.` of DataParallel; c among the energy's tensors; and
mean pooling after a 1x1 convolution, with which it commutes.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gebm.bounded import check_regular
from gebm.data.archives import open_zip
from gebm.errors import InputError
from gebm.model import GEBM, Architecture
from gebm.text import show
from gebm.weights import Budget

__all__ = ["NETWORKS", "load_reference"]

MAX_BYTES = 1 << 30  # several times the largest of theirs

Layer = dict[str, Tensor]  # name within the layer -> tensor
NETWORKS = {"base": {9: "sngan", 15: "resnet-sn"}, "energy": {8: "sngan", 11: "resnet-sn"}}  # by layers, at 32x32
NAMES = {  # ours in a layer -> theirs
    "parametrizations.weight.original": "weight_orig",
    "parametrizations.weight.0._u": "weight_u",
    "parametrizations.weight.0._v": "weight_v",
}


def load_reference(
    base: str | Path, energy: str | Path, architecture: Architecture | None = None, names: bool = True
) -> tuple[GEBM, list[str]]:
    """The model of two checkpoints, in evaluation mode, and what there is to say about them.

    Arguments:
        base, energy: `g_*.pth`, `d_*.pth`. Only tensors are read (`weights_only`), no code is run.
        architecture: of ours; its `latent_dim` and number of channels are taken from the checkpoint.
        names: whether the two networks are also told from their numbers of layers.

    Its uniform prior is on [0, 1], ours on [-1, 1]: the base's first layer takes up the difference.

    Raises:
        InputError: a file is missing, not a state dict, or holds a tensor that has no place in these networks.
    """
    g, (d, c) = _layers(_read(base)), _energy(_read(energy))
    a = architecture or Architecture()
    if names:
        a = replace(a, base=_told("base", g, base), energy=_told("energy", d, energy))
    first, last = next(iter(g.values()), {}), next(reversed(g.values()), {})
    if not {"weight", "bias"} <= first.keys() & last.keys() or first["weight"].ndim < 2:
        raise InputError(f"{base}: not a base of the reference code: its first and last layers must have weights")
    channels = len(last["bias"])
    _as_linear(first)
    a = replace(a, latent_dim=first["weight"].shape[1], shape=(channels, *a.shape[1:]))
    with Budget({Path(base), Path(energy)}):
        model = GEBM.build(a)
    _fill(model.base, g, Path(base), f"base '{a.base}'")
    _fill(model.energy, d, Path(energy), f"energy '{a.energy}'")
    notes = [f"networks: base {a.base}, energy {a.energy}, {a.latent_dim} latents, images {a.shape}"]
    with torch.no_grad():
        if a.prior == "uniform":
            linear = next(m for m in model.base.modules() if isinstance(m, nn.Linear))
            linear.bias.add_(linear.weight.sum(1) / 2)
            linear.weight.div_(2)
            notes.append("uniform latents: theirs on [0, 1] became ours on [-1, 1] in the base's first layer")
        if c is None:
            notes.append(f"{energy}: holds no log_partition (its criterion was not kale), so c is 0")
        else:
            model.log_partition.copy_(c.reshape(()))
    return model.eval(), notes


def _told(part: str, layers: dict[str, Layer], file: str | Path) -> str:
    """The name of the network with that many layers."""
    known = NETWORKS[part]
    if len(layers) not in known:
        names = [f"{name}.{tensor}" for name, layer in layers.items() for tensor in layer]
        norms = [name for name in names if part == "energy" and name.endswith("running_mean")]
        ours = " or ".join(f"{network} with {count}" for count, network in known.items())
        first = f"has batch normalisation (tensor {norms[0]})" if norms else f"starts with {(names or ['nothing'])[0]}"
        raise InputError(f"{file}: {len(layers)} layers, {first}: only {ours} layers can be taken over as the {part}")
    return known[len(layers)]


def _as_linear(layer: Layer) -> None:
    """Make the transposed convolution of one pixel to 4x4, an older first layer, the linear layer it is; in place."""
    if layer["weight"].shape[2:] == (4, 4):
        layer["weight"] = layer["weight"].flatten(1).T
        layer["bias"] = layer["bias"].repeat_interleave(16)


def _read(file: str | Path) -> dict[str, Tensor]:
    """A state dict of tensors, without the `module.` of DataParallel."""
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file: give a g_*.pth and a d_*.pth of the reference code")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise InputError(f"{file}: {size:,} bytes, at most {MAX_BYTES:,} are read: no checkpoint of the reference code")
    check_regular(file)
    if zipfile.is_zipfile(file):
        open_zip(file, MAX_BYTES).close()  # what it says that it unpacks to
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged bytes make of the unpickler has no common class
        reason = " ".join(str(error).split()).partition(". ")[0][:160]
        raise InputError(f"{file}: not a checkpoint that holds tensors alone ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{file}: not a state dict (names and tensors)")
    for key, value in state.items():
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(f"{file}: tensor {show(key)} claims more numbers than the file holds")
    return {key.removeprefix("module."): value.detach() for key, value in state.items()}


def _energy(state: dict[str, Tensor]) -> tuple[dict[str, Layer], Tensor | None]:
    c = state.pop("log_partition", None)
    if c is not None and c.numel() != 1:
        raise InputError(f"tensor log_partition: {tuple(c.shape)}, one number is needed")
    return _layers(state), c


def _layers(state: dict[str, Tensor]) -> dict[str, Layer]:
    """The tensors by layer, in the order of the forward pass.

    A layer that was registered twice, as itself and within a sequence, is taken where it comes last: in the sequence.
    """
    layers: dict[str, Layer] = {}
    for key, value in state.items():
        name, _, tensor = key.rpartition(".")
        layers.setdefault(name, {})[tensor] = value
    kept: dict[str, Layer] = {}
    for name, layer in layers.items():
        for other in [other for other, tensors in kept.items() if _same(tensors, layer)]:
            del kept[other]
        kept[name] = layer
    return kept


def _same(a: Layer, b: Layer) -> bool:
    """Whether two are one layer; norms, which start as equals and have one name, never are."""
    matrices = any(tensor.ndim > 1 for tensor in a.values())
    return matrices and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _ours(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d):
            yield name, module


def _fill(network: nn.Module, layers: dict[str, Layer], file: Path, what: str) -> None:
    """Copy the layers into the network's, in order."""
    ours = list(_ours(network))
    for (name, layer), (_, module) in zip(layers.items(), ours):
        state = module.state_dict()
        theirs = {key: NAMES.get(key, key) for key in state if key != "num_batches_tracked"}
        extra = layer.keys() - theirs.values() - {"num_batches_tracked"}
        for tensor in [*theirs.values(), *sorted(extra)]:
            key = next((key for key, other in theirs.items() if other == tensor), None)
            have = layer.get(tensor)
            if have is None or key is None or have.shape != state[key].shape:
                found = "is missing" if have is None else f"{tuple(have.shape)}"
                wanted = f"{tuple(state[key].shape)} is needed" if key else "has no place"
                raise InputError(f"{file}: tensor {name}.{tensor} {found}, {wanted} in the {what}")
        with torch.no_grad():
            for key, tensor in theirs.items():
                state[key].copy_(layer[tensor])
    if len(layers) != len(ours):
        more = list(layers)[len(ours) :]
        reason = f"layer {more[0]} has no place" if more else f"layer {ours[len(layers)][0]} of ours is missing"
        raise InputError(f"{file}: {reason}: {len(layers)} layers, the {what} has {len(ours)}")
