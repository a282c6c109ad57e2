"""A folder of image files as a data set: any formats and sizes, cropped to one square size."""

from functools import partial
from pathlib import Path

from gebm.data.cache import Images, Source, fingerprint
from gebm.data.transform import SQUARE, all_grey, common_size, decoded, files_from, tenth
from gebm.errors import InputError

__all__ = ["find", "image_files"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def find(root: str | Path) -> Source:
    """The images below `root`, sorted: those of `train/` and `test/` where both exist, else a fixed split of them.

    They are grey, (N, 1, H, W), if all files are. Their size is by default their own where some hundred of them are
    squares of one size, else 32.

    Raises:
        InputError: not a folder, or too few images in it; a file cannot be decoded.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"--dataset folder:{root}: not a folder; name an existing folder of images")
    if (root / "train").is_dir() and (root / "test").is_dir():
        splits = [image_files(root / name, at_least=1) for name in ("train", "test")]
    else:
        files = image_files(root, at_least=2)
        splits = [[files[i] for i in part] for part in tenth(len(files))]

    def read(size: int) -> tuple[Images, Images]:
        grey = all(all_grey(files_from(split)) for split in splits)
        train, test = (decoded(len(split), partial(files_from, split), size, grey) for split in splits)
        return train, test

    native = common_size(files_from([file for split in splits for file in split[:: max(1, len(split) // 100)]]))
    side = native[0] if native is not None and native[0] == native[1] else 32
    return Source(fingerprint(*splits), read, SQUARE, side, native)


def image_files(folder: Path, at_least: int) -> list[Path]:
    """The image files below a folder, sorted; raises InputError if there are fewer than `at_least`."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
    if len(files) < at_least:
        raise InputError(f"{folder}: {len(files)} images in it, at least {at_least} needed ({' '.join(SUFFIXES)})")
    return files
