import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from gebm.data import DATASETS, ImageData, cache, from_uint8, labelled_digits, load_images, to_uint8
from gebm.data.images import SOURCES
from gebm.errors import InputError

RNG = np.random.default_rng(0)
TRAIN, TEST = (RNG.integers(256, size=(n, 3, 16, 16), dtype=np.uint8) for n in (6, 2))


def pair(data_path, image_size):
    return TRAIN, TEST


def floats(data_path, image_size):
    return TRAIN / 255, TEST / 255


def channels_last(data_path, image_size):
    return TRAIN.transpose(0, 2, 3, 1), TEST.transpose(0, 2, 3, 1)


def many_channels(data_path, image_size):
    return ImageData("signals", *(split.transpose(0, 2, 3, 1) for split in (TRAIN, TEST)), key="x")


def single(data_path, image_size):
    return TRAIN


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


# --- conversion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uint8_roundtrip(dtype):
    levels = torch.arange(256, dtype=torch.uint8)
    assert from_uint8(levels).dtype == torch.float32
    assert from_uint8(levels)[[0, 255]].tolist() == [-1, 1]
    assert to_uint8(from_uint8(levels).to(dtype)).equal(levels)


def test_to_uint8_rounds_and_clamps():
    x = torch.tensor([-9.0, -1.0, (100.4 / 127.5) - 1, (100.6 / 127.5) - 1, 1.0, 9.0])
    assert to_uint8(x).tolist() == [0, 0, 100, 101, 255, 255]
    assert to_uint8(x.bfloat16()).dtype == torch.uint8


# --- data sets --------------------------------------------------------------------------------------------------------


def test_digits(tmp_path):
    data = load_images("digits", tmp_path)
    assert (data.train.shape, data.test.shape, data.shape) == ((1397, 1, 8, 8), (400, 1, 8, 8), (1, 8, 8))
    assert data.train.dtype == np.uint8 and data.train.min() == 0 and data.train.max() == 255
    assert not data.train.flags.writeable and not list(tmp_path.iterdir())
    assert data.key == load_images("digits").key != load_images("digits", image_size=16).key
    assert data.key == "c6a4509bce6fadd8"  # pinned: another order would mix the splits of an earlier run
    everything, labels = labelled_digits()
    assert np.array_equal(everything, np.concatenate([data.train, data.test]))
    assert np.bincount(labels[-400:]).min() > 20  # shuffled: expected 40 of each digit, standard deviation 6
    # a digit's own picture: the mean zero is dark in the middle, the mean one bright
    centre = [data.train[labels[:-400] == digit, 0, 3:5, 3:5].mean() for digit in (0, 1)]
    assert centre[0] < 60 < 180 < centre[1]


@pytest.mark.parametrize("size", [8, 16, 20, 28, 64])
def test_digits_are_resized(size):
    data = load_images("digits", image_size=size)
    assert data.shape == (1, size, size)
    assert data.train.mean() == pytest.approx(load_images("digits").train.mean(), rel=0.02)


@pytest.mark.parametrize("size", [0, 3, 2049])
def test_image_size_is_a_side(size, tmp_path):
    with pytest.raises(InputError, match=f"--image_size {size}: choose a side from 4 to 2048") as error:
        load_images("digits", tmp_path / "data", size)
    one_line(error)
    assert not (tmp_path / "data").exists()


def test_unknown_name_suggests_the_nearest():
    known = "digits, cifar10, imagenet32, celeba, lsun, folder:PATH, npz:PATH, hub:NAME"
    with pytest.raises(InputError, match=f"'cifr10': choose {known} .*mean cifar10") as error:
        load_images("cifr10")
    one_line(error)


@pytest.fixture
def write(request, tmp_path):
    """Writes the small true files of a data set; returns the name to load it by."""

    def write(name):
        if name == "folder":
            return f"folder:{save_pngs(tmp_path / 'pictures', 5)}"
        if name == "npz":
            np.savez(tmp_path / "x.npz", train=TRAIN, test=TEST)
            return f"npz:{tmp_path / 'x.npz'}"
        if name == "hub":
            pytest.importorskip("datasets")
            save_pngs(tmp_path / "pictures" / "train", 3), save_pngs(tmp_path / "pictures" / "test", 2)
            return f"hub:{tmp_path / 'pictures'}"
        if name != "digits":
            arguments = ("cifar-10-batches-bin",) if name == "cifar10" else ()
            request.getfixturevalue(f"write_{name}")(tmp_path, *arguments)
        return name

    return write


@pytest.mark.parametrize("name", [*DATASETS, *SOURCES])
def test_every_dataset(name, tmp_path, write):
    """What all of them promise: two read-only uint8 splits of the asked size, the same on each call."""
    source = write(name)
    data, again = load_images(source, tmp_path, 16), load_images(source, tmp_path, 16)
    assert data.key == again.key and np.array_equal(data.train, again.train) and np.array_equal(data.test, again.test)
    assert len(data.train) > len(data.test) > 0
    for split in (data.train, data.test):
        assert split.dtype == np.uint8 and split.shape[1:] == data.shape and data.shape[1:] == (16, 16)
        assert split.max() > split.min()
        with pytest.raises(ValueError):
            split[0] = 0
    assert load_images(source, tmp_path, 8).key != data.key


