"""Features of a convolutional network with random weights: they favour no data set and no model."""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from gebm.data.images import from_uint8

__all__ = ["RandomConv"]

WIDTHS = (16, 32, 32)


class RandomConv:
    r"""Means and standard deviations over space of the last of three random convolutions: 64 features.

    The weights are Gaussian of variance 2 / fan-in from one fixed seed, 3 x 3, each followed by a leaky rectifier; the
    first two have stride 2 where the image has 8 pixels or more in each direction. Grey images are seen as three equal
    channels. Untrained features see textures and edges that averages of pixels do not (Naeem et al., *Reliable Fidelity
    and Diversity Metrics for Generative Models*, ICML 2020, arXiv 2002.09797, take a random VGG16 in section 4).

    Example:

        >>> RandomConv()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 64])
    """

    name = "random-conv"

    def __init__(self) -> None:
        generator, ins = torch.Generator().manual_seed(0), (3, *WIDTHS)
        self.weights = [
            torch.randn(out, into, 3, 3, generator=generator) * (2 / (9 * into)) ** 0.5
            for into, out in zip(ins, WIDTHS)
        ]
        digest = hashlib.sha256(b"".join(w.numpy().tobytes() for w in self.weights))
        self.key = f"{self.name} {digest.hexdigest()[:16]}"

    def __call__(self, images: Tensor) -> Tensor:
        x = from_uint8(images)
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        for i, weight in enumerate(self.weights):
            stride = 2 if i < 2 and min(x.shape[2:]) >= 8 else 1
            x = F.leaky_relu(F.conv2d(x, weight.to(x.device), stride=stride, padding=1), 0.2)
        return torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0)], 1)
