"""Training data as people have them: arrays, tensors, datasets, loaders, paths and names."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from gebm.data.images import ImageData, from_uint8, load_images
from gebm.data.tabular import TableData, load_table
from gebm.errors import InputError

__all__ = ["Items", "as_items", "content_key", "levels_of", "note_on_levels", "seen"]

BLOCK = 1024  # samples that are hashed at a time

log = logging.getLogger("gebm")


class Items:
    """The samples of a map-style `Dataset`, fetched one by one as a tensor's rows would be.

    What an item is besides its sample (a label, a weight) is left out: of a tuple the first counts, of a dict the first
    value.
    """

    device = torch.device("cpu")

    def __init__(self, dataset: Dataset[Any]):
        self.dataset = dataset
        first = self._sample(0)
        self.ndim, self.dtype, self.shape = first.ndim + 1, first.dtype, (len(self), *first.shape)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # a map-style dataset has a length

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The samples of these numbers (k, ...)."""
        samples = [self._sample(i) for i in index.tolist()]
        shapes = {tuple(sample.shape): None for sample in samples}
        if len(shapes) > 1:
            raise InputError(
                f"data: samples of shapes {' and '.join(map(str, list(shapes)[:2]))}, and all must have one: "
                "resize or crop them in the dataset's transform"
            )
        return torch.stack(samples)

    def _sample(self, number: int) -> Tensor:
        item = self.dataset[number]
        while isinstance(item, tuple | list | dict) and item:
            item = next(iter(item.values())) if isinstance(item, dict) else item[0]
        if isinstance(item, np.ndarray):
            item = torch.from_numpy(item)
        if not isinstance(item, Tensor):
            raise InputError(
                f"data: item {number} of the dataset is a {type(item).__name__}, not a tensor; give it a transform "
                "that makes tensors"
            )
        return item


def as_items(data: Any, what: str = "data", split: str = "train") -> Tensor | np.ndarray | Items:
    """What samples are drawn from, of anything that holds some.

    Arguments:
        data: a tensor or array (N, ...), uint8 images or floats; a map-style `Dataset`; a `DataLoader` over one, of
            which only the dataset counts; an `ImageData` or `TableData`; the path of a folder, an .npz or a .csv file,
            or the name of a data set.
        what: the argument, for errors.
        split: which one counts of what has splits: 'train', 'test', or 'valid', which for images is the test split.

    Returns:
        uint8 images (N, C, H, W), which networks see in [-1, 1], or floats (N, ...), which they see as they are.
        uint8 arrays (N, H, W) are taken as grey images and (N, H, W, 3) as images with the channels last.

    Raises:
        InputError: none of these, empty, or with values that are not finite.
    """
    if isinstance(data, str | os.PathLike):
        data = _loaded(str(data), what)
    if isinstance(data, ImageData | TableData):
        data = getattr(data, "test" if split == "valid" and isinstance(data, ImageData) else split)
    if isinstance(data, DataLoader):
        data = _dataset_of(data, what)
    if isinstance(data, IterableDataset):
        raise InputError(f"{what}: an IterableDataset has no numbered items; give a map-style Dataset or a tensor")
    if isinstance(data, Dataset):
        if not len(data):  # type: ignore[arg-type]  # a map-style dataset has a length
            raise InputError(f"{what}: the dataset is empty")
        return _checked(Items(data), what)
    if isinstance(data, list | tuple):
        raise InputError(f"{what}: a {type(data).__name__}; give one tensor or array (N, ...), see torch.stack")
    if not isinstance(data, Tensor | np.ndarray):
        if not hasattr(data, "__array__"):
            allowed = "a tensor, an array, a Dataset, a DataLoader, a path or the name of a data set"
            raise InputError(f"{what}: a {type(data).__name__}; give {allowed}")
        data = np.asarray(data)
    return _checked(data, what)


