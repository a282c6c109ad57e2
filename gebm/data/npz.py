"""Images in an .npz file of numpy."""

from pathlib import Path

import numpy as np

from gebm.data.arrays import headers, load_npz
from gebm.data.cache import Images, Source, fingerprint, from_array
from gebm.data.splits import BY_CONTENT, by_content, given_splits, hash_of, like_a_split
from gebm.data.transform import SQUARE, resize
from gebm.data.walk import say_once
from gebm.errors import InputError

__all__ = ["find"]

EXPECTED = "uint8 (N, C, H, W), (N, H, W, C) or (N, H, W), C 1 or 3"

CONVERT = {  # kind of values -> how to bring them to uint8
    "f": "; of values in 0..1 save (255 * x).round().astype('uint8')",
    "i": "; of values in 0..255 save x.astype('uint8')",
    "u": "; of values in 0..255 save x.astype('uint8')",
    "b": "; save 255 * x.astype('uint8')",
}


def find(path: str | Path) -> Source:
    """The arrays `train` and `test` (or `val`) of a file, or its only one, of which a tenth by content is for testing.

    Each is uint8 (N, C, H, W), (N, H, W, C) or (N, H, W), C 1 or 3, H and W at least 4, and is read whole. By
    default the images are taken as they are, of any size.

    Raises:
        InputError: not an .npz, or other arrays than these.
    """
    path = Path(path)
    if not path.is_file():
        found = f"a folder; of images write folder:{path}" if path.is_dir() else "no such file; name an .npz of numpy"
        raise InputError(f"--dataset npz:{path}: {found}")
    shapes = headers(path)
    pair = given_splits(shapes, str(path))
    if not pair and len(shapes) != 1:
        raise InputError(
            f"{path}: holds {', '.join(shapes) or 'no arrays'}; it must hold the arrays train and test, or one alone"
        )
    names = pair or tuple(shapes)
    if not pair and like_a_split(names[0]):
        say_once(
            f"{path}: holds {names[0]} alone; a tenth of it, by content, is for testing and the rest for training",
            str(path.absolute()),
        )
    if left_out := ", ".join(name for name in shapes if name not in names):
        say_once(f"{path}: left out the arrays {left_out}", str(path.absolute()))
    layouts = {name: _layout(f"{path}: {name}", *shapes[name]) for name in names}
    sizes = {tuple(shapes[name][0][axis] if axis else 1 for axis in layouts[name]) for name in names}
    if len(sizes) != 1:
        there = ", ".join(f"{name} is {shapes[name][0]}" for name in names)
        raise InputError(f"{path}: {there}; their images must agree")
    ((_, height, width),) = sizes
    if not pair and shapes[names[0]][0][0] < 2:
        raise InputError(f"{path}: one image; at least 2 are needed, one to train on and one to test on")

    def read(size: int) -> tuple[Images, Images]:
        arrays = _read(path, layouts)
        if pair is None:
            arrays = [arrays[0][part] for part in by_content(np.array([*map(hash_of, arrays[0])], np.uint64))]
        train, test = (from_array(resize(array, size) if size else array) for array in arrays)
        return train, test

    side = height if height == width else 0
    return Source(fingerprint([path]), read, f"{SQUARE}; {BY_CONTENT}", side, (height, width), drawn=pair is None)


def _layout(title: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int]:
    """The axes of channels, height and width; that of channels is 0 where there is none."""
    layouts = [(0, 1, 2)] if len(shape) == 3 else [(1, 2, 3), (3, 1, 2)] if len(shape) == 4 else []
    # sides of 4 or more tell a channel from a side, and many images from one (H, W, 3)
    fitting = [(c, h, w) for c, h, w in layouts if (not c or shape[c] in (1, 3)) and min(shape[h], shape[w]) >= 4]
    if dtype != np.uint8 or len(fitting) != 1 or not shape[0]:
        convert = CONVERT.get(dtype.kind, "") if fitting else ""
        raise InputError(f"{title} is {dtype} {shape}, must be {EXPECTED}, sides of 4 or more{convert}")
    return fitting[0]


def _read(path: Path, layouts: dict[str, tuple[int, int, int]]) -> list[np.ndarray]:
    """The arrays as (N, C, H, W)."""
    arrays = load_npz(path, layouts)
    found = (arrays[name] for name in layouts)  # in their order, not in the file's
    return [
        array.transpose(0, *layout) if array.ndim == 4 else array[:, None]
        for array, layout in zip(found, layouts.values())
    ]
