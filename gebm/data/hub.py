"""A data set of images of the Hugging Face hub, or a local folder of the same form, by the `datasets` library."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gebm.data.cache import Images, Source
from gebm.data.transform import SQUARE, Files, all_grey, decoded, tenth
from gebm.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["find"]


def find(name: str) -> Source:
    """The splits `train` and `test` (or `validation`) of a data set; of `train` alone a fixed tenth is the test split.

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
    test = next((split for split in ("test", "validation") if split in splits), None)
    if "train" not in splits:
        raise InputError(f"--dataset hub:{name}: splits {', '.join(splits)}; train (and test or validation) needed")
    names = ["train", test] if test else ["train"]
    columns = [key for key, kind in splits["train"].features.items() if isinstance(kind, datasets.Image)]
    if len(columns) != 1:
        there = ", ".join(columns or splits["train"].features)
        raise InputError(f"--dataset hub:{name}: {len(columns)} columns of images among {there}; it must have one")
    encoded = datasets.Image(decode=False)
    tables = [splits[split].select_columns(columns).cast_column(columns[0], encoded) for split in names]
    if test is None:
        if len(tables[0]) < 2:
            raise InputError(f"--dataset hub:{name}: {len(tables[0])} images; at least 2 are needed")
        tables = [tables[0].select(part) for part in tenth(len(tables[0]))]
    files = [partial(_files, name, table, columns[0]) for table in tables]

    def read(size: int) -> tuple[Images, Images]:
        grey = all(all_grey(split(0)) for split in files)
        train, test = (decoded(len(table), split, size, grey) for table, split in zip(tables, files))
        return train, test

    # the library's own hash of the files and of what was done to them
    return Source(" ".join(splits[split]._fingerprint for split in names), read, SQUARE)


def _files(name: str, table: "Dataset", column: str, start: int) -> Files:
    for number in range(start, len(table)):
        image = table[number][column]
        yield f"hub:{name}: image {number} {image['path'] or ''}".rstrip(), image["bytes"] or Path(image["path"])