def levels_of(items: Tensor | np.ndarray | Items) -> tuple[float, float] | None:
    """Black and white of images (N, C, H, W) with 1 or 3 channels, as networks see them; None of other data.

    uint8 images are seen in [-1, 1]. Floats are images in [0, 1] or in [-1, 1] where all values lie there, and else no
    images.
    """
    if items.ndim != 4 or items.shape[1] not in (1, 3):
        return None
    if items.dtype in (torch.uint8, np.uint8):
        return -1.0, 1.0
    if isinstance(items, Items):
        items = items.index_select(0, torch.linspace(0, len(items) - 1, min(len(items), 256)).long())
    low, high = float(items.min()), float(items.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (-1.0, 1.0) if low >= -1 and high <= 1 else None


def note_on_levels(items: Tensor | np.ndarray | Items, made: Tensor) -> str:
    """What must be known of the levels of data and of samples (n, ...) of a base; empty where they seem to agree."""
    if items.ndim != 4 or items.shape[1] not in (1, 3):
        return ""
    levels, low, high = levels_of(items), float(made.min()), float(made.max())
    made_from = f"the base makes values from {low:.2g} to {high:.2g}"
    if levels is None:
        return "the data have values outside [-1, 1], so they do not count as images"
    if levels == (0.0, 1.0) and low < -0.05:
        return f"the data are floats in [0, 1], and {made_from}: give both in one range"
    if levels == (-1.0, 1.0) and low >= 0:
        seen = "uint8 images are seen" if items.dtype in (torch.uint8, np.uint8) else "the data are floats"
        return f"{seen} in [-1, 1], and {made_from}: if it ends with a sigmoid, give the data as floats in [0, 1]"
    return ""


def seen(items: Tensor | np.ndarray | Items, index: Tensor) -> Tensor:
    """The samples (k, ...) of these numbers (k,) as networks see them, on the CPU: uint8 images in [-1, 1]."""
    if isinstance(items, np.ndarray):
        found = torch.tensor(items[index.numpy()])  # a copy, as it may be mapped read-only
    else:
        found = items.index_select(0, index.to(items.device)).cpu()
    return from_uint8(found) if found.dtype == torch.uint8 else found


def content_key(items: Tensor | np.ndarray | Items) -> str:
    """Hash of the samples in their order; of a Dataset, which may change them at random, of its length and shape."""
    digest = hashlib.sha256(f"{tuple(items.shape)} {str(items.dtype).removeprefix('torch.')}".encode())
    if not isinstance(items, Items):
        for start in range(0, len(items), BLOCK):
            block = items[start : start + BLOCK]
            array = block.detach().cpu().contiguous().numpy() if isinstance(block, Tensor) else block
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _loaded(name: str, what: str) -> ImageData | TableData:
    """The data set of a name or a path."""
    path = Path(name)
    if path.is_dir():
        return load_images(f"folder:{path}")
    if path.suffix == ".npz" and path.is_file():
        return load_images(f"npz:{path}")
    if path.suffix in (".csv", ".tsv", ".txt", ".gz") and path.is_file():
        return load_table(f"csv:{path}")
    if path.suffix or os.sep in name:
        raise InputError(f"{what}: {name}: no such folder, .npz or .csv file; give an existing one")
    return load_images(name)


def _dataset_of(loader: DataLoader[Any], what: str) -> Dataset[Any]:
    """The dataset of a loader that only shuffles: what else it does would be lost."""
    if isinstance(loader.dataset, IterableDataset):
        return loader.dataset  # which is refused
    if loader.collate_fn is not default_collate:
        raise InputError(f"{what}: the loader has a collate_fn of its own; give its dataset, with a transform")
    if loader.sampler is not None and type(loader.sampler) not in (RandomSampler, SequentialSampler):
        kind = type(loader.sampler).__name__
        raise InputError(f"{what}: the loader draws by a {kind}, fit draws every item once a pass; give its dataset")
    dataset: Dataset[Any] = loader.dataset
    log.info("%s: of the loader its dataset is taken; the batches and their order are fit's own", what)
    return dataset


def _checked(items: Any, what: str) -> Tensor | np.ndarray | Items:
    """Samples of a kind that networks take, in the layout of images."""
    shape = tuple(items.shape)
    if not len(shape) or not shape[0]:
        raise InputError(f"{what}: is empty")
    if len(shape) < 2:
        raise InputError(f"{what}: of shape {shape}; samples (N, ...) are needed: of single numbers (N, 1)")
    is_bytes = items.dtype in (torch.uint8, np.uint8)
    floating = items.dtype.is_floating_point if isinstance(items.dtype, torch.dtype) else items.dtype.kind == "f"
    if not is_bytes and not floating:
        raise InputError(f"{what}: of {items.dtype}; uint8 images or floats are needed: say what they mean by a cast")
    if is_bytes and not isinstance(items, Items):
        items = _images(items, shape, what)
    elif is_bytes and len(shape) != 4:
        raise InputError(f"{what}: uint8 samples of shape {shape[1:]}; images (C, H, W) or floats are needed")
    if floating and not isinstance(items, Items):
        finite = items.isfinite() if isinstance(items, Tensor) else np.isfinite(items)
        if bad := int((~finite).reshape(shape[0], -1).any(1).sum()):
            raise InputError(f"{what}: {bad:,} of {shape[0]:,} samples hold NaN or infinite values; leave them out")
    return items  # type: ignore[no-any-return]  # one of the three


def _images(items: Any, shape: tuple[int, ...], what: str) -> Any:
    """uint8 images (N, C, H, W) of any layout that can be told."""
    if len(shape) == 3:
        log.info("%s: %d grey images of %d x %d, seen as (1, %d, %d)", what, *shape, *shape[1:])
        return items[:, None]
    if len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        log.info("%s: the channels come last in %s, and are put first", what, shape)
        return items.permute(0, 3, 1, 2) if isinstance(items, Tensor) else items.transpose(0, 3, 1, 2)
    if len(shape) != 4:
        raise InputError(f"{what}: uint8 of shape {shape}; images (N, C, H, W), (N, H, W) or floats are needed")
    return items
