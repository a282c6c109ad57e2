"""Tensors on disk that can always be computed again: whole and under their key, or not there."""

import hashlib
import warnings
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gebm.errors import InputError
from gebm.files import atomic_write
from gebm.weights import metadata_of, read_tensors

__all__ = ["content_hash", "load", "save"]


def content_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 of the names, types, shapes and values of tensors on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def load(path: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors saved at `path` under `key`; None if there are none, another key's, or damaged ones."""
    try:
        meta, tensors = metadata_of(path), read_tensors(path)
    except InputError:
        return None
    return tensors if meta == {"key": key, "sha256": content_hash(tensors)} else None


def save(path: Path, key: str, tensors: dict[str, Tensor]) -> None:
    """Write the tensors, whole or not at all; where it fails it warns, as only time is lost."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, {"key": key, "sha256": content_hash(tensors)})
    except (OSError, SafetensorError) as error:
        warnings.warn(f"{path}: not cached ({error})", stacklevel=2)
