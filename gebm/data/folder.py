"""A folder of image files as a data set: any formats and sizes, cropped to one square size."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gebm.errors import InputError

__all__ = ["find", "fingerprint", "read"]

MAX_PIXELS = 64_000_000  # of one image: a small file can unpack to any size
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # whatever the suffix says, Pillow tries no others
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")

Splits = tuple[list[Path], list[Path]]


def find(root: Path) -> Splits:
    """Returns the image files below `root`, sorted: those of `train/` and `test/` where both exist, else a fixed split.

    The fixed split draws a tenth of the files, at least one, as the test split.

    Raises:
        InputError: not a folder, or too few images in it.
    """
    if not root.is_dir():
        raise InputError(f"--dataset folder:{root}: not a folder; name an existing folder of images")
    root = root.resolve()
    if (root / "train").is_dir() and (root / "test").is_dir():
        return _images(root / "train", at_least=1), _images(root / "test", at_least=1)
    files = _images(root, at_least=2)
    order = np.random.RandomState(0).permutation(len(files))  # the legacy generator's stream never changes
    n_test = max(1, round(0.1 * len(files)))
    return [files[i] for i in sorted(order[n_test:])], [files[i] for i in sorted(order[:n_test])]


def fingerprint(splits: Splits) -> str:
    """Returns a hash of every file's path, size and time of change.

    Not of the contents: a folder may hold 100 GB, and to read it at each start is the cost that the cache is there to
    save. The full path is in it since two folders may agree in names, sizes and times (unpacked archives do).
    """
    stats = [[(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files] for files in splits]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def read(splits: Splits, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (train, test), uint8 (N, C, size, size): short side resized, centre cropped; C = 1 if all are grey.

    Raises:
        InputError: a file cannot be decoded, or has more than `MAX_PIXELS` pixels.
    """
    arrays, grey = [], True
    for files in splits:
        images = np.empty((len(files), 3, size, size), np.uint8)
        for out, path in zip(images, files):
            out[:], is_grey = _decode(path, size)
            grey = grey and is_grey
        arrays.append(images)
    train, test = (images[:, :1] if grey else images for images in arrays)
    return train, test


def _images(folder: Path, at_least: int) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
    if len(files) < at_least:
        raise InputError(f"{folder}: {len(files)} images in it, at least {at_least} needed ({' '.join(SUFFIXES)})")
    return files


def _decode(path: Path, size: int) -> tuple[np.ndarray, bool]:
    """Returns one image as uint8 (3, size, size), and whether it is grey (then the three planes are equal)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            image = Image.open(path, formats=FORMATS)
        with image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise ValueError(f"{pixels:,} pixels, at most {MAX_PIXELS:,} allowed")
            grey = image.mode in GREY
            # fit() crops before it resizes, so a strip of 1 x 10^7 pixels never becomes 32 x 10^8
            image = ImageOps.fit(_rgb(image), (size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # a damaged file makes Pillow raise anything from OSError to SyntaxError
        raise InputError(f"{path}: not a usable image ({error}); replace or remove it") from error
    return np.asarray(image).transpose(2, 0, 1), grey


def _rgb(image: Image.Image) -> Image.Image:
    """Returns an image upright (EXIF), transparency laid over white, as 8-bit RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, of unknown range")
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip it at 255
        image = Image.fromarray(np.rint(np.clip(np.asarray(image), 0, 65535) / 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
