"""Networks of the user's own: what a weights file says of them, and how they come back."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gebm.bounded import parse_json
from gebm.errors import InputError
from gebm.registry import resolve
from gebm.text import show
from gebm.weights import metadata_of

__all__ = ["OWN", "OwnNetwork", "describe", "load_weights", "make_again", "own_network", "state_of"]

OWN = "gebm_own"  # key in the header of a weights file


@dataclass(frozen=True)
class OwnNetwork:
    """What a weights file says of a network that no name of ours stands for.

    name: dotted path `package.module:Class` of its class; "" for a plain function, which has no weights. arguments:
    those that its constructor was called with, where the class keeps them in `_hub_mixin_config`, as huggingface_hub's
    `PyTorchModelHubMixin` does. prior, latent_dim: of the model; None for a prior of the user's own.
    """

    name: str
    arguments: dict[str, Any] | None
    prior: str | None
    latent_dim: int

    def header(self) -> dict[str, str]:
        """The metadata of a weights file."""
        return {OWN: json.dumps(asdict(self))}


def describe(network: Callable[[Tensor], Tensor], prior: str | None, latent_dim: int) -> OwnNetwork:
    """What to store of a network beside its weights."""
    if not isinstance(network, nn.Module):
        return OwnNetwork("", None, prior, latent_dim)
    kind = type(network)
    arguments = getattr(network, "_hub_mixin_config", None)
    try:
        arguments = parse_json(json.dumps(arguments)) if isinstance(arguments, dict) else None
    except (TypeError, ValueError):  # some are not plain values
        arguments = None
    return OwnNetwork(f"{kind.__module__}:{kind.__qualname__}", arguments, prior, latent_dim)


def own_network(file: Path) -> OwnNetwork | None:
    """What a weights file says of a network of the user's own; None if it is of one that a name stands for."""
    if (text := metadata_of(file).get(OWN)) is None:
        return None
    try:
        found = OwnNetwork(**parse_json(text))
        plain = isinstance(found.name, str) and (found.prior is None or isinstance(found.prior, str))
        if not plain or type(found.latent_dim) is not int or not isinstance(found.arguments, dict | None):
            raise TypeError
    except (TypeError, ValueError):
        raise InputError(f"{file}: its header is damaged; restore the file, or save the model again") from None
    return found


def make_again(
    file: Path, part: str, stored: OwnNetwork | None, given: Callable[..., Any] | None, allow: Collection[str]
) -> Callable[[Tensor], Tensor]:
    """The network that a weights file is to be read into.

    Arguments:
        part: 'base' or 'energy', for the error.
        stored: what the file says of it.
        given: a network, or a factory that returns one; None: its class is imported, which takes its name in `allow`.

    Raises:
        InputError: nothing was given, and its class is not allowed or its arguments were not stored.
    """
    if given is not None:
        is_factory = not isinstance(given, nn.Module) and (stored is None or bool(stored.name))
        try:
            network = given() if is_factory else given
        except TypeError as error:
            why = " ".join(str(error).split())[:200]
            raise InputError(f"{part}: give a module, or a function of no arguments that makes it ({why})") from error
    elif stored is not None and stored.name in allow and stored.arguments is not None:
        network = resolve(stored.name, {}, str(file))(**stored.arguments)
    elif stored is None:
        raise InputError(f"{file}: its {part} was built by name, the other network was not: give {part}= too")
    else:
        what = f"class {show(stored.name)}" if stored.name else "a plain function"
        other = f", or allow=[{stored.name!r:.200}]" if stored.arguments is not None else ""
        raise InputError(
            f"{file}: its {part} is a network of your own ({what}): give {part}= to GEBM.load, a module or a function "
            f"that makes it{other}"
        )
    if not callable(network):
        raise InputError(f"{part}: must be a module or a function that returns one, not a {type(network).__name__}")
    return network


def state_of(network: Callable[[Tensor], Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of a network; none of a plain function.

    Raises:
        InputError: its state holds something that is not a tensor, which no weights file takes.
    """
    state: Mapping[str, Any] = network.state_dict() if isinstance(network, nn.Module) else {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise InputError(f"{part}: its state {key!r} is a {kind}, and only tensors can be saved; keep it elsewhere")
    return dict(state)


def load_weights(file: Path, part: str, tensors: Mapping[str, Tensor], network: Callable[[Tensor], Tensor]) -> None:
    """Read the tensors of a file into a network of the user's own.

    Raises:
        InputError: they are not of the same names, shapes and types.
    """
    state = state_of(network, part)
    if missing := sorted(state.keys() - tensors.keys()):
        raise InputError(f"{file}: has no tensor {show(missing[0])}, which the given {part} has")
    if left := sorted(tensors.keys() - state.keys()):
        raise InputError(f"{file}: holds a tensor {show(left[0])}, which the given {part} has not")
    for key, value in state.items():
        stored = tensors[key]
        if stored.shape != value.shape or stored.dtype != value.dtype:
            kinds = [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (stored, value)]
            raise InputError(f"{file}: tensor {show(key)} is {kinds[0]}, the given {part} has {kinds[1]}")
    if isinstance(network, nn.Module):
        network.load_state_dict(dict(tensors))
