import numpy as np
import pytest
from PIL import Image, ImageSequence

from gebm.pictures import grid, save_gif, save_grid, save_pairs


def pictures(n: int, channels: int, height: int = 4, width: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, height, width), dtype=np.uint8)


def tiles(picture: Image.Image, images: np.ndarray, columns: int, scale: int) -> None:
    """Every image stands at its place, enlarged by `scale`, with grey around it."""
    canvas = np.asarray(picture)
    canvas = canvas[:, :, None] if canvas.ndim == 2 else canvas
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    assert canvas.shape == (rows * (height + 1) * scale + scale, columns * (width + 1) * scale + scale, channels)
    rest = np.ones(canvas.shape[:2], bool)
    for i, image in enumerate(images):
        top, left = (i // columns * (height + 1) + 1) * scale, (i % columns * (width + 1) + 1) * scale
        where = np.s_[top : top + height * scale, left : left + width * scale]
        assert np.array_equal(canvas[where], np.kron(image.transpose(1, 2, 0), np.ones((scale, scale, 1), np.uint8)))
        rest[where] = False
    assert (canvas[rest] == 128).all()


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("n, columns, used", [(1, None, 1), (9, None, 3), (7, None, 3), (6, 4, 4), (2, 5, 5)])
def test_grid(channels, mode, n, columns, used):
    images = pictures(n, channels)
    picture = grid(images, columns, side=used * 4 * 3 + 1)
    assert picture.mode == mode
    tiles(picture, images, used, scale=3)


def test_grid_never_shrinks_and_need_not_be_square():
    images = pictures(4, 3, height=6, width=10)
    tiles(grid(images, side=5), images, 2, scale=1)


def test_png(tmp_path):
    images = pictures(5, 3)
    save_grid(tmp_path / "grid.png", images, columns=2)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.format == "PNG"
        assert np.array_equal(np.asarray(picture), np.asarray(grid(images, 2)))
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_gif(tmp_path):
    frames = [pictures(4, 1, seed=s) for s in range(3)]
    save_gif(tmp_path / "chains.gif", frames, frame_s=0.2)
    with Image.open(tmp_path / "chains.gif") as gif:
        assert gif.format == "GIF" and gif.info["loop"] == 0
        durations, shown = [], []
        for frame in ImageSequence.Iterator(gif):
            durations.append(frame.info["duration"])
            shown.append(np.asarray(frame.convert("L")))
    assert durations == [200, 200, 1500]
    for picture, images in zip(shown, frames):
        tiles(Image.fromarray(picture), images, 2, scale=picture.shape[1] // (2 * 5 + 1))
    assert [p.name for p in tmp_path.iterdir()] == ["chains.gif"]


def test_names_of_columns_are_no_formulas(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 3))
    save_pairs(tmp_path / "pairs.png", {"rows": rows}, ["price ($) of $x^$", "$", r"\$_{"])
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.format == "PNG"
