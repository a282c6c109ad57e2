"""What an opened image file holds: one picture or several, grey or coloured, and values of which range."""

import numpy as np
from PIL import Image

__all__ = ["eight_bits", "has_several", "is_grey"]

GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO = 0  # value of PHOTOMETRIC; Pillow heeds it up to 8 bits
SIGNED = 2  # value of SAMPLE_FORMAT


def has_several(image: Image.Image) -> bool:
    """Whether a file holds several pictures, as the pages of a TIFF or an animation."""
    if image.format == "TIFF":
        return bool(getattr(image, "n_frames", 1) > 1)
    return bool(getattr(image, "is_animated", False))


def is_grey(image: Image.Image) -> bool:
    """Whether an opened image is grey: by its mode, or, of a palette, by the entries that it uses.

    One with a palette is decoded for that; of others the header says it.
    """
    if image.mode != "P":
        return image.mode in GREY
    palette = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    used = np.flatnonzero(image.histogram())
    colours = palette[used[used < len(palette)]]  # beyond its end all is black
    return bool((colours == colours[:, :1]).all())


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 12 or 16 bits as one of 8, its range scaled to 0..255 and rounded; others as they are.

    Raises:
        ValueError: the range of its values is not known: floating point, 32 bits, signed.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels, of unknown range; save it with 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})
    signed = SIGNED in np.atleast_1d(tags.get(SAMPLE_FORMAT, ()))
    if signed or image.mode == "I" and image.format != "PNG":  # of which older versions of Pillow open 16 bits so
        raise ValueError("integer pixels of 32 bits or with a sign, of unknown range; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    most = 4095 if tuple(np.atleast_1d(tags.get(BITS, ()))) == (12,) else 65535
    levels = np.clip(np.asarray(image), 0, most).astype(np.uint32)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = most - levels
    return Image.fromarray(((levels * 255 + most // 2) // most).astype(np.uint8))  # rounded: `most` is odd
