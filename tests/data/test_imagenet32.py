import pickle
import subprocess
import zipfile

import numpy as np
import pytest
from PIL import Image

from gebm.data import imagenet32, load_images

LAYOUTS = ["", "_npz", ".zip", "_npz.zip"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, tmp_path, write_imagenet32):
    train, test = write_imagenet32(tmp_path, layout)
    data = load_images("imagenet32", tmp_path)
    assert np.array_equal(data.train, train) and np.array_equal(data.test, test)


@pytest.mark.parametrize("layout", LAYOUTS[2:])
def test_what_archivers_hide_is_not_read(layout, tmp_path, write_imagenet32):
    train, _ = write_imagenet32(tmp_path, layout)
    name = "train_data_batch_2" + (".npz" if "npz" in layout else "")
    with zipfile.ZipFile(tmp_path / f"Imagenet32_train{layout}", "a") as archive:
        archive.writestr(f"__MACOSX/Imagenet32_train/{name}", b"no batch")
    assert np.array_equal(load_images("imagenet32", tmp_path).train, train)


def test_published_counts():
    """9 x 128,116 + 128,123 images: the rule of the authors' script on all of ImageNet."""
    assert (imagenet32.TRAIN, imagenet32.TEST) == (1_281_167, 50_000)
    assert imagenet32.TRAIN - 9 * (imagenet32.TRAIN // 10) == 128_123


@pytest.mark.parametrize("layout", ["", ".zip"])
def test_paths_of_the_flags(layout, tmp_path, write_imagenet32):
    train, test = write_imagenet32(tmp_path / "elsewhere", layout, inside="any/folder/" if layout else "")
    paths = tuple(str(tmp_path / "elsewhere" / f"Imagenet32_{split}{layout}") for split in ("train", "val"))
    data = load_images("imagenet32", tmp_path, imagenet_paths=paths)
    assert np.array_equal(data.train, train) and np.array_equal(data.test, test)


@pytest.mark.parametrize("start", [0, 3, 4, 36, 42, 43])
def test_any_image_can_be_the_first(start, tmp_path, write_imagenet32):
    train, _ = write_imagenet32(tmp_path)
    images, _ = imagenet32.find(tmp_path).read(32)
    blocks = list(images.blocks(start))
    assert np.array_equal(np.concatenate([train[:0], *blocks]), train[start:])


def test_resized(tmp_path, write_imagenet32):
    train, _ = write_imagenet32(tmp_path)
    plane = Image.fromarray(train[8, 1]).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(load_images("imagenet32", tmp_path, 16).train[8, 1], plane)


def test_nothing_there(tmp_path, refused):
    refused("imagenet32", tmp_path, "no ImageNet32 there; put .*image-net.org.*--imagenet_train_path")
    refused("imagenet32", tmp_path, "--imagenet_train_path x: not there", imagenet_paths=("x", ""))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_batch(layout, tmp_path, write_imagenet32, refused):
    write_imagenet32(tmp_path, layout, batch={"train_data_batch_3": None})
    refused("imagenet32", tmp_path, rf"Imagenet32_train{layout}: train_data_batch_3 missing")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_batch(layout, tmp_path, write_imagenet32, refused):
    write_imagenet32(tmp_path, layout, batch={"val_data": b"\x80" * 99})
    refused("imagenet32", tmp_path, rf"Imagenet32_val{layout}: val_data: .*(cannot be read|not a readable zip)")


@pytest.mark.parametrize(
    "data, says",
    [
        (np.zeros((3, 3072), np.uint8), r"3 images \(uint8\), the published one has 4"),
        (np.zeros((4, 3071), np.uint8), r"3.99869\d* images"),
        (np.zeros((4, 3072)), "not uint8"),
        ([1, 2], "cannot be read"),
    ],
)
def test_batch_of_something_else(data, says, tmp_path, write_imagenet32, refused):
    write_imagenet32(tmp_path, batch={"train_data_batch_10": None})
    batch = {"train_data_batch_2": pickle.dumps({"data": data})}
    write_imagenet32(tmp_path / "b", batch=batch)
    refused("imagenet32", tmp_path / "b", f"train_data_batch_2: .*{says}")


class Attack:
    def __reduce__(self):
        return subprocess.run, (["touch", "attacked"],)


def test_pickle_with_code(tmp_path, write_imagenet32, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_imagenet32(tmp_path, batch={"train_data_batch_1": pickle.dumps({"data": Attack()})})
    refused("imagenet32", tmp_path, "train_data_batch_1: refused, the pickle asks for subprocess.run")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_truncated_archive(part, tmp_path, write_imagenet32, refused):
    write_imagenet32(tmp_path, ".zip")
    path = tmp_path / "Imagenet32_val.zip"
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    refused("imagenet32", tmp_path, r"Imagenet32_val.zip: [\d,]+ bytes, not a readable zip archive .*fetch it again")


def test_damaged_archive(tmp_path, write_imagenet32, refused):
    write_imagenet32(tmp_path, ".zip")
    path = tmp_path / "Imagenet32_val.zip"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1  # a pixel: only the archive's checksum can see this
    path.write_bytes(content)
    refused("imagenet32", tmp_path, "val_data: cannot be read .*CRC")
