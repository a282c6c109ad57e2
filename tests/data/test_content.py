"""What a data set holds: hashes of its images, and what is said of copies."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gebm.data import ImageData, content, load_images

IMAGES = np.random.default_rng(0).integers(256, size=(60, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "own_pairs", sys.modules[__name__])


def pair(data_path, image_size):
    return IMAGES[:50], IMAGES[45:]


def save(kind: str, train: np.ndarray, test: np.ndarray) -> str:
    """The name to load two splits by, as files of their own or as arrays."""
    if kind == "npz":
        np.savez("a.npz", train=train, test=test)
        return "npz:a.npz"
    for name, split in (("train", train), ("test", test)):
        Path("in", name).mkdir(parents=True)
        for i, image in enumerate(split):
            Image.fromarray(image[0]).save(f"in/{name}/{i:03}.png", compress_level=9 if name == "test" else 1)
    return "folder:in"


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_copies_across_the_splits_are_told_of(kind, caplog):
    name = save(kind, IMAGES[:50], IMAGES[45:])
    for _ in range(2):
        load_images(name, "data", 8)
    assert caplog.messages == [f"{name}: 5 of 15 test images equal a training image in every pixel"]  # once


def test_copies_in_arrays_of_ones_own_are_told_of(caplog):
    load_images("own_pairs:pair", "data")
    assert "own_pairs:pair: 5 of 15 test images equal a training image in every pixel" in caplog.text


def test_copies_within_a_split_are_told_of(caplog):
    load_images(save("npz", np.concatenate([IMAGES[:50], IMAGES[:7], IMAGES[:2]]), IMAGES[50:]), "data")
    assert caplog.messages == ["npz:a.npz: 9 of 59 training images are copies of another"]


def test_of_ordinary_images_nothing_is_said(caplog):
    load_images(save("folder", IMAGES[:50], IMAGES[50:]), "data", 8)
    load_images("digits")
    assert not caplog.messages


def test_equal_arrays_have_equal_keys_wherever_they_come_from():
    keys = [load_images(save(kind, IMAGES[:50], IMAGES[50:]), "data", 8).content.key for kind in ("npz", "folder")]
    assert keys[0] == keys[1]
    os.rename("in", "moved")
    os.utime("moved/train/000.png", ns=(1, 1))
    data = load_images("folder:moved", "data", 8)
    assert data.content.key == keys[0] == ImageData("x", IMAGES[:50], IMAGES[50:], "").content.key


@pytest.mark.parametrize("change", ["pixel", "order", "splits", "fewer"])
def test_other_arrays_have_another_key(change):
    train, test = IMAGES[:50].copy(), IMAGES[50:]
    key = ImageData("x", train, test, "").content.key
    if change == "pixel":
        train[3, 0, 2, 2] ^= 1
    elif change == "order":
        train = train[::-1]
    elif change == "splits":
        train, test = IMAGES[:49], IMAGES[49:]
    else:
        train = train[:-1]
    assert ImageData("x", train, test, "").content.key != key


def test_hashes_are_kept_with_the_cache_and_made_again_where_damaged(monkeypatch):
    data = load_images(save("npz", IMAGES[:50], IMAGES[50:]), "data")
    (file,) = Path("data").glob("cache/*/content.npz")
    with monkeypatch.context() as patch:
        patch.setattr(content, "hash_of", None)  # not called
        assert load_images("npz:a.npz", "data").content.key == data.content.key
    for damage in (b"", file.read_bytes()[:100], b"x" * 50):
        file.write_bytes(damage)
        assert load_images("npz:a.npz", "data").content.key == data.content.key
        assert file.stat().st_size > 100
    file.unlink()
    monkeypatch.setattr(content, "atomic_write", read_only)
    assert load_images("npz:a.npz", "data").content.key == data.content.key and not file.exists()


def read_only(path):
    raise PermissionError(13, "Permission denied", str(path))
