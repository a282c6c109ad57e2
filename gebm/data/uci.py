"""The five tables of the UCI repository that density models are compared on, from their original files.

Source: D. Dua and C. Graff, UCI Machine Learning Repository, https://archive.ics.uci.edu. Rows and columns are those of
L. Wenliang, D. Sutherland, H. Strathmann and A. Gretton, Learning deep kernels for exponential family densities (ICML
2019), and of G. Papamakarios, T. Pavlakou and I. Murray, Masked autoregressive flow for density estimation (NeurIPS
2017), whose archive (doi 10.5281/zenodo.1161203) holds the parts of HepMass and MiniBooNE that are used.
"""

import gzip
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from gebm.bounded import Bounded, most_unpacked, open_regular, reason, size_of
from gebm.data.archives import ARCHIVE_ERRORS, MAX_UNPACKED, tar_members
from gebm.data.arrays import MAX_BYTES, load_npy, load_npz
from gebm.data.csv_files import bounded_lines, check_size
from gebm.data.table_files import Table, numbers, read_csv
from gebm.errors import InputError
from gebm.files import atomic_write, check_writable

__all__ = ["hepmass", "miniboone", "parkinsons", "redwine", "whitewine"]

UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"
SHA256 = {
    "wine-quality/winequality-red.csv": "4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e",
    "wine-quality/winequality-white.csv": "76c3f809815c17c07212622f776311faeb31e87610d52c26d87d6e361b169836",
    "parkinsons/telemonitoring/parkinsons_updrs.data": (
        "f2c7d5025dec4e92e7feae367a5f7ccf58789a10ac6b54bdf15976c599f9dd39"
    ),
}
MAF = "https://zenodo.org/record/1161203/files/data.tar.gz"  # 0.8 GB: HepMass, MiniBooNE and others
MAF_MD5 = "9b9c9b0375315ad270eba4ce80c093ab"

HEPMASS_ROWS = 700_000, 350_000  # of the train and the test file, signal and background: a tenth of what UCI has
HEPMASS_TEST = 174_900  # rows, under the paper's protocol
HEPMASS_DISCRETE = (0, 6, 10, 14, 18, 22)  # label, number of jets and the jets' b-tags
MINIBOONE_OUTLIER = -100.0  # of the first column: lost measurements are -999
MINIBOONE_REPEATS = 5  # of its least value, beyond which a column is not continuous


def redwine(data_path: Path) -> Table:
    """1,599 Portuguese red wines: the 11 measured inputs, without the quality."""
    return _wine(data_path, "wine-quality/winequality-red.csv")


def whitewine(data_path: Path) -> Table:
    """4,898 Portuguese white wines: the 11 measured inputs, without the quality."""
    return _wine(data_path, "wine-quality/winequality-white.csv")


def parkinsons(data_path: Path) -> Table:
    """5,875 voice recordings of Parkinson's patients: all but subject, age and sex, 15 columns without the copies."""
    table = _original(data_path, "parkinsons/telemonitoring/parkinsons_updrs.data")
    return replace(table, columns=table.columns[3:], values=table.values[:, 3:], decorrelate=True)


def hepmass(data_path: Path) -> Table:
    """525,123 signal events of particle collisions, continuous columns only.

    From 1000_train.csv and 1000_test.csv, packed (.gz) or not, of which the first 700,000 and 350,000 rows are taken;
    else the array `data` of hepmass.npz, label first.
    """
    names = [f"{folder}1000_train.csv{gz}" for folder in ("", "hepmass/", "data/hepmass/") for gz in ("", ".gz")]
    file = _found(data_path, *names)
    prepared = None if file else _found(data_path, "hepmass.npz")
    columns: tuple[str, ...] = ()
    if prepared:
        file, values = prepared, _array(prepared, "data")
    else:
        if file is None:
            members = ["data/hepmass/1000_train.csv", "data/hepmass/1000_test.csv"]
            file = _from_archive(data_path, "1000_train.csv and 1000_test.csv", "347/hepmass", members)
        values, columns = _hepmass_rows(file)
    if values.shape[1] <= max(HEPMASS_DISCRETE):
        raise InputError(f"{file}: {values.shape[1]} columns, HepMass has a label and 27 features")
    columns = columns or ("label", *(f"f{i}" for i in range(values.shape[1] - 1)))
    kept = [i for i in range(len(columns)) if i not in HEPMASS_DISCRETE]
    signal = values[values[:, 0] == 1][:, kept]
    notes = (f"signal rows of {file.name}; columns dropped: label, number of jets, b-tags",)
    return Table(tuple(columns[i] for i in kept), signal, notes, paper_test=HEPMASS_TEST)


def miniboone(data_path: Path) -> Table:
    """36,488 electron neutrino events, continuous columns only, 43 in the literature.

    From MiniBooNE_PID.txt: the signal rows, without lost measurements, of columns whose least value is not repeated;
    else from an array prepared so, miniboone.npy (the archive's miniboone/data.npy).
    """
    file = _found(data_path, "MiniBooNE_PID.txt", "miniboone/MiniBooNE_PID.txt")
    if file:
        return _miniboone_rows(file)
    file = _found(data_path, "miniboone.npy", "miniboone/data.npy", "data/miniboone/data.npy")
    if file is None:
        page = "199/miniboone+particle+identification"
        file = _from_archive(data_path, "MiniBooNE_PID.txt", page, ["data/miniboone/data.npy"])
    values = _array(file)
    return Table(tuple(f"c{i}" for i in range(values.shape[1])), values, (f"rows and columns as in {file.name}",))


