"""Names to objects: a registered name, or the dotted path of the user's own."""

import importlib
from collections.abc import Mapping
from functools import reduce
from typing import Any

from gebm.errors import InputError
from gebm.text import hint

__all__ = ["resolve"]


def resolve(name: str, registry: Mapping[str, object], what: str) -> Any:
    """Returns `registry[name]`, or imports `name` when it is a dotted path `package.module:attribute`.

    Args:
        name: a key of `registry`, or a dotted path (its attribute may be nested: `module:Class.method`).
        registry: the registered objects by name.
        what: what the name stands for, as the user wrote it (`--dataset`); the error begins with it.

    Raises:
        InputError: the name is neither, or cannot be imported; names the allowed ones and the nearest of them.

    Example:

        >>> resolve("torch.nn:ReLU", {}, "--activation")
        <class 'torch.nn.modules.activation.ReLU'>
    """
    if name in registry:
        return registry[name]
    module, _, attribute = name.partition(":")
    if all(part.isidentifier() for part in f"{module}.{attribute}".split(".")):
        try:
            return reduce(getattr, attribute.split("."), importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{what} {name!r}: cannot be imported ({reason}); is it on PYTHONPATH?") from error
    known = ", ".join(registry)
    raise InputError(f"{what} {name!r}: choose {known} or a path package.module:attribute{hint(name, registry)}")
