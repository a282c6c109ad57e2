"""A folder of image files as a data set: any formats and sizes, cropped to one square size."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from gebm.data.cache import Images, Source, fingerprint
from gebm.data.splits import BY_CONTENT, by_content, content_hashes, given_splits, like_a_split
from gebm.data.transform import SQUARE, all_grey, common_size, decoded, files_from
from gebm.data.walk import SUFFIXES, image_files, say_left_out, say_once
from gebm.errors import InputError

__all__ = ["check_enough", "find"]


def find(root: str | Path) -> Source:
    """The images below `root`, sorted: those of its folders `train` and `test` (or `val`), else split by content.

    They are grey, (N, 1, H, W), if all files are. Their size is by default their own where some hundred of them are
    squares of one size, else 32.

    Raises:
        InputError: not a folder, one that cannot be read, or too few images in it; a file cannot be decoded.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"--dataset folder:{root}: not a folder; name an existing folder of images")
    files, left_out = image_files(root)
    pair = given_splits((path.name for path in root.iterdir() if path.is_dir()), str(root))
    groups = _of_splits(root, files, pair, left_out) if pair else [files]
    say_left_out(root, left_out)
    if pair is None:
        check_enough(root, files, 2)
        _say_unused_splits(root, files)

    def read(size: int) -> tuple[Images, Images]:
        splits = groups if pair else [[files[i] for i in part] for part in by_content(_hashes(files, root))]
        grey = all(all_grey(files_from(split)) for split in splits)
        train, test = (decoded(len(split), partial(files_from, split), size, grey) for split in splits)
        return train, test

    native = common_size(files_from([file for group in groups for file in group[:: max(1, len(group) // 100)]]))
    side = native[0] if native is not None and native[0] == native[1] else 32
    return Source(fingerprint(*groups), read, f"{SQUARE}; {BY_CONTENT}", side, native, drawn=pair is None)


def check_enough(folder: Path, files: list[Path], at_least: int) -> None:
    """Raise InputError if a folder holds fewer than `at_least` image files."""
    if len(files) < at_least:
        there = f"{len(files)} image{'' if len(files) == 1 else 's'} in it"
        raise InputError(f"{folder}: {there}, at least {at_least} needed ({' '.join(SUFFIXES)})")


def _hashes(files: list[Path], root: Path) -> np.ndarray:
    return content_hashes(files, len(files), f"{root.name}: split")


def _of_splits(root: Path, files: list[Path], pair: tuple[str, str], left_out: Counter[str]) -> list[list[Path]]:
    """The files of the folders of a pair of splits; those of others are counted."""
    tops = [(path.relative_to(root).parts, path) for path in files]
    splits = [[path for parts, path in tops if parts[0] == name] for name in pair]
    for name, split in zip(pair, splits):
        check_enough(root / name, split, 1)
    for parts, _ in tops:
        if len(parts) == 1:
            left_out[f"images outside {' and '.join(pair)}"] += 1
        elif parts[0] not in pair:
            left_out[f"images in {parts[0]}"] += 1
    return splits


def _say_unused_splits(root: Path, files: list[Path]) -> None:
    """Say that folders are not taken as splits though they are named so."""
    for path in files:
        folders = path.relative_to(root).parts[:-1]
        for depth, name in enumerate(folders, 1):
            if like_a_split(name):
                unused = "/".join(folders[:depth])
                say_once(
                    f"{root}: not split by its folder {unused}, as no folders named train and test (or val) both lie "
                    "directly in it; all its images are split anew, by their content",
                    str(root.absolute()),
                )
                return
