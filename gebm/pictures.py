"""Sample grids, moving grids and scatter plots, as image files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gebm.files import atomic_write

__all__ = ["grid", "save_gif", "save_grid", "save_pairs"]

PAIRS = 4  # columns of a table shown against one another at most
DOTS = 1000


def grid(images: np.ndarray, columns: int | None = None, side: int = 512) -> Image.Image:
    """Tile uint8 images (N, C, H, W), C = 1 or 3, into one picture, enlarged by whole factors towards `side` pixels.

    Example:

        >>> grid(np.zeros((6, 1, 8, 8), np.uint8), columns=3).size
        (588, 399)
    """
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


def save_pairs(path: str | Path, groups: Mapping[str, np.ndarray], columns: Sequence[str]) -> None:
    """Write scatter plots of the first columns of tables against one another, as a PNG.

    Arguments:
        groups: name -> rows (N, d), a column of pictures each; of many rows the first 1,000 are drawn.
        columns: names of the d columns.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = min(len(columns), PAIRS)
    pairs = [(i, j) for i in range(shown) for j in range(i + 1, shown)] or [(0, 0)]
    everything = np.concatenate(list(groups.values()))
    low, high = np.quantile(everything, (0.002, 0.998), axis=0)
    margin = 0.05 * (high - low)
    figure = Figure(figsize=(2.4 * len(pairs), 2.3 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(groups), len(pairs), squeeze=False, sharex="col", sharey="col")
    for row, (name, rows) in zip(axes, groups.items()):
        for axis, (i, j) in zip(row, pairs):
            axis.plot(rows[:DOTS, i], rows[:DOTS, j], ".", markersize=2, alpha=0.5, color="#0072b2")
            axis.set(xlim=(low[i] - margin[i], high[i] + margin[i]), ylim=(low[j] - margin[j], high[j] + margin[j]))
            axis.tick_params(labelsize=6)
            axis.set_ylabel(columns[j], fontsize=7, parse_math=False)  # a name may hold a $
        row[0].set_title(name, fontsize=8, loc="left", parse_math=False)
    for axis, (i, _) in zip(axes[-1], pairs):
        axis.set_xlabel(columns[i], fontsize=7, parse_math=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
