import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from gebm.data import load_images, lsun


def test_pixels_in_the_order_of_the_keys(tmp_path, write_lsun, resized_and_cropped):
    images = np.stack([resized_and_cropped(content, 32) for content in write_lsun(tmp_path)])
    data = load_images("lsun", tmp_path)
    for split, expected in (data.train, images[:5]), (data.test, images[5:]):
        assert split.shape == expected.shape and np.abs(split.astype(int) - expected).max() <= 1


def test_folders_and_other_places(tmp_path, write_lsun, resized_and_cropped):
    images = write_lsun(tmp_path)
    data = load_images("lsun", tmp_path)
    for name in lsun.DATABASES:
        shutil.move(tmp_path / "lsun" / name, tmp_path / name)
    assert np.array_equal(load_images("lsun", tmp_path).train, data.train)
    for split, part in ("train", images[:5]), ("val", images[5:]):
        (tmp_path / "lsun" / split).mkdir()
        for i, content in enumerate(part):
            (tmp_path / "lsun" / split / f"{i}.webp").write_bytes(content)
    folders = load_images("lsun", tmp_path)
    assert folders.key != data.key
    assert np.array_equal(folders.train, data.train) and np.array_equal(folders.test, data.test)


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_any_image_can_be_the_first(start, tmp_path, write_lsun):
    images = write_lsun(tmp_path)[:5]
    file = tmp_path / "lsun" / "bedroom_train_lmdb" / "data.mdb"
    assert [content for _, content in lsun._values(file, start)] == images[start:]


def test_a_read_only_database_is_left_as_it_is(tmp_path, write_lsun):
    write_lsun(tmp_path)
    for path in tmp_path.rglob("lock.mdb"):
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "lsun").rglob("*")}
    load_images("lsun", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "lsun").rglob("*")} == before


@pytest.mark.parametrize("part", [0, 0.001, 0.3, 0.95])
def test_truncated_database(part, tmp_path, write_lsun, refused):
    write_lsun(tmp_path)
    path = tmp_path / "lsun" / "bedroom_val_lmdb" / "data.mdb"
    os.truncate(path, int(part * path.stat().st_size))
    refused("lsun", tmp_path, r"bedroom_val_lmdb/data.mdb: [\d,]+ bytes( of [\d,]+, truncated|, not a sound LMDB)")


def test_value_that_is_no_image_is_named(tmp_path, write_lsun, refused):
    write_lsun(tmp_path, values={b"good": write_lsun(tmp_path / "sound")[0], b"key7": b"no picture"})
    refused("lsun", tmp_path, "data.mdb: key 'key7': not a usable image")


def test_empty_database(tmp_path, write_lsun, refused):
    write_lsun(tmp_path, values={})
    refused("lsun", tmp_path, "lsun train: no images")


def test_what_is_missing_is_told(tmp_path, write_lsun, refused):
    refused("lsun", tmp_path, "no LSUN bedrooms there; put bedroom_train_lmdb and bedroom_val_lmdb there, unzipped")
    (tmp_path / "lsun" / "train").mkdir(parents=True)
    refused("lsun", tmp_path, "lsun/val: not there; LSUN needs both train and val")
    (tmp_path / "lsun" / "val").mkdir()
    refused("lsun", tmp_path, "lsun/train: 0 images in it")
    shutil.rmtree(tmp_path / "lsun")
    write_lsun(tmp_path)
    (tmp_path / "lsun" / "bedroom_val_lmdb" / "data.mdb").unlink()
    refused("lsun", tmp_path, "bedroom_val_lmdb/data.mdb: not there")
    shutil.rmtree(tmp_path / "lsun" / "bedroom_val_lmdb")
    refused("lsun", tmp_path, "bedroom_val_lmdb: not there; LSUN needs both")


def test_without_the_package(tmp_path, write_lsun, refused, monkeypatch):
    write_lsun(tmp_path)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    refused("lsun", tmp_path, r"pip install 'gebm\[lsun\]'")


def test_once_prepared_the_package_is_not_needed(tmp_path, write_lsun, monkeypatch):
    write_lsun(tmp_path)
    key = load_images("lsun", tmp_path).key
    monkeypatch.setitem(sys.modules, "lmdb", None)
    monkeypatch.setattr(Image, "open", None)
    assert load_images("lsun", tmp_path).key == key
