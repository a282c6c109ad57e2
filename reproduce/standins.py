"""Small data in the published formats, made up, so that every row runs through the real readers where no data are.

Images are scikit-learn's digits in colours that differ by data set; tables are correlated normals. What is learnt from
them says nothing of the sets whose names they bear.
"""

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from gebm.data import cifar10, imagenet32, labelled_digits, uci
from gebm.files import atomic_folder

__all__ = ["fewer", "write"]

RECORDS = 50  # images in a batch of CIFAR-10
TRAIN, TEST = 250, 60  # images of the other sets
SIGNAL = 300  # rows of a large table


@contextmanager
def fewer() -> Iterator[None]:
    """The readers of sets whose published files have fixed counts take those of the stand-ins."""
    counts = ((cifar10, "RECORDS", RECORDS), (imagenet32, "TRAIN", TRAIN), (imagenet32, "TEST", TEST),
              (uci, "HEPMASS_TEST", SIGNAL // 10))  # fmt: skip
    before = [getattr(module, name) for module, name, _ in counts]
    try:
        for module, name, count in counts:
            setattr(module, name, count)
        yield
    finally:
        for (module, name, _), count in zip(counts, before):
            setattr(module, name, count)


def write(folder: Path) -> Path:
    """Write all sets into a folder, unless it is there."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder, new=True) as temporary:
            for make in (_cifar10, _imagenet32, _celeba, _lsun, _tables):
                make(temporary)
    return folder


def _pictures(n: int, seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Digits in one colour on another, uint8 (n, height, width, 3)."""
    rng = np.random.default_rng(seed)
    digits, _ = labelled_digits(32)
    shades = digits[rng.permutation(len(digits))[:n], 0, :, :, None] / 255
    dark, light = rng.integers(0, 100, (n, 1, 1, 3)), rng.integers(120, 256, (n, 1, 1, 3))
    pictures: np.ndarray = (dark + (light - dark) * shades).round().astype(np.uint8)
    if (height, width) == (32, 32):
        return pictures
    return np.stack([np.asarray(Image.fromarray(picture).resize((width, height))) for picture in pictures])


def _planes(pictures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).reshape(len(pictures), -1)


def _jpeg(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _cifar10(root: Path) -> None:
    """The binary batches."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name, batch in zip(cifar10.BATCHES, np.split(_planes(_pictures(6 * RECORDS, 1)), 6)):
        labels = np.zeros((RECORDS, 1), np.uint8)
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels, batch], 1).tobytes())


def _imagenet32(root: Path) -> None:
    """The pickled batches: ten of train, the last with what is left over, and one of val."""
    planes = _planes(_pictures(TRAIN + TEST, 2))
    ends = [*range(0, TRAIN - TRAIN % 10, TRAIN // 10)][1:10] + [TRAIN]
    *train, val = np.split(planes, ends)
    names = [f"Imagenet32_train/train_data_batch_{i}" for i in range(1, 11)] + ["Imagenet32_val/val_data"]
    for name, batch in zip(names, [*train, val]):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(pickle.dumps({"data": batch, "labels": [1] * len(batch)}))


def _celeba(root: Path) -> None:
    """JPEGs of 178 x 218 in a folder, and their partition file."""
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    lines = []
    for i, picture in enumerate(_pictures(TRAIN + TEST, 3, 218, 178), 1):
        (folder / f"{i:06}.jpg").write_bytes(_jpeg(picture))
        lines.append(f"{i:06}.jpg {0 if i <= TRAIN else 2}\n")
    (root / "celeba" / "list_eval_partition.txt").write_text("".join(lines))


def _lsun(root: Path) -> None:
    """The two LMDBs where the package lmdb is, else folders of the same images."""
    images = [_jpeg(picture) for picture in _pictures(TRAIN + TEST, 4, 256, 256)]
    for split, part in (("train", images[:TRAIN]), ("val", images[TRAIN:])):
        try:
            import lmdb
        except ImportError:
            (root / "lsun" / split).mkdir(parents=True)
            for i, image in enumerate(part):
                (root / "lsun" / split / f"{i:05}.jpg").write_bytes(image)
            continue
        folder = root / "lsun" / f"bedroom_{split}_lmdb"
        folder.mkdir(parents=True)
        with lmdb.open(str(folder), map_size=1 << 25) as environment, environment.begin(write=True) as transaction:
            for i, image in enumerate(part):
                transaction.put(f"{i:040x}".encode(), image)


def _normals(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows: np.ndarray = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)) / d**0.5)
    return rows


def _tables(root: Path) -> None:
    """The five tables of the UCI repository in their original files."""
    folder = root / "uci"
    folder.mkdir()
    for seed, name in enumerate(("red", "white")):
        header = ";".join(f'"c{i}"' for i in range(12))
        _csv(folder / f"winequality-{name}.csv", header, _normals(SIGNAL, 12, seed).round(2), ";")
    _csv(folder / "parkinsons_updrs.data", ",".join(f"c{i}" for i in range(22)), _normals(SIGNAL, 22, 2), ",")
    for part, n, extra in (("train", 2 * SIGNAL, ""), ("test", SIGNAL, ",mass")):
        rows = _normals(n, 28, 3)
        rows[:, 0] = np.arange(n) % 2
        header = "# label," + ",".join(f"f{i}" for i in range(27)) + extra
        _csv(folder / f"1000_{part}.csv", header, rows, ",")
    _csv(folder / "MiniBooNE_PID.txt", f" {SIGNAL} 20", _normals(SIGNAL + 20, 43, 4), " ")


def _csv(path: Path, header: str, rows: np.ndarray, delimiter: str) -> None:
    np.savetxt(path, rows, "%.6g", delimiter, header=header, comments="")
