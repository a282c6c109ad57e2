"""Safetensors files, read within limits: numbers and a header of text, and no pickle."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gebm.bounded import open_regular, reason, size_of
from gebm.errors import InputError

__all__ = ["Budget", "metadata_of", "read_tensors"]

MAX_HEADER = 16 << 20  # bytes: names, shapes and metadata
LEAST = 4096  # bytes that a new tensor counts for at least, so that there cannot be too many
FACTOR, FREE = 16, 64 << 20  # building a model may take 16 times the bytes of its files, and 64 MiB

T = TypeVar("T")


def metadata_of(file: Path) -> dict[str, str]:
    """The texts in a file's header; raises InputError if it is not a readable safetensors file."""
    return _read(file, lambda stored: stored.metadata() or {})


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU; raises InputError if it is not a readable safetensors file."""
    return _read(file, lambda stored: {key: stored.get_tensor(key) for key in stored.keys()})


def _read(file: Path, reader: Callable[[Any], T]) -> T:
    try:
        size = file.stat().st_size
        with open_regular(file) as stream:
            header = int.from_bytes(stream.read(8), "little")
        if header > min(MAX_HEADER, size):
            claims = f"its header claims {header:,} bytes, of {size:,} and at most {MAX_HEADER:,}"
            raise InputError(f"{file}: not a readable safetensors file ({claims})")
        with safetensors.safe_open(file, framework="pt") as stored:
            return reader(stored)
    except InputError:
        raise
    except Exception as error:  # types and shapes that torch has not raise anything
        raise InputError(f"{file}: not a readable safetensors file ({reason(error)})") from None


class Budget(TorchFunctionMode):
    """Within it, new tensors may take so many bytes; one that would take more raises InputError before it is made.

    An architecture in a header is a few numbers, and may ask for a network of any size: building it is worth what the
    weights in the file are.

    Args:
        files: that hold the weights.
    """

    FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange)

    def __init__(self, files: Iterable[Path]):
        super().__init__()
        self.files = list(files)
        self.left = FACTOR * sum(map(size_of, self.files)) + FREE

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in self.FACTORIES:
            sizes = kwargs.get("size", args[0] if args and isinstance(args[0], list | tuple) else args)
            self.spend(*(n for n in sizes if isinstance(n, int)))
        return function(*args, **kwargs)

    def spend(self, *sizes: int) -> None:
        """Take the bytes of a new tensor of that shape."""
        self.left -= max(8 * math.prod(sizes), LEAST)
        if self.left < 0:
            names = " and ".join(map(str, self.files))
            raise InputError(f"{names}: far smaller than the networks that their headers ask for; not built")
