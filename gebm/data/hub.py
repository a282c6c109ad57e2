"""A data set of images of the Hugging Face hub, or a local folder of the same form, by the `datasets` library."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gebm.data.cache import Images, Source
from gebm.data.splits import BY_CONTENT, by_content, content_hashes, given_splits
from gebm.data.transform import SQUARE, Files, all_grey, decoded
from gebm.data.walk import say_left_out
from gebm.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["find"]


def find(name: str) -> Source:
    """The splits `train` and `test` (or `validation`) of a data set; of `train` alone a tenth by content is for tests.

    The images are its one column of type Image; they are grey, (N, 1, H, W), if all files are.

    Raises:
        InputError: no `datasets` package, no such data set or no network, no such splits, no such column.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(f"--dataset hub:{name} needs the package datasets: pip install 'gebm[hub]'") from None
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # of the network, the hub, the files: no common class
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"--dataset hub:{name}: cannot be loaded ({reason})") from error
    pair = given_splits(splits, f"--dataset hub:{name}")
    names = pair or tuple(split for split in splits if split == "train")
    if not names:
        raise InputError(f"--dataset hub:{name}: splits {', '.join(splits)}; train (and test or validation) needed")
    columns = [key for key, kind in splits[names[0]].features.items() if isinstance(kind, datasets.Image)]
    if len(columns) != 1:
        there = ", ".join(columns or splits[names[0]].features)
        raise InputError(f"--dataset hub:{name}: {len(columns)} columns of images among {there}; it must have one")
    say_left_out(
        f"hub:{name}", Counter({f"images in {split}": len(splits[split]) for split in splits if split not in names})
    )
    encoded = datasets.Image(decode=False)
    tables = [splits[split].select_columns(columns).cast_column(columns[0], encoded) for split in names]
    if not pair and len(tables[0]) < 2:
        raise InputError(f"--dataset hub:{name}: {len(tables[0])} images; at least 2 are needed")

    def read(size: int) -> tuple[Images, Images]:
        parts = tables
        if not pair:
            parts = [tables[0].select(part) for part in by_content(_hashes(name, tables[0], columns[0]))]
        files = [partial(_files, name, part, columns[0]) for part in parts]
        grey = all(all_grey(split(0)) for split in files)
        train, test = (decoded(len(part), split, size, grey) for part, split in zip(parts, files))
        return train, test

    # the library's own hash of the files and of what was done to them
    fingerprint = " ".join(splits[split]._fingerprint for split in names)
    return Source(fingerprint, read, f"{SQUARE}; {BY_CONTENT}", drawn=not pair)


def _hashes(name: str, table: "Dataset", column: str) -> np.ndarray:
    return content_hashes((content for _, content in _files(name, table, column, 0)), len(table), f"hub:{name}: split")


def _files(name: str, table: "Dataset", column: str, start: int) -> Files:
    for number in range(start, len(table)):
        image = table[number][column]
        yield f"hub:{name}: image {number} {image['path'] or ''}".rstrip(), image["bytes"] or Path(image["path"])
