"""Pixels of other ranges than 0 to 255, and what counts as grey."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gebm.data import load_images
from gebm.errors import InputError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()


def save(pixels: np.ndarray, suffix: str, count: int = 4, **options) -> None:
    for i in range(count):
        Image.fromarray(np.roll(pixels, i, axis=0)).save(f"in/{i}{suffix}", **options)


def load():
    return load_images("folder:in", "data", 8)


def ramp(most: int, dtype) -> np.ndarray:
    """8 x 8, from 0 to `most`."""
    return np.linspace(0, most, 64).round().astype(dtype).reshape(8, 8)


@pytest.mark.parametrize("most", [255, 4095, 65535, 2**31 - 1])
def test_32_bit_integers_are_of_unknown_range(most):
    save(ramp(most, np.int32), ".tif")
    with pytest.raises(
        InputError, match=r"in/\d.tif: .*integer pixels of 32 bits or with a sign, of unknown range"
    ) as error:
        load()
    assert "\n" not in str(error.value) and not Path("data").exists()


def test_signed_16_bits_are_of_unknown_range():
    tiff = Image.fromarray(ramp(32767, np.uint16))
    for i in range(3):
        tiff.save(f"in/{i}.tif", tiffinfo={339: 2})  # SampleFormat: signed
    with pytest.raises(InputError, match="integer pixels of 32 bits or with a sign, of unknown range"):
        load()


@pytest.mark.parametrize("bits", [8, 16])
def test_white_may_be_zero(bits):
    """TIFF, PhotometricInterpretation 0, of which the file's highest value is black."""
    pixels = ramp(2**bits - 1, np.uint8 if bits == 8 else np.uint16)
    for i in range(4):
        Image.fromarray(np.roll(pixels, i, axis=0)).save(f"in/{i}.tif", tiffinfo={262: 0})
    with Image.open("in/0.tif") as image:
        assert image.tag_v2[262] == 0
    # Pillow's writer turns values of 8 bits round, and leaves those of 16 as they are.
    shown = pixels if bits == 8 else 255 - np.rint(pixels / 257)
    found = load().train[:, 0]
    assert min(np.abs(found - np.roll(shown, i, 0)).max(axis=(1, 2)).min() for i in range(4)) == 0


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_scaled_to_8(suffix, caplog):
    save(ramp(65535, np.uint16), suffix)
    data = load()
    assert data.train.max() == 255 and data.train.min() == 0 and data.shape == (1, 8, 8)
    expected = np.rint(ramp(65535, np.uint16) / 257)
    assert min(np.abs(data.train[:, 0] - np.roll(expected, i, 0)).max(axis=(1, 2)).min() for i in range(4)) == 0
    assert not caplog.text


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_12_bits_in_16_are_told_of(suffix, caplog):
    save(ramp(4095, np.uint16), suffix)
    assert load().train.max() == 16
    assert "folder:in: brightest pixel 16 of 255" in caplog.text and "multiply them by 15.9" in caplog.text


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks_of_0_and_1_are_told_of(suffix, caplog):
    save(RNG.integers(2, size=(8, 8), dtype=np.uint8), suffix)
    load()
    assert "folder:in: brightest pixel 1 of 255" in caplog.text and "multiply them by 255" in caplog.text


@pytest.mark.parametrize("pair", [True, False])
def test_arrays_of_0_and_1_are_told_of(pair, caplog):
    arrays = {name: RNG.integers(2, size=(30, 8, 8), dtype=np.uint8) for name in ("train", "test")}
    np.savez("a.npz", **(arrays if pair else {"x": arrays["train"]}))
    load_images("npz:a.npz", "data")
    load_images("npz:a.npz", "data")  # from the cache, and said once
    assert caplog.text.count("npz:a.npz: brightest pixel 1 of 255") == 1


@pytest.mark.parametrize("dark, told", [(20, True), (39, True), (4, False)])
def test_images_of_several_ranges_are_told_of(dark, told, caplog):
    """Of 40 some of 12 bits in 16, as when two scanners filled one folder."""
    images = RNG.integers(256, size=(40, 8, 8), dtype=np.uint8)
    images[:dark] //= 16
    np.savez("a.npz", images)
    for _ in range(2):  # the second time from the cache, and said once
        load_images("npz:a.npz", "data")
    said = f"npz:a.npz: {dark} of 40 images have no pixel above 15 of 255, others do"
    assert caplog.text.count(said) == told and len(caplog.messages) == told


def test_one_value_everywhere_is_told_of(caplog):
    np.savez("a.npz", np.full((20, 8, 8), 255, np.uint8))
    load_images("npz:a.npz", "data")
    assert "npz:a.npz: every pixel of every image is 255" in caplog.text


@pytest.mark.parametrize("most", [128, 200, 255])
def test_ordinary_images_are_not_told_of(most, caplog):
    np.savez("a.npz", RNG.integers(most + 1, size=(40, 8, 8), dtype=np.uint8))
    load_images("npz:a.npz", "data")
    assert not caplog.text


def test_true_12_bit_tiffs_are_scaled_by_their_range():
    from gebm.data.levels import eight_bits

    image = Image.fromarray(ramp(4095, np.uint16))
    image.format, image.tag_v2 = "TIFF", {258: (12,)}
    assert np.array_equal(np.asarray(eight_bits(image)), np.rint(ramp(4095, np.uint16) * (255 / 4095)))


# --- several pictures in a file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".png", ".webp"])
def test_of_several_pictures_in_a_file_the_first_is_read_and_that_is_told(suffix, caplog):
    frames = [Image.fromarray(np.roll(ramp(255, np.uint8), i, axis=0)) for i in range(4)]
    options = {"lossless": True} if suffix == ".webp" else {}
    for i in range(2):
        frames[i].save(f"in/{i}{suffix}", save_all=True, append_images=frames[2:], **options)
    frames[3].save("in/single.png")
    data = load()
    found = np.concatenate([data.train, data.test])[:, 0]
    expected = np.stack([np.asarray(frames[i]) for i in (0, 1, 3)])
    assert {image.tobytes() for image in found} == {image.tobytes() for image in expected}
    assert re.search(
        rf"in/0{suffix} (holds|and 1 other file hold) several pictures; left out all but the fir", caplog.text
    )
    assert "single" not in caplog.text


# --- grey -------------------------------------------------------------------------------------------------------------


def palette(colours: np.ndarray, indices: np.ndarray) -> Image.Image:
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(colours.astype(np.uint8).ravel().tolist())
    return image


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".tif"])
@pytest.mark.parametrize("unused", [False, True])
def test_grey_palettes_are_grey(suffix, unused):
    colours = np.repeat(RNG.permutation(256)[:, None], 3, 1)
    if unused:
        colours[250:] = [[255, 0, 0]] * 6
    indices = RNG.integers(250, size=(4, 8, 8), dtype=np.uint8)
    for i in range(4):
        palette(colours, indices[i]).save(f"in/{i}{suffix}")
    data = load()
    assert data.shape == (1, 8, 8)
    found = {image.tobytes() for split in (data.train, data.test) for image in split}
    assert found == {colours[i, 0].astype(np.uint8).tobytes() for i in indices}


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".tif"])
def test_palettes_with_a_colour_are_not(suffix):
    colours = np.repeat(np.arange(256)[:, None], 3, 1)
    colours[7] = 255, 0, 0
    indices = RNG.integers(250, size=(4, 8, 8), dtype=np.uint8)
    indices[:, 0, 0] = 7
    for i in range(4):
        palette(colours, indices[i]).save(f"in/{i}{suffix}")
    assert load().shape == (3, 8, 8)
