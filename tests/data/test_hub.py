import sys

import numpy as np
import pytest
from PIL import Image

from gebm.data import load_images


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    return module


def pictures(count):
    return [np.random.default_rng(i).integers(256, size=(32, 32, 3), dtype=np.uint8) for i in range(count)]


def parquet(datasets, folder, **splits):
    """A data set as the hub stores most: one parquet file a split, with encoded images in it."""
    (folder / "data").mkdir(parents=True)
    for split, images in splits.items():
        table = datasets.Dataset.from_dict({"img": list(map(Image.fromarray, images)), "label": [0] * len(images)})
        table = table.cast_column("img", datasets.Image())
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return f"hub:{folder}"


@pytest.mark.parametrize("test", ["test", "validation"])
def test_splits_and_pixels(test, datasets, tmp_path):
    images = pictures(7)
    name = parquet(datasets, tmp_path / "set", train=images[:5], **{test: images[5:]})
    data, again = load_images(name, tmp_path), load_images(name, tmp_path)
    expected = np.stack(images).transpose(0, 3, 1, 2)
    assert np.array_equal(data.train, expected[:5]) and np.array_equal(data.test, expected[5:])
    assert data.name == name and data.key == again.key


def test_one_split_and_grey(datasets, tmp_path):
    name = parquet(datasets, tmp_path / "set", train=[image[..., 0] for image in pictures(20)])
    data = load_images(name, tmp_path)
    assert (len(data.train), len(data.test), data.shape) == (18, 2, (1, 32, 32))


def test_columns(datasets, tmp_path, refused):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("a,b\n1,2\n")
    refused(f"hub:{tmp_path / 'set'}", tmp_path, "0 columns of images among a, b; it must have one")


def test_no_such_set(datasets, tmp_path, refused):
    refused(f"hub:{tmp_path / 'nothing'}", tmp_path, "cannot be loaded")


def test_offline(datasets, tmp_path, refused, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("hub:no-such-owner/no-such-set", tmp_path, "hub:no-such-owner/no-such-set: cannot be loaded .*ffline")


def test_without_the_package(tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hub:mnist", tmp_path, r"hub:mnist needs the package datasets: pip install 'gebm\[hub\]'")
