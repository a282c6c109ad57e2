"""A small classifier of scikit-learn's digits, whose penultimate layer gives the features of FD(digits-cnn)."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gebm.data.images import DIGITS_TEST, from_uint8, labelled_digits
from gebm.errors import InputError
from gebm.metrics import cache

__all__ = ["DigitsCNN"]

VERSION = 1  # raise it when architecture or training change, so that no older weights are used
EPOCHS, BATCH_SIZE = 20, 128


class DigitsCNN(nn.Module):
    """Maps grey uint8 images (B, 1, H, W) to features (B, 64); sizes other than 8 x 8 are resized to it first.

    Three 3 x 3 convolutions with batch norm and ReLU, averaged over the image. `key` is the hash of the weights.
    """

    name = "digits-cnn"

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in (1, 32, 1), (32, 64, 2), (64, 64, 1):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(64, 10)
        self.key = ""

    @classmethod
    def cached(cls, cache_dir: str | Path) -> DigitsCNN:
        """The trained classifier, from `cache_dir` if it is there and whole; else trained (a few seconds) and kept."""
        images, labels = (torch.from_numpy(x[:-DIGITS_TEST]) for x in labelled_digits())
        data = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        key = f"digits-cnn v{VERSION} trained on {data}"
        path = Path(cache_dir) / f"digits-cnn-v{VERSION}.safetensors"
        network = cls()
        weights = cache.load(path, key)
        if weights is None:
            weights = _train(images, labels)
            cache.save(path, key, weights)
        network.load_state_dict(weights)
        network.key = f"{cls.name} {cache.content_hash(weights)}"
        return network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != 1:
            raise InputError(f"features digits-cnn: needs grey images, got {images.shape[1]} channels; use pixels")
        x = from_uint8(images)
        if x.shape[2:] != (8, 8):
            x = F.interpolate(x, (8, 8), mode="bilinear", antialias=True)
        return self.features(x)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, 64) of float images (B, 1, 8, 8) in [-1, 1]."""
        features: Tensor = self.body(x)
        return features.mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Class logits (B, 10) of features."""
        logits: Tensor = self.head(features.to(self.head.weight))
        return logits

    def logits(self, images: Tensor) -> Tensor:
        """Class logits (B, 10) of uint8 images."""
        return self.classify(self(images))


def _train(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Weights trained from a fixed seed on one thread, so that equal machines get equal features.

    Averaging over the image and weight decay are enough for features that generalise: held-out digits are as near to
    the training digits as these are among themselves. Random shifts of a pixel only cost accuracy (0.5 to 1 %).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            network = DigitsCNN()
            steps = EPOCHS * math.ceil(len(images) / BATCH_SIZE)
            optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps)
            x = from_uint8(images)
            for _ in range(EPOCHS):
                for batch in torch.split(torch.randperm(len(images)), BATCH_SIZE):
                    loss = F.cross_entropy(network.head(network.features(x[batch])), labels[batch])
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]  # torch: untyped
                    optimiser.step()
                    schedule.step()
    finally:
        torch.set_num_threads(threads)
    return network.state_dict()
