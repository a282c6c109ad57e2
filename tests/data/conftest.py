import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from gebm.data import cifar10, imagenet32, load_images
from gebm.errors import InputError

RECORDS = 4


@pytest.fixture
def pixels() -> np.ndarray:
    """The images of six small batches, (6, RECORDS, 3072)."""
    return np.random.default_rng(0).integers(256, size=(6, RECORDS, 3072), dtype=np.uint8)


def python2_pickle(array: np.ndarray) -> bytes:
    """A dict {'data': array} as Python 2 and its numpy write it, protocol 2: the form of the published files."""
    raw = array.tobytes()
    return (
        b"\x80\x02}q\x01U\x0bbatch_labelq\x02U\x01xs"  # {'batch_label': 'x',
        b"U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R("  # 'data': array
        b"K\x01" + f"(I{len(array)}\nI{array.shape[1]}\nt".encode() +  # version, shape
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"  # dtype
        b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tbs"  # C order, bytes
        b"U\x06labels](K\x03K\x05es."  # 'labels': [3, 5]}
    )  # fmt: skip


@pytest.fixture
def write_cifar10(monkeypatch, pixels):
    """Writes small batches in one of the published layouts; `batch` replaces some or, None, omits them."""
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)

    def write(data_path, layout, batch=(), pickled=python2_pickle):
        binary = "bin" in layout
        folder = "cifar-10-batches-bin" if binary else "cifar-10-batches-py"
        files = {}
        for name, images in zip(cifar10.BATCHES, pixels):
            labels = np.full((RECORDS, 1), 7, np.uint8)
            files[name] = np.concatenate([labels, images], axis=1).tobytes() if binary else pickled(images)
        files = {name: content for name, content in (files | dict(batch)).items() if content is not None}
        names = {name + (".bin" if binary else ""): content for name, content in files.items()}
        data_path.mkdir(exist_ok=True)
        if not layout.endswith(".tar.gz"):
            (data_path / layout).mkdir()
            for name, content in names.items():
                (data_path / layout / name).write_bytes(content)
            return data_path / layout
        with tarfile.open(data_path / layout, "w:gz") as tar:
            for name, content in {"readme.html": b"about", **names}.items():
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return data_path / layout

    return write


@pytest.fixture(params=range(2, pickle.HIGHEST_PROTOCOL + 1))
def modern_pickle(request):
    return lambda array: pickle.dumps({b"data": array, "labels": [1, 2]}, protocol=request.param)


def files_in(path, files: dict[str, bytes]) -> None:
    """Writes files into a folder, or into a zip archive if the path ends so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)


def jpeg(pixels: np.ndarray, kind: str = "JPEG") -> bytes:
    """Encoded uint8 (H, W, 3)."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, quality=95)
    return stream.getvalue()


@pytest.fixture
def write_imagenet32(monkeypatch):
    """Writes small batches in a published layout (`""`, `_npz`, `.zip`, `_npz.zip`); returns the images, by split."""
    monkeypatch.setattr(imagenet32, "TRAIN", 43)  # nine batches of 4, the last of 7
    monkeypatch.setattr(imagenet32, "TEST", 5)
    train, test = (np.random.default_rng(n).integers(256, size=(n, 3072), dtype=np.uint8) for n in (43, 5))

    def encode(images, npz):
        batch = {"data": images, "labels": [1] * len(images), "mean": images.mean(axis=0)}
        if not npz:
            return pickle.dumps(batch, protocol=3)  # Python 3.5's own, as the authors wrote them
        stream = io.BytesIO()
        np.savez(stream, **batch)
        return stream.getvalue()

    def write(data_path, layout="", batch=(), inside=""):
        parts = {f"train_data_batch_{i + 1}": train[4 * i : 4 * i + 4 if i < 9 else None] for i in range(10)}
        parts["val_data"] = test
        files = {name: encode(images, "npz" in layout) for name, images in parts.items()} | dict(batch)
        names = {name: inside + name + (".npz" if "npz" in layout else "") for name in files}
        for place, wanted in ("Imagenet32_train", "train"), ("Imagenet32_val", "val"):
            there = {names[n]: content for n, content in files.items() if n.startswith(wanted) and content is not None}
            files_in(data_path / (place + layout), there)
        return train.reshape(-1, 3, 32, 32), test.reshape(-1, 3, 32, 32)

    return write


@pytest.fixture
def write_celeba():
    """Writes 7 JPEGs of 178x218 and their partition file into `data_path/celeba`; returns the files' contents."""
    images = {f"{i + 1:06}.jpg": jpeg(noise(i, 218, 178)) for i in range(7)}
    codes = dict(zip(images, "0010220"))

    def write(data_path, place="img_align_celeba", image=(), partition=None, inside=""):
        files = {inside + n: content for n, content in (images | dict(image)).items() if content is not None}
        files_in(data_path / "celeba" / place, files)
        text = "".join(f"{name} {code}\n" for name, code in codes.items()) if partition is None else partition
        (data_path / "celeba" / "list_eval_partition.txt").write_text(text)
        return images

    return write


@pytest.fixture
def write_lsun():
    """Writes the two LMDBs of `values` (by default 5 and 2 WebP or JPEG images of 300x256) into `data_path/lsun`."""
    lmdb = pytest.importorskip("lmdb")
    images = {f"{i:040x}".encode(): jpeg(noise(i, 256, 300), "WEBP" if i % 2 else "JPEG") for i in range(7)}

    def write(data_path, values=None):
        for split, keys in ("train", list(images)[:5]), ("val", list(images)[5:]):
            folder = data_path / "lsun" / f"bedroom_{split}_lmdb"
            folder.mkdir(parents=True)
            with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
                for key in keys if values is None else values:
                    transaction.put(key, (images if values is None else values)[key])
        return list(images.values())

    return write


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """A coloured picture with structure at 32x32 and finer."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).resize((width, height))
    return np.clip(np.asarray(coarse) + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def resized_and_cropped():
    """The transform as the paper has it, on one encoded image: Resize(size) and CenterCrop(size) of torchvision."""

    def transform(content, size):
        image = Image.open(io.BytesIO(content)).convert("RGB")
        width, height = (int(size * side / min(image.size)) for side in image.size)
        left, top = int(round((width - size) / 2.0)), int(round((height - size) / 2.0))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)

    return transform


@pytest.fixture
def refused():
    """Loading fails with one line that says `says`, and nothing is cached; returns the line."""

    def refused(dataset, data_path, says, **options):
        with pytest.raises(InputError, match=says) as error:
            load_images(dataset, data_path, **options)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
        assert not (data_path / "cache").exists()
        return str(error.value)

    return refused
