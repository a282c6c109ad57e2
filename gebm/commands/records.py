"""Which images a run was trained on: kept in its folder, and compared with those of the data set now."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gebm.commands.datasets import made_with
from gebm.commands.pairs import folder_of
from gebm.commands.setup import log
from gebm.data import ImageData, TableData
from gebm.data.arrays import load_npz
from gebm.data.batches import OtherSize
from gebm.data.content import Content
from gebm.errors import InputError
from gebm.files import atomic_write
from gebm.pretrained import CONFIG
from gebm.text import show

__all__ = ["carry_images", "check_resumed", "compare_images", "save_images", "split_then", "unseen"]

RECORD = "data.npz"


class Record(NamedTuple):
    """The images that weights have seen.

    Attributes:
        name: of the data set.
        train, test: a 64-bit hash of each of its images, in their order.
        earlier: hashes of the images that the runs it was started from were trained on, sorted.
        unknown: names of those of them of which that is not known.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    earlier: np.ndarray
    unknown: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """Hashes of all images that the weights were trained on."""
        return np.union1d(self.train, self.earlier)


def save_images(run: Path, data: ImageData, *weights: Path) -> None:
    """Write `data.npz` into a run: hashes of its images, by which they are known again, and of those that the weights
    it starts from were trained on."""
    _save(run, Record(data.name, data.content.train, data.content.test, *_seen_by(*weights)))


def carry_images(folder: Path, base: Path, energy: Path) -> None:
    """Write `data.npz` of a pair's runs into a folder that its weights are exported to, if the energy's run has one."""
    if record := _record(_run_of(energy)):
        earlier, unknown = _seen_by(base, energy)
        _save(folder, record._replace(earlier=np.setdiff1d(earlier, record.train), unknown=unknown))


def _save(folder: Path, record: Record) -> None:
    with atomic_write(folder / RECORD) as temporary, open(temporary, "wb") as file:
        np.savez(file, **record._asdict())