def _wine(data_path: Path, name: str) -> Table:
    table = _original(data_path, name)
    return replace(table, columns=table.columns[:-1], values=table.values[:, :-1], dequantise=True)


def _original(data_path: Path, name: str) -> Table:
    """A file of `SHA256`, downloaded if it is not there."""
    path = _found(data_path, Path(name).name)
    return read_csv(path or _fetch(data_path, f"{UCI}/{name}", f"sha256:{SHA256[name]}", f"{UCI}/{name}"))


def _from_archive(data_path: Path, files: str, page: str, members: list[str]) -> Path:
    """The first of `members` of the archive of Papamakarios et al., downloaded and unpacked."""
    wanted = f"{files} of https://archive.ics.uci.edu/dataset/{page}"
    return _fetch(data_path, MAF, f"md5:{MAF_MD5}", wanted, members).parent / members[0]


def _fetch(data_path: Path, url: str, known_hash: str, wanted: str, members: list[str] | None = None) -> Path:
    """Download into `data_path/uci`, check and, given members of an archive, unpack those; `wanted` if that fails."""
    import pooch

    folder = data_path / "uci"
    check_writable(folder, "--data_path")
    made = [path for path in (folder, data_path) if not path.exists()]
    try:
        file = Path(pooch.retrieve(url, known_hash, Path(url).name, folder, progressbar=True))
    except (OSError, ValueError) as error:  # network and disk errors; a wrong hash
        for path in made:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: put {wanted} there; not found, and no download ({why})") from error
    if members:
        _unpack(file, members)
    return file


def _unpack(archive: Path, members: list[str]) -> None:
    """Those files of a tar.gz, and no others, to their places beside it, where they are not there yet."""
    missing = [member for member in members if not (archive.parent / member).is_file()]
    try:
        for place, size, stream in tar_members(archive, {Path(m).stem for m in missing}, MAX_UNPACKED):
            if str(place) in missing:
                target = archive.parent / missing.pop(missing.index(str(place)))
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(target) as temporary, open(temporary, "wb") as file:
                    shutil.copyfileobj(stream, file)
                if target.stat().st_size != size:
                    raise EOFError(f"{place} is cut")
            if not missing:
                return
    except InputError:
        raise
    except ARCHIVE_ERRORS as error:
        raise InputError(f"{archive}: cannot be read ({reason(error)}); remove it, it is then fetched again") from error
    if missing:
        raise InputError(f"{archive}: holds no {missing[0]}; remove it, it is then fetched again")


def _found(data_path: Path, *names: str) -> Path | None:
    """The first of `names` in `data_path` or its folder `uci`."""
    paths = (root / name for root in (data_path, data_path / "uci") for name in names)
    return next((path for path in paths if path.is_file()), None)


def _array(path: Path, name: str | None = None) -> np.ndarray:
    """A .npy, or the array `name` of an .npz, float64 (N, d)."""
    size = path.stat().st_size
    check_size(path, size)
    if name is None:
        with open_regular(path) as file:
            return numbers(str(path), load_npy(file, size, str(path)))
    found = load_npz(path, [name])
    if name not in found:
        raise InputError(f"{path}: holds no array {name}; fetch it again")
    return numbers(str(path), found[name])


def _hepmass_rows(train: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    test = train.with_name(train.name.replace("train", "test"))
    if not test.is_file():
        raise InputError(f"{test}: missing beside {train.name}; put both there")
    with _opened(train) as stream:
        columns = tuple(name.strip(' "#') for name in next(bounded_lines(stream, train), "").strip().split(","))
    used = range(len(columns))  # the header of the test file names one column too many
    parts = [_text(path, rows, used, delimiter=",", skiprows=1) for path, rows in zip((train, test), HEPMASS_ROWS)]
    return np.concatenate(parts), columns


def _miniboone_rows(path: Path) -> Table:
    with _opened(path) as stream:
        counts = next(bounded_lines(stream, path), "").split()
    if len(counts) != 2 or not all(count.isdigit() for count in counts):
        found = " ".join(counts)[:40]
        raise InputError(f"{path} line 1: {found!r}, must be the numbers of signal and background events")
    rows = _text(path, int(counts[0]), None, skiprows=1)
    if len(rows) != int(counts[0]):
        raise InputError(f"{path}: {len(rows):,} signal rows, line 1 says {int(counts[0]):,}; fetch it again")
    rows = rows[rows[:, 0] >= MINIBOONE_OUTLIER]
    kept = np.flatnonzero((rows == rows.min(0)).sum(0) <= MINIBOONE_REPEATS)
    dropped = rows.shape[1] - len(kept)
    notes = (f"signal rows without lost measurements; {dropped} columns dropped whose least value is repeated",)
    return Table(tuple(f"c{i}" for i in kept), rows[:, kept], notes)


def _text(path: Path, rows: int, used: range | None, **options: Any) -> np.ndarray:
    """At most `rows` rows of numbers from a text file, packed or not."""
    try:
        with _opened(path) as stream:
            lines = bounded_lines(stream, path)
            return numbers(str(path), np.loadtxt(lines, max_rows=rows, usecols=used, ndmin=2, **options))
    except InputError:
        raise
    except ARCHIVE_ERRORS as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); fetch it again") from error


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The text of a file, packed (.gz) or not."""
    packed = path.suffix == ".gz"
    with open_regular(path) as file, gzip.open(file) if packed else file as stream:
        most = most_unpacked(size_of(path)) if packed else MAX_BYTES
        yield io.TextIOWrapper(io.BufferedReader(Bounded(stream, most, str(path))), encoding="latin1")
