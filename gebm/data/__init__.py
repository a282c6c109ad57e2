"""Data: images as one uint8 array, batches cut from it on the device that trains."""

from gebm.data.images import (
    DATASETS,
    Batches,
    ImageData,
    at_random,
    from_uint8,
    labelled_digits,
    load_images,
    set_aside,
    to_uint8,
)

__all__ = ["DATASETS", "Batches", "ImageData", "at_random", "from_uint8", "labelled_digits", "load_images"]
__all__ += ["set_aside", "to_uint8"]