def _seen_by(*weights: Path) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the images that weights were trained on, and the names of the runs of which they are not known."""
    seen, unknown = np.empty(0, np.uint64), set[str]()
    for run in dict.fromkeys(map(_run_of, weights)):
        if record := _record(run):
            seen = np.union1d(seen, record.seen)
            unknown.update(map(str, record.unknown))
        elif _of_changeable(run):
            unknown.add(run.resolve().name)
    return seen, np.array(sorted(unknown), np.str_)


def check_resumed(run: Path, data: ImageData) -> None:
    """Raise InputError unless a run that goes on does so with the training images that it was begun with, in their
    order; of other test images warn."""
    record = _record(run)
    if record is None:
        if note := _unknown(run, data):
            log.warning(note)
        return
    train, test = map(_change, ("training", "test"), record[1:3], data.content[:2])
    if train:
        raise InputError(
            f"--resume {run}: {data.name} has changed since: {train}; restore its training images as they were, or "
            "start a new run from it with --g_path and --d_path"
        )
    if test:
        log.warning("--resume %s: %s has changed since: %s; earlier figures are of others", run, data.name, test)


@contextmanager
def split_then(run: Path, data: ImageData | TableData) -> Iterator[None]:
    """Say, where a run without a record drew from another number of images, that the split was another one then."""
    try:
        yield
    except OtherSize as error:
        if not isinstance(data, ImageData) or not data.drawn or (run / RECORD).is_file():
            raise
        raise InputError(
            f"--resume {run}: {error}; {data.name} is split by content now, older versions split it by the order of "
            "its files, so the training images are others; start a new run"
        ) from None


def compare_images(data: ImageData, *weights: Path) -> str:
    """How a data set differs from the one that the weights of runs were trained on, in words; empty if it does not.

    Raises:
        InputError: test images were trained on, so that nothing measured on them means what it says.
    """
    return "; ".join(filter(None, (_compared(data, run) for run in dict.fromkeys(map(_run_of, weights)))))


def unseen(data: ImageData, weights: Path) -> np.ndarray | None:
    """Which training images (N,) weights of a run are known not to have been trained on, bool.

    None: they are those that it was trained on, in their order, or nothing is known.
    """
    record = _record(_run_of(weights))
    if record is None or np.array_equal(record.train, data.content.train):
        return None
    return ~np.isin(data.content.train, record.seen)


def _compared(data: ImageData, run: Path) -> str:
    record, now = _record(run), data.content
    if record is None:
        return _unknown(run, data)
    trained_on = np.isin(now.test, record.seen)
    if count := int((trained_on & ~np.isin(now.test, record.test)).sum()):  # the others had copies in both splits then
        raise InputError(
            f"{run}: was trained on {count:,} of the {len(now.test):,} test images that {data.name} has now; "
            "restore its images as they were, name others with --dataset, or train again"
        )
    changes = "; ".join(filter(None, map(_change, ("training", "test"), record[1:3], now[:2])))
    resaved = _as_many_others(record, now)
    apart = "no test image equals one that was trained on, pixel for pixel"
    if trained_on.any():
        apart = f"{int(trained_on.sum()):,} test images are copies of images trained on, as they were then"
    elif resaved:
        apart += ", and none of all equals one of then; the same images, saved again as JPEG, would look so too"
    note = ""
    if changes and record.name == data.name:
        note = f"{data.name} has changed since {run} was trained: {changes}; {apart}"
    elif resaved:
        note = f"{data.name} has as many images as {show(record.name)}, which {run} was made from: {apart}"
    return "; ".join(filter(None, (note, _started_from(run, record))))


def _as_many_others(record: Record, now: Content) -> bool:
    """Whether a data set has as many images as that of a run, and none of them."""
    then, there = (np.concatenate([split.train, split.test]) for split in (record, now))
    return len(then) == len(there) and not np.isin(then, there).any()


def _started_from(run: Path, record: Record) -> str:
    """That a run was started from others of which it is not known what they were trained on; empty if it was not."""
    if not record.unknown.size:
        return ""
    names = ", ".join(map(show, record.unknown))
    return f"{run}: was started from {names}, of which it is not known what it was trained on"


def _change(split: str, was: np.ndarray, now: np.ndarray) -> str:
    """How the images of a split, given by their hashes, differ from those of a run, in words; empty if they do not."""
    if np.array_equal(was, now):
        return ""
    if np.array_equal(np.sort(was), np.sort(now)):
        return f"the same {len(now):,} {split} images, in another order"
    return f"{len(was):,} {split} images, now {len(now):,}, {int(np.isin(was, now).sum()):,} the same"


def _unknown(run: Path, data: ImageData) -> str:
    """What a user must know of weights without a record; empty for data sets that nobody changes."""
    if not _of_changeable(run) or ":" not in data.name:
        return ""
    if (run / CONFIG).is_file():
        reason = "exported without one"
    elif (run / "training.json").is_file():
        reason = f"a checkpoint outside its run, whose {RECORD} belongs beside the folder checkpoints"
    else:
        reason = "older versions wrote none"
    note = f"{run}: has no {RECORD} ({reason}), so it is not known whether {data.name} has changed"
    if not data.drawn or reason != "older versions wrote none":
        return f"{note}, nor whether its test images were trained on"
    return f"{note}; its split was drawn differently then, so most of the present test images were trained on"


def _of_changeable(run: Path) -> bool:
    """Whether a folder holds weights of a data set that may change: a user's own."""
    stored = made_with(run)
    return stored is not None and ":" in stored.dataset


def _run_of(weights: Path) -> Path:
    """The folder of the run that weights are of, or of the weights themselves."""
    folder = folder_of(weights)
    if folder.absolute().parent.name != "checkpoints":
        return folder
    return folder.parent.parent if len(folder.parts) > 2 else folder.absolute().parent.parent


def _record(run: Path) -> Record | None:
    """What was kept of the images of a run, or of an exported pair; None: nothing, as older versions did."""
    file = run / RECORD
    if not file.is_file():
        return None
    arrays = load_npz(file)
    earlier, unknown = np.empty(0, np.uint64), np.empty(0, np.str_)  # older versions wrote neither
    try:
        name, train, test = str(arrays["name"]), arrays["train"], arrays["test"]
        record = Record(name, train, test, arrays.get("earlier", earlier), arrays.get("unknown", unknown))
    except KeyError:
        raise InputError(f"{file}: not a record of images; delete it to go without") from None
    hashes = (record.train, record.test, record.earlier)
    if any(part.dtype != np.uint64 or part.ndim != 1 for part in hashes) or record.unknown.dtype.kind != "U":
        raise InputError(f"{file}: not a record of images; delete it to go without")
    return record