@pytest.mark.parametrize("name", sorted({*DATASETS, *SOURCES} - {"digits", "hub"}))
def test_every_cache_is_used_and_follows_its_source(name, tmp_path, write, monkeypatch):
    source = write(name)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock.mdb"]
    first = load_images(source, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_fill", None)  # not called: the cache answers
        assert load_images(source, tmp_path).key == first.key
    if name == "cifar10":  # keyed by its contents
        files[0].write_bytes(files[0].read_bytes()[::-1])
    else:
        os.utime(sorted(files)[0], ns=(1, 1))
    assert load_images(source, tmp_path).key != first.key


# --- the user's own factory -------------------------------------------------------------------------------------------


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_images", sys.modules[__name__])


def test_dotted_path(own):
    data = load_images("own_images:pair")
    assert np.array_equal(data.train, TRAIN) and data.shape == (3, 16, 16) and data.name == "own_images:pair"
    assert TRAIN.flags.writeable and not data.train.flags.writeable


def test_an_image_data_is_taken_as_it_is(own):
    assert load_images("own_images:many_channels").shape == (16, 16, 3)


@pytest.mark.parametrize(
    "name, size, says",
    [
        ("own_images:floats", None, r"float64 \(6, 3, 16, 16\).*must be two uint8"),
        ("own_images:channels_last", None, r"images \(16, 16, 3\), which look like \(H, W, C\).*transpose\(0, 3, 1, 2"),
        ("own_images:single", None, r"pair \(train, test\)"),
        ("own_images:pair", 32, r"made images of \(3, 16, 16\), not --image_size 32"),
        ("own_images:nothing", None, "cannot be imported"),
        ("no_such_module:f", None, "cannot be imported .*no_such_module"),
    ],
)
def test_bad_factory(own, name, size, says):
    with pytest.raises(InputError, match=says) as error:
        load_images(name, image_size=size)
    one_line(error)


# --- folders ----------------------------------------------------------------------------------------------------------


def save_pngs(folder, count, mode="RGB", size=(20, 20)):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = RNG.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i:03}.png")
    return folder


def test_folder_split_is_fixed_and_complete(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for i in range(40):
        Image.new("L", (8, 8), i).save(root / f"{i:03}.bmp")  # whose bytes no version of a library changes
    data = load_images(f"folder:{root}", tmp_path, 8)
    train, test = data.train[:, 0, 0, 0].tolist(), data.test[:, 0, 0, 0].tolist()
    assert len(test) == 4 and sorted(train + test) == list(range(40))
    assert train == sorted(train) and test == [12, 13, 17, 24]  # pinned: a new split would mix test into train


def test_folder_with_two_images_or_train_and_test(tmp_path):
    data = load_images(f"folder:{save_pngs(tmp_path / 'two', 2)}", tmp_path)
    assert (len(data.train), len(data.test), data.shape) == (1, 1, (3, 20, 20))
    save_pngs(tmp_path / "given" / "train", 3)
    save_pngs(tmp_path / "given" / "test", 2)
    save_pngs(tmp_path / "given" / "other", 2)
    data = load_images(f"folder:{tmp_path / 'given'}", tmp_path)
    assert (len(data.train), len(data.test)) == (3, 2)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "PNG"])
def test_folder_resizes_the_short_side_and_crops_the_centre(suffix, tmp_path):
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 200  # the middle square alone is grey
    pixels[:32, 64:128] = 100
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / "in" / "deep" / f"{name}.{suffix}")
    image = load_images(f"folder:{tmp_path / 'in'}", tmp_path, 16).train[0].astype(int)
    assert np.abs(image[:, :7, 1:-1] - 100).max() <= 4  # the lossy formats need the 4
    assert np.abs(image[:, 9:, 1:-1] - 200).max() <= 4
    assert np.abs(image - image[..., ::-1]).max() <= 4 and image[:, :, 0].min() > 80  # both sides cut alike


