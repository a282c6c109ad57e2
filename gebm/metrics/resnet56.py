"""The CIFAR-10 ResNet-56, whose penultimate layer gives the features of FD(cifar-resnet56)."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gebm.bounded import open_regular
from gebm.errors import InputError

__all__ = ["ResNet56", "find_weights"]

WEIGHTS = "resnet56-4bfd9763.th"


class ResNet56(nn.Module):
    """Maps uint8 images (B, C, H, W), C = 1 or 3, to features (B, 64) of a classifier trained on CIFAR-10.

    Grey images are repeated in the three channels; sizes other than 32 x 32 are resized to it first, bilinearly and
    antialiased. `key` is the hash of the weights.

    Reference: He et al., *Deep residual learning for image recognition*, arXiv 1512.03385, section 4.2 (n = 9,
    parameter-free shortcuts).
    """

    name = "cifar-resnet56"
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16) for _ in range(9)))
        self.layer2 = nn.Sequential(*(_Block(32 if i else 16, 32) for i in range(9)))
        self.layer3 = nn.Sequential(*(_Block(64 if i else 32, 64) for i in range(9)))
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.key = ""

    @classmethod
    def from_file(cls, path: str | Path) -> ResNet56:
        """Reads a state dict (also one under the key `state_dict`, or saved from DataParallel); runs no code in it.

        Raises:
            InputError: no such file, not a file of tensors, or of another network.
        """
        try:
            with open_regular(path) as stream:
                data = stream.read()
        except OSError as error:
            raise InputError(f"{path}: cannot read the cifar-resnet56 weights ({error.strerror})") from error
        network = cls()
        try:
            saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            saved = saved.get("state_dict", saved)
            network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in saved.items()})
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
            raise InputError(f"{path}: damaged, or not weights of a CIFAR ResNet-56 (expected {WEIGHTS})") from error
        network.key = f"{cls.name} {hashlib.sha256(data).hexdigest()}"
        network.eval().requires_grad_(False)
        for module in network.modules():
            if isinstance(module, (_Block, ResNet56)):
                _fold_norms(module)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch: lacks it
        return network

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = images.float() / 255
        if x.shape[2:] != (32, 32):
            x = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Class logits (B, 10) of features."""
        logits: Tensor = self.linear(features.to(self.linear.weight))
        return logits

    def logits(self, images: Tensor) -> Tensor:
        """Class logits (B, 10) of uint8 images."""
        return self.classify(self(images))


class _Block(nn.Module):
    """Two convolutions beside a shortcut that subsamples and pads channels with zeros ("option A")."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.stride, self.pad = outputs // inputs, (outputs - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


def _fold_norms(module: nn.Module) -> None:
    """Folds bn1, bn2 of a module in eval mode into conv1, conv2."""
    for i in (1, 2):
        if hasattr(module, f"bn{i}"):
            conv, norm = getattr(module, f"conv{i}"), getattr(module, f"bn{i}")
            setattr(module, f"conv{i}", fuse_conv_bn_eval(conv, norm))
            setattr(module, f"bn{i}", nn.Identity())


def find_weights(weights: str | Path | None, data_path: str | Path) -> Path:
    """The given weights file; else `resnet56-4bfd9763.th` where it is looked for: `$GEBM_DATA`, then `data_path`.

    Raises:
        InputError: there is none; the message says where it was looked for.
    """
    if weights:
        places = [Path(weights)]
    else:
        roots = [Path(root) for root in (os.environ.get("GEBM_DATA"), data_path) if root]
        places = [root / "cifar10_resnets" / WEIGHTS for root in roots] + [Path(data_path) / WEIGHTS]
    for place in places:
        if place.is_file():
            return place
    raise InputError(f"no resnet56 weights: looked for {', '.join(map(str, places))}; give --fid_weights FILE")
