import io
import sys
import types

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


@pytest.fixture
def fake(monkeypatch):
    """A stand-in for the `datasets` package, whose one data set `load_dataset` gives: its splits of encoded images."""
    splits: dict = {}

    class Image:
        def __init__(self, decode=True):
            pass

    class Table(list):
        features = {"img": Image()}
        _fingerprint = "x"

        def select_columns(self, _):
            return self

        def cast_column(self, *_):
            return self

        def select(self, part):
            return Table(self[int(i)] for i in part)

    def fill(**images):
        for split, found in images.items():
            splits[split] = Table({"img": {"bytes": png(image), "path": None}} for image in found)

    module = types.SimpleNamespace(Image=Image, load_dataset=lambda name: splits)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return fill


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "train, test", [("train", "test"), ("train", "validation"), ("train", "val"), ("Train", "dev")]
)
def test_names_of_splits(train, test, fake, tmp_path):
    images = pictures(7)
    fake(**{train: images[:5], test: images[5:]})
    data = load_images("hub:x", tmp_path)
    expected = np.stack(images).transpose(0, 3, 1, 2)
    assert np.array_equal(data.train, expected[:5]) and np.array_equal(data.test, expected[5:])


def test_splits_that_are_left_out_are_counted(fake, tmp_path, caplog):
    images = pictures(9)
    fake(train=images[:5], test=images[5:7], unsupervised=images[7:])
    assert len(load_images("hub:some/thing", tmp_path).test) == 2
    assert "hub:some/thing: left out 2 images in unsupervised" in caplog.text


def test_of_one_split_an_image_added_moves_none_of_the_others(fake, tmp_path):
    images, found = pictures(120), []
    for count, place in ((119, "a"), (120, "b")):
        fake(train=images[:count])
        data = load_images("hub:x", tmp_path / place)
        assert data.drawn
        found.append([{image.tobytes() for image in split} for split in (data.train, data.test)])
    assert found[0][0] <= found[1][0] and found[0][1] <= found[1][1] and len(found[0][1]) > 2


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
