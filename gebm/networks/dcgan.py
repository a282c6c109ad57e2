"""The convolutional pair of DCGAN (Radford et al. 2016)."""

from functools import partial

from torch import Tensor, nn

from gebm.networks.common import ImageEnergy, doublings, initialise, ladder, upsampler

__all__ = ["DCGANBase", "DCGANEnergy"]

_normal = partial(nn.init.normal_, mean=0.0, std=0.02)


class DCGANBase(nn.Module):
    """Transposed convolutions k4 s2 with batch normalisation, the last one straight to the image; tanh.

    Arguments:
        image_shape: (C, H, W), H = W 8, 16, 28, 32 or 64.
        latent_dim: dimension d of z.
        width: factor on every channel count.

    Shapes: latents (N, d) -> images (N, C, H, W) in [-1, 1].
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int = 100, width: float = 1.0):
        super().__init__()
        side, levels = doublings(image_shape)
        channels = [*ladder(levels, width)[::-1], image_shape[0]]
        self.layers = nn.Sequential(*upsampler(latent_dim, channels, side), nn.Tanh())
        initialise(self, _normal)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.layers(z)
        return images


class DCGANEnergy(ImageEnergy):
    """Convolutions k4 s2 with LeakyReLU(0.2) down to 4x4 (28x28 images: to 7x7) and a linear head.

    DCGAN's critic has batch normalisation; an energy is a function of one image, so there is none here, and
    smoothness is left to the gradient penalty.

    Arguments:
        image_shape: (C, H, W), H = W 8, 16, 28, 32 or 64.
        width: factor on every channel count.
        trunc: floor the energy at -10.

    Shapes: images (N, C, H, W) in [-1, 1] -> energies (N,).
    """

    def __init__(self, image_shape: tuple[int, int, int], width: float = 1.0, trunc: bool = True):
        layers: list[nn.Module] = []
        channels, (side, levels) = image_shape[0], doublings(image_shape)
        for out in ladder(levels, width):
            layers += [nn.Conv2d(channels, out, 4, 2, 1), nn.LeakyReLU(0.2)]
            channels = out
        super().__init__(nn.Sequential(*layers), nn.Linear(channels * side**2, 1), trunc)
        initialise(self, _normal)
