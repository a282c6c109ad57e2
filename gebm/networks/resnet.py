"""The residual pair of SNGAN (Miyato et al. 2018) at the width of the paper's ResNet table."""

import math

from torch import Tensor, nn

from gebm.networks.common import ImageEnergy, doublings, initialise, scaled, spectral_norm
from gebm.networks.resampling import Paired

__all__ = ["ResNetBase", "ResNetEnergy"]


class _Residual(nn.Module):
    """Sum of a path and a bypass."""

    def __init__(self, path: nn.Module, bypass: nn.Module):
        super().__init__()
        self.path = path
        self.bypass = bypass

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.path(x) + self.bypass(x)
        return y


def _xavier(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    initialise(layer, lambda w: nn.init.xavier_uniform_(w, gain))
    return layer


def _up_block(channels: int) -> nn.Module:
    conv1, conv2 = (_xavier(nn.Conv2d(channels, channels, 3, 1, 1), math.sqrt(2)) for _ in range(2))
    norm1, norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
    path = Paired(norm1, nn.ReLU(), nn.Upsample(scale_factor=2), conv1, norm2, nn.ReLU(), conv2)
    return _Residual(path, nn.Upsample(scale_factor=2))


def _energy_block(channels: int, out: int, down: bool, first: bool = False) -> nn.Module:
    """ReLU, conv, ReLU, conv, with spectral norm; `first` starts from the image, so without the leading ReLU."""
    conv1 = spectral_norm(_xavier(nn.Conv2d(channels, out, 3, 1, 1), math.sqrt(2)))
    conv2 = spectral_norm(_xavier(nn.Conv2d(out, out, 3, 1, 1), math.sqrt(2)))
    path = [conv1, nn.ReLU(), conv2] if first else [nn.ReLU(), conv1, nn.ReLU(), conv2]
    if not down:
        return _Residual(nn.Sequential(*path), nn.Identity())
    project = spectral_norm(_xavier(nn.Conv2d(channels, out, 1)))
    # Mean pooling commutes with a convolution 1x1, which is four times as cheap after it.
    return _Residual(Paired(*path, nn.AvgPool2d(2)), nn.Sequential(nn.AvgPool2d(2), project))


class ResNetBase(nn.Module):
    """Residual up-sampling blocks of constant width.

    At 32x32x3 (paper.md section 4): Linear 100 -> 4x4x128; three blocks (BN, ReLU, nearest x2, conv3, BN, ReLU,
    conv3; bypass nearest x2); BN, ReLU, conv3 to the image; tanh.

    Arguments:
        image_shape: (C, H, W), H = W 8, 16, 28, 32 or 64.
        latent_dim: dimension d of z.
        width: factor on the 128 channels.

    Shapes: latents (N, d) -> images (N, C, H, W) in [-1, 1].
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int = 100, width: float = 1.0):
        super().__init__()
        channels, (side, levels) = scaled(128, width), doublings(image_shape)
        self.layers = nn.Sequential(
            _xavier(nn.Linear(latent_dim, channels * side**2)),
            nn.Unflatten(1, (channels, side, side)),
            *(_up_block(channels) for _ in range(levels)),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            _xavier(nn.Conv2d(channels, image_shape[0], 3, 1, 1)),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.layers(z)
        return images


class ResNetEnergy(ImageEnergy):
    """Residual blocks with spectral norm everywhere, mean pooling, spectrally normalised head.

    At 32x32x3 (paper.md section 4): first block 3->128 down, one block down, two blocks plain, ReLU, mean over 8x8,
    linear to one. Other sizes halve down to 8x8 (8x8 images to 4x4, 28x28 to 7x7) and keep the two plain blocks.

    Arguments:
        image_shape: (C, H, W), H = W 8, 16, 28, 32 or 64.
        width: factor on the 128 channels.
        trunc: floor the energy at -10.

    Shapes: images (N, C, H, W) in [-1, 1] -> energies (N,).
    """

    def __init__(self, image_shape: tuple[int, int, int], width: float = 1.0, trunc: bool = True):
        channels, (side, levels) = scaled(128, width), doublings(image_shape)
        downs = max(1, levels - 1) if side == 4 else levels  # to 8x8, or 7x7
        features = nn.Sequential(
            _energy_block(image_shape[0], channels, down=True, first=True),
            *(_energy_block(channels, channels, down=True) for _ in range(downs - 1)),
            *(_energy_block(channels, channels, down=False) for _ in range(2)),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        head = nn.Linear(channels, 1)
        spectral_norm(_xavier(head))
        super().__init__(features, head, trunc)
