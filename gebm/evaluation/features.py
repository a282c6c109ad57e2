"""Features of samples of any kind, as networks see them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm.data.given import levels_of
from gebm.data.images import pixels
from gebm.errors import InputError
from gebm.metrics import Extractor, choose_features, extract
from gebm.metrics.features import Pixels

__all__ = ["Features", "features_of"]

MOST_VALUES = 64  # of samples that are no images; more are projected down to so many


@dataclass(frozen=True)
class Features:
    """A map from samples (n, ...), as the base makes them, to features (n, d), float64 on the CPU, and its name."""

    name: str
    of: Callable[[Tensor], Tensor]
    extractor: Extractor


class _Values:
    """The values themselves, or where they are many, their projections on random directions, always the same ones."""

    def __init__(self, shape: tuple[int, ...]):
        self.many = math.prod(shape) > MOST_VALUES
        self.name = f"{MOST_VALUES} random projections" if self.many else "values"
        self.key = f"{self.name} of {shape}"

    def __call__(self, images: Tensor) -> Tensor:
        x = images.detach().cpu().double().flatten(1)
        if not self.many:
            return x
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(x.shape[1], MOST_VALUES, generator=generator, dtype=torch.float64)
        projected: Tensor = x @ (directions / directions.norm(dim=0))
        return projected


def features_of(items: Any, asked: Extractor | str | None = None, data_path: str | Path = "data") -> list[Features]:
    """Feature sets for samples like some data, the most general first.

    Arguments:
        items: the data, as `gebm.data.given.as_items` gives them.
        asked: a name in `gebm.metrics.features.FEATURES`, a dotted path, or an extractor of uint8 images; None: for
            images their pixels averaged to 8 x 8 and a random network, and a classifier where one is known; for other
            data their values.
        data_path: where the weights of classifiers are looked for.

    Raises:
        InputError: features of images of data that are no images, an unknown name, or weights that are missing.
    """
    levels, shape = levels_of(items), (*items.shape[1:],)
    if levels is None:
        if asked is not None:
            raise InputError(
                "features: are of images, uint8 or floats in [0, 1] or [-1, 1] with 1 or 3 channels; leave them out"
            )
        values = _Values(shape)
        return [Features(values.name, values, values)]

    def chosen(name: str) -> Extractor:
        return choose_features(name, "", shape, data_path=data_path)[0]

    if asked is None:
        general = [Pixels(8) if max(shape[1:]) > 8 else Pixels(), chosen("random-conv"), chosen("auto")]
        extractors = list({extractor.key: extractor for extractor in general}.values())
    else:
        extractors = [chosen(asked) if isinstance(asked, str) else asked]
    return [Features(e.name, partial(_of_images, extractor=e, levels=levels), e) for e in extractors]


def _of_images(samples: Tensor, extractor: Extractor, levels: tuple[float, float]) -> Tensor:
    return extract(pixels(samples, levels), extractor)
