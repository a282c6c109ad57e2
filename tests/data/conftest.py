import io
import pickle
import tarfile

import numpy as np
import pytest

from gebm.data import cifar10

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


@pytest.fixture(params=range(3, pickle.HIGHEST_PROTOCOL + 1))
def modern_pickle(request):
    return lambda array: pickle.dumps({b"data": array, "labels": [1, 2]}, protocol=request.param)
