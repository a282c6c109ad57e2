"""LSUN bedrooms: the published LMDBs of encoded images, or folders of them.

Source: F. Yu, A. Seff, Y. Zhang, S. Song, T. Funkhouser and J. Xiao, LSUN (2015), arXiv 1506.03365;
https://www.yf.io/p/lsun. `bedroom_train_lmdb` has 3,033,042 images, `bedroom_val_lmdb`, the test split here, 300.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from gebm.bounded import check_regular
from gebm.data.cache import Images, Source, fingerprint
from gebm.data.folder import check_enough
from gebm.data.transform import SQUARE, Files, decoded, files_from
from gebm.data.walk import image_files, say_left_out
from gebm.errors import InputError

if TYPE_CHECKING:
    from lmdb import Environment

__all__ = ["find"]

DATABASES = ("bedroom_train_lmdb", "bedroom_val_lmdb")
FOLDERS = ("train", "val")


def find(data_path: Path) -> Source:
    """The two LMDBs, or the folders `train` and `val`, in `data_path/lsun` (or LSUN); the LMDBs also in `data_path`.

    Raises:
        InputError: nothing there, only one split there, a truncated LMDB, something that is no image, no lmdb package.
    """
    for root in (data_path / "lsun", data_path / "LSUN", data_path):
        for names in (DATABASES,) if root == data_path else (DATABASES, FOLDERS):
            places = [root / name for name in names]
            missing = [place for place in places if not place.is_dir()]
            if not missing:
                return _databases(places) if names == DATABASES else _folders(places)
            if len(missing) == 1:
                raise InputError(f"{missing[0]}: not there; LSUN needs both {' and '.join(names)} in {root}")
    raise InputError(
        f"{data_path / 'lsun'}: no LSUN bedrooms there; put {' and '.join(DATABASES)} there, unzipped, from "
        f"http://dl.yf.io/lsun/scenes/, or images in folders {' and '.join(FOLDERS)}"
    )


def _folders(places: list[Path]) -> Source:
    splits = []
    for place in places:
        files, left_out = image_files(place)
        say_left_out(place, left_out)
        check_enough(place, files, 1)
        splits.append(files)

    def read(size: int) -> tuple[Images, Images]:
        train, test = (decoded(len(split), partial(files_from, split), size) for split in splits)
        return train, test

    return Source(fingerprint(*splits), read, SQUARE)


def _databases(places: list[Path]) -> Source:
    files = [place / "data.mdb" for place in places]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: not there; a database is a folder that holds data.mdb; unzip it again")

    def read(size: int) -> tuple[Images, Images]:
        train, test = (decoded(_count(file), partial(_values, file), size) for file in files)
        return train, test

    return Source(fingerprint(files), read, SQUARE)


def _count(file: Path) -> int:
    with _environment(file) as environment:
        return int(environment.stat()["entries"])


def _values(file: Path, start: int) -> Files:
    """The values in the order of their keys."""
    with _environment(file) as environment, environment.begin() as transaction, transaction.cursor() as cursor:
        # The keys before `start` are passed over without a look at their values: seconds for millions.
        if next(islice(cursor.iternext(values=False), start, None), None) is not None:
            for key, value in cursor.iternext():  # from that key on
                yield f"{file}: key {key.decode(errors='replace')!r}", value


@contextmanager
def _environment(file: Path) -> Iterator["Environment"]:
    """The database, opened to be read."""
    try:
        import lmdb
    except ImportError:
        raise InputError("--dataset lsun reads LMDB files with the package lmdb: pip install 'gebm[lsun]'") from None
    check_regular(file)
    actual = file.stat().st_size
    try:
        # no lock file: the folder may be read-only, or on a network drive
        with lmdb.open(str(file), subdir=False, readonly=True, lock=False, readahead=False) as environment:
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if actual < needed:  # the missing pages are mapped, and to read one would kill the process
                raise InputError(f"{file}: {actual:,} bytes of {needed:,}, truncated; unzip or fetch it again")
            yield environment
    except lmdb.Error as error:
        raise InputError(f"{file}: {actual:,} bytes, not a sound LMDB ({error}); unzip or fetch it again") from error
