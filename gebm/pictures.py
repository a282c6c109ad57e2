"""Sample grids and moving grids, as image files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gebm.files import atomic_write

__all__ = ["grid", "save_gif", "save_grid"]


def grid(images: np.ndarray, columns: int | None = None, side: int = 512) -> Image.Image:
    """Tile uint8 images (N, C, H, W), C = 1 or 3, into one picture, enlarged by whole factors towards `side` pixels."""
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, side // (columns * width))
    gap = scale
    shape = (rows * (height * scale + gap) + gap, columns * (width * scale + gap) + gap, channels)
    canvas = np.full(shape, 128, np.uint8)
    for i, image in enumerate(images):
        tile = image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
        top, left = gap + (i // columns) * (height * scale + gap), gap + (i % columns) * (width * scale + gap)
        canvas[top : top + height * scale, left : left + width * scale] = tile
    return Image.fromarray(canvas.squeeze(2) if channels == 1 else canvas)


def save_grid(path: str | Path, images: np.ndarray, columns: int | None = None) -> None:
    """Write the grid of uint8 images (N, C, H, W) as a PNG."""
    with atomic_write(path) as temporary:
        grid(images, columns).save(temporary, format="PNG")


def save_gif(path: str | Path, frames: Sequence[np.ndarray], columns: int | None = None, frame_s: float = 0.12) -> None:
    """Write grids of uint8 images (N, C, H, W) as a GIF that repeats, resting on its last frame."""
    first, *rest = (grid(frame, columns, side=240) for frame in frames)
    durations = [round(frame_s * 1000)] * (len(frames) - 1) + [1500]
    with atomic_write(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
