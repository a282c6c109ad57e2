"""What is done to an image on its way into the cache: decoded, short side resized, centre cropped."""

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from gebm.bounded import check_regular
from gebm.data.cache import CHUNK, Images
from gebm.data.levels import eight_bits, has_several, is_grey
from gebm.data.walk import say_once
from gebm.errors import InputError

__all__ = ["BILINEAR", "SQUARE", "Files", "all_grey", "as_they_are", "common_size", "decoded", "files_from", "resize"]

BILINEAR = "bilinear"
SQUARE = "short side resized bilinear, centre crop"
MAX_PIXELS = 50_000_000  # of one image, as its header says before it is decoded: a small file can unpack to any size
MAX_ENCODED = 256 << 20  # bytes of an image file
LARGE = 2_000_000  # pixels; of larger images one is decoded at a time, in up to 12 bytes a pixel
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF")  # whatever the suffix says, Pillow tries no others
THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes and resizes without Python's lock

T = TypeVar("T")

log = logging.getLogger("gebm")

_one_at_a_time = Lock()

Files = Iterable[tuple[str, Path | bytes]]  # of each a name for errors, and the path or the content


def decoded(count: int, files: Callable[[int], Files], size: int, grey: bool = False) -> Images:
    """The `count` images of `files(start)`, which yields them from number `start` on, as (count, C, size, size).

    C is 1 if `grey`, else 3. A damaged file raises InputError with its name.
    """

    def blocks(start: int) -> Iterator[np.ndarray]:
        rest, resized, several = iter(files(start)), 0, set[str]()
        with ThreadPoolExecutor(THREADS) as pool:
            while chunk := list(islice(rest, CHUNK)):
                with _quiet():  # here, as it sets the state of all threads
                    images = list(pool.map(partial(_decode, size=size, grey=grey, several=several), chunk))
                resized += sum(changed for _, changed in images)
                yield np.stack([pixels for pixels, _ in images])
        if resized:
            log.info("%d of %d images were resized or cropped to %d x %d", resized, count - start, size, size)
        if several:
            more = len(several) - 1
            others = f" and {more:,} other file{'s' if more > 1 else ''} hold" if more else " holds"
            say_once(f"{min(several)}{others} several pictures; left out all but the first")

    return Images((count, 1 if grey else 3, size, size), blocks)


def files_from(paths: list[Path], start: int = 0) -> Files:
    """The files at `paths[start:]`."""
    return ((str(path), path) for path in paths[start:])


def as_they_are(paths: list[Path], shape: tuple[int, int, int]) -> np.ndarray:
    """Images that are (C, H, W) already, uint8 (N, C, H, W); one that is not raises InputError with its name."""

    def pixels(image: Image.Image) -> np.ndarray:
        if (image.height, image.width) != shape[1:]:
            raise ValueError(f"{image.height} x {image.width} pixels, the data set's are {shape[1]} x {shape[2]}")
        upright = _rgb(image)
        return np.asarray(upright.convert("L"))[None] if shape[0] == 1 else np.asarray(upright).transpose(2, 0, 1)

    with _quiet():
        return np.stack([_opened(file, pixels) for file in files_from(paths)])


def all_grey(files: Files) -> bool:
    """Whether all files hold grey images.

    Only headers are read, and the pixels of images with a palette (`is_grey`); none after the first image in colour.
    """
    with _quiet():
        return all(_opened(file, is_grey) for file in files)


def common_size(files: Files) -> tuple[int, int] | None:
    """Height and width, if all files agree. Only headers are read, and none after the first of another size."""
    first = None
    with _quiet():
        for file in files:
            size = _opened(file, lambda image: (image.height, image.width))
            if first not in (None, size):
                return None
            first = size
    return first


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes uint8 (N, C, H, W) to (N, C, size, size): as `decoded` does, plane by plane."""
    count, channels, height, width = images.shape
    if (height, width) == (size, size):
        return images
    planes = (Image.fromarray(plane) for plane in images.reshape(-1, height, width))
    return np.stack([np.asarray(_square(plane, size)) for plane in planes]).reshape(count, channels, size, size)


def _decode(file: tuple[str, Path | bytes], size: int, grey: bool, several: set[str]) -> tuple[np.ndarray, bool]:
    """One image as uint8 (C, size, size), and whether it had another size; a file of several joins `several`."""

    def first(image: Image.Image) -> tuple[Image.Image, bool]:
        if has_several(image):
            several.add(file[0])
        return _square(_rgb(image), size), image.size != (size, size)

    image, changed = _opened(file, first)
    return np.asarray(image.convert("L"))[None] if grey else np.asarray(image).transpose(2, 0, 1), changed


def _opened(file: tuple[str, Path | bytes], use: Callable[[Image.Image], T]) -> T:
    """`use` of the opened image."""
    name, content = file
    try:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if isinstance(content, Path):
            check_regular(content)
        if size > MAX_ENCODED:
            raise ValueError(f"{size:,} bytes, at most {MAX_ENCODED:,} allowed")
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise ValueError(f"{pixels:,} pixels, at most {MAX_PIXELS:,} allowed")
            with _one_at_a_time if pixels > LARGE else nullcontext():
                return use(image)
    except Exception as error:  # a damaged file makes Pillow raise anything from OSError to SyntaxError
        raise InputError(
            f"{name}: not a usable image ({' '.join(str(error).split())}); replace or remove it"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warning of large images: our own limit is lower."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _square(image: Image.Image, size: int) -> Image.Image:
    """Resizes the short side to `size`, bilinear and antialiased, and crops the centre; rounds as torchvision does.

    The two are one resize of a box, so a strip of 1 x 10^7 pixels never becomes 32 x 10^8.
    """
    short = min(image.size)
    resized = [size * side // short for side in image.size]
    left, top = (round((side - size) / 2) for side in resized)
    x, y = (side / new for side, new in zip(image.size, resized))
    box = left * x, top * y, (left + size) * x, (top + size) * y
    return image.resize((size, size), Image.Resampling.BILINEAR, box)


def _rgb(image: Image.Image) -> Image.Image:
    """Returns an image upright (EXIF), transparency laid over white, as 8-bit RGB."""
    ImageOps.exif_transpose(image, in_place=True)
    image = eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image if image.mode == "RGBA" else image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")