def test_folder_keeps_one_size_and_tells_of_others(tmp_path, caplog):
    """MNIST's 28 x 28 goes through unchanged; what is resized is told of, from the cache as well."""
    caplog.set_level("INFO")
    folder = save_pngs(tmp_path / "in", 6, size=(28, 28))
    data = load_images(f"folder:{folder}", tmp_path)
    own = {np.asarray(Image.open(file)).tobytes() for file in folder.iterdir()}
    assert data.shape == (3, 28, 28) and not caplog.messages
    assert {image.transpose(1, 2, 0).tobytes() for image in (*data.train, *data.test)} == own
    assert load_images(f"folder:{folder}", tmp_path, 32).shape == (3, 32, 32)
    assert caplog.messages == [
        "folder:in: images of 28 x 28 are resized to 32 x 32 (--image_size)",
        "4 of 4 images were resized or cropped to 32 x 32",
        "2 of 2 images were resized or cropped to 32 x 32",
    ]
    caplog.clear()
    Image.new("RGB", (28, 30)).save(folder / "z.png")
    for _ in range(2):
        assert load_images(f"folder:{folder}", tmp_path).shape == (3, 32, 32)
        assert caplog.messages[0] == "folder:in: images of their own sizes are resized to 32 x 32 (--image_size)"
        caplog.clear()
    load_images("digits", tmp_path, 28)
    assert caplog.messages == ["digits: images of 8 x 8 are resized to 28 x 28 (--image_size)"]


@pytest.mark.parametrize(
    "modes, channels", [("L 1", 1), ("L LA I;16", 1), ("L RGB", 3), ("RGB L", 3), ("P P", 1), ("P RGB", 3)]
)
def test_folder_channels(modes, channels, tmp_path):
    (tmp_path / "in").mkdir()
    for i, mode in enumerate(modes.split()):
        grey = Image.new("L", (9, 9), 255 if mode == "1" else 51)
        if mode == "I;16":
            image = Image.fromarray(np.full((9, 9), 51 * 257, np.uint16))
            assert image.mode == mode
        else:
            image = grey.convert(mode)
        image.save(tmp_path / "in" / f"{i}.png")
    data = load_images(f"folder:{tmp_path / 'in'}", tmp_path, 8)
    assert data.shape[0] == channels
    everything = np.concatenate([data.train, data.test])
    assert sorted(everything[:, 0, 0, 0]) == sorted(255 if mode == "1" else 51 for mode in modes.split())


def test_transparency_lies_over_white(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "in" / f"{name}.png")
    assert (load_images(f"folder:{tmp_path / 'in'}", tmp_path, 8).train == 255).all()


def test_photographs_stand_upright(tmp_path):
    (tmp_path / "in").mkdir()
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: taken upside down
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png", exif=exif)
    image = load_images(f"folder:{tmp_path / 'in'}", tmp_path, 16).train[0, 0]
    assert image[:8].max() == 0 and image[8:].min() == 200


def png_of_claimed_size(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(pixels, kind):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


NOISE = encoded(RNG.integers(256, size=(64, 64, 3), dtype=np.uint8), "JPEG")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("bad.png", b"", "not a usable image"),
        ("bad.png", b"this is no picture", "not a usable image"),
        ("bad.jpg", NOISE[: len(NOISE) // 2], "truncated"),
        ("bad.tif", encoded(np.full((9, 9), 0.5, np.float32), "TIFF"), "floating-point"),
        ("bad.png", POSTSCRIPT, "cannot identify"),  # Pillow would run Ghostscript on it
        ("bad.png", png_of_claimed_size(8001, 6250), "50,006,250 pixels, at most 50,000,000"),
        ("bad.png", png_of_claimed_size(10_000, 10_000), "100,000,000 pixels, at most"),
        ("bad.png", png_of_claimed_size(100_000, 100_000), "pixels"),
    ],
    ids=["empty", "text", "truncated", "float", "postscript", "large", "larger", "largest"],
)
def test_bad_image_is_named_and_nothing_written(name, content, says, tmp_path):
    root = save_pngs(tmp_path / "in", 3)
    (root / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        load_images(f"folder:{root}", tmp_path / "data")
    assert str(root / name) in one_line(error)
    assert not (tmp_path / "data").exists()


def test_long_strips_are_cheap(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.new("L", (2_000_000, 1), 7).save(tmp_path / "in" / f"{name}.png")  # resized whole: 64 x 128,000,000
    assert (load_images(f"folder:{tmp_path / 'in'}", tmp_path, 64).train == 7).all()


@pytest.mark.parametrize("count, says", [(0, "0 images.*at least 2"), (1, "1 image in it"), (None, "not a folder")])
def test_empty_folder(count, says, tmp_path):
    if count is not None:
        save_pngs(tmp_path / "in", count)
        (tmp_path / "in" / "notes.txt").write_text("no image")
        (tmp_path / "in" / "._000.png").write_text("what macOS leaves")
    with pytest.raises(InputError, match=says) as error:
        load_images(f"folder:{tmp_path / 'in'}", tmp_path / "data")
    one_line(error)
    assert not (tmp_path / "data").exists()


def test_folder_key_follows_the_files(tmp_path, monkeypatch):
    root = save_pngs(tmp_path / "in", 4)
    key = load_images(f"folder:{root}", tmp_path).key
    monkeypatch.chdir(tmp_path)
    assert load_images("folder:in", tmp_path).key == key  # however the folder is spelt
    assert load_images("folder:in", tmp_path, 16).key != key
    os.utime(root / "000.png", ns=(1, 1))
    assert load_images("folder:in", tmp_path).key != key
