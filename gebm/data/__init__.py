"""Data: images as one uint8 array, tables as one float array, batches cut from either on the device that trains."""

from gebm.data.batches import Batches
from gebm.data.images import (
    DATASETS,
    ImageData,
    at_random,
    from_uint8,
    labelled_digits,
    load_images,
    set_aside,
    to_uint8,
)
from gebm.data.table_files import read_rows
from gebm.data.tabular import TABLES, TableData, load_table
from gebm.data.toy import TOYS, Toy

__all__ = ["DATASETS", "Batches", "ImageData", "at_random", "from_uint8", "labelled_digits", "load_images"]
__all__ += ["TABLES", "TOYS", "TableData", "Toy", "load_table", "read_rows", "set_aside", "to_uint8"]
