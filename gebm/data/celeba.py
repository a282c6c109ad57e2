"""CelebA as its authors publish it: aligned and cropped JPEGs, in a folder or zip archive, and their partition file.

Source: Z. Liu, P. Luo, X. Wang and X. Tang, Deep learning face attributes in the wild (ICCV 2015),
https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html. A line of the partition file is `000001.jpg 0`: train 0, validation
1, test 2. The published set has 162,770, 19,867 and 19,962 images of 178x218.
"""

import os
from functools import partial
from itertools import filterfalse
from pathlib import Path, PurePosixPath
from typing import TypeVar

from gebm.bounded import MAX_JSON, read_bytes, reason
from gebm.data.archives import ARCHIVE_ERRORS, open_member, open_zip
from gebm.data.cache import Images, Source, fingerprint
from gebm.data.transform import SQUARE, Files, decoded, files_from
from gebm.data.walk import is_hidden
from gebm.errors import InputError
from gebm.text import show

__all__ = ["find"]

IMAGES, ARCHIVE, PARTITION = "img_align_celeba", "img_align_celeba.zip", "list_eval_partition.txt"
TRAIN, VALIDATION, TEST = "0", "1", "2"

T = TypeVar("T", Path, str)


def find(data_path: Path) -> Source:
    """The images of partitions 0 (train) and 2 (test), in `data_path/celeba`, `data_path/CelebA` or `data_path`.

    Raises:
        InputError: the images or the partition file are missing, do not agree or are damaged.
    """
    for root in (data_path / "celeba", data_path / "CelebA", data_path):
        images = next((root / name for name in (IMAGES, ARCHIVE) if (root / name).exists()), None)
        if images is not None:
            break
    else:
        raise InputError(
            f"{data_path / 'celeba'}: no CelebA there; put {ARCHIVE} (or its folder {IMAGES}) and {PARTITION} there, "
            "from the Google Drive of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
        )
    partition = root / PARTITION
    if images.is_dir():
        paths = _splits(partition, images, {name: images / name for name in os.listdir(images)})
        files, splits = [*paths, [partition]], [(len(split), partial(files_from, split)) for split in paths]
    else:
        with open_zip(images) as archive:
            shown = filterfalse(is_hidden, archive.namelist())
            members = _splits(partition, images, {PurePosixPath(m).name: m for m in shown})
        files, splits = [[images], [partition]], [(len(split), partial(_unpacked, images, split)) for split in members]

    def read(size: int) -> tuple[Images, Images]:
        train, test = (decoded(count, split, size) for count, split in splits)
        return train, test

    return Source(fingerprint(*files), read, SQUARE)


def _splits(partition: Path, images: Path, there: dict[str, T]) -> tuple[list[T], list[T]]:
    """What `there` gives for the names of the train and of the test images."""
    try:
        lines = [line.split() for line in read_bytes(partition, MAX_JSON).decode().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{partition}: cannot be read ({error}); fetch it again") from error
    for number, line in enumerate(lines, 1):
        if len(line) != 2 or line[1] not in (TRAIN, VALIDATION, TEST):
            raise InputError(f"{partition} line {number}: {' '.join(line)[:60]!r}, must be an image and 0, 1 or 2")
    codes = dict(lines)
    missing = [name for name in codes if name not in there]
    if missing:
        raise InputError(f"{partition} names {show(missing[0])}, not in {images} ({len(missing):,} missing in all)")
    extra = [name for name in there if name.endswith(".jpg") and not name.startswith(".") and name not in codes]
    if extra:
        raise InputError(f"{partition} has no line for {min(extra)} (for {len(extra):,} in all) of {images}")
    train, test = ([there[name] for name, code in codes.items() if code == wanted] for wanted in (TRAIN, TEST))
    if not (train and test):
        raise InputError(f"{partition}: {len(train):,} images of train (0), {len(test):,} of test (2); both are needed")
    return train, test


def _unpacked(path: Path, members: list[str], start: int) -> Files:
    with open_zip(path) as archive:
        for member in members[start:]:
            try:
                with open_member(archive, member, f"{path}: {member}") as stream:
                    content = stream.read()
            except ARCHIVE_ERRORS as error:
                why = reason(error)
                raise InputError(f"{path}: {member} cannot be read ({why}); fetch the archive again") from error
            yield f"{path}: {member}", content
