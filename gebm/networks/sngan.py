"""The convolutional pair of SNGAN (Miyato et al. 2018), the networks of the paper's main table."""

from torch import Tensor, nn

from gebm.networks.common import ImageEnergy, doublings, initialise, ladder, spectral_norm, upsampler

__all__ = ["SNGANBase", "SNGANEnergy"]


class SNGANBase(nn.Module):
    """Transposed convolutions with batch normalisation, from 4x4 up to the image size.

    At 32x32x3 (paper.md section 4): Linear 100 -> 4x4x512; three times BN, ReLU, ConvT k4 s2 (256, 128, 64);
    BN, ReLU, ConvT k3 to the image; tanh. Xavier initialisation.

    Arguments:
        image_shape: (C, H, W), H = W 8, 16, 28, 32 or 64.
        latent_dim: dimension d of z.
        width: factor on every channel count.

    Shapes: latents (N, d) -> images (N, C, H, W) in [-1, 1].

    Example:

        >>> import torch
        >>> base, energy = SNGANBase((3, 32, 32), width=0.1).eval(), SNGANEnergy((3, 32, 32), width=0.1)
        >>> energy(base(torch.randn(2, 100))).shape
        torch.Size([2])
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int = 100, width: float = 1.0):
        super().__init__()
        side, levels = doublings(image_shape)
        channels = ladder(levels + 1, width)[::-1]
        layers = upsampler(latent_dim, channels, side)
        layers += [nn.BatchNorm2d(channels[-1]), nn.ReLU(), nn.ConvTranspose2d(channels[-1], image_shape[0], 3, 1, 1)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        initialise(self, nn.init.xavier_uniform_)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.layers(z)
        return images


class SNGANEnergy(ImageEnergy):
    """Spectrally normalised convolutions with LeakyReLU(0.1), down to 4x4, and a free linear head.

    At 32x32x3 (paper.md section 4): 3->64 k3, then 64->128 k4 s2, 128->128 k3, and so on to 512->512 k3;
    flatten 8192; linear to one, without spectral norm.

    Arguments:
        image_shape: (C, H, W), H = W 8, 16, 28, 32 or 64.
        width: factor on every channel count.
        trunc: floor the energy at -10.

    Shapes: images (N, C, H, W) in [-1, 1] -> energies (N,).
    """

    def __init__(self, image_shape: tuple[int, int, int], width: float = 1.0, trunc: bool = True):
        side, levels = doublings(image_shape)
        first, *rest = ladder(levels + 1, width)
        convolutions = [nn.Conv2d(image_shape[0], first, 3, 1, 1)]
        channels = first
        for out in rest:
            convolutions += [nn.Conv2d(channels, out, 4, 2, 1), nn.Conv2d(out, out, 3, 1, 1)]
            channels = out
        head = nn.Linear(channels * side**2, 1)
        for layer in [*convolutions, head]:
            initialise(layer, nn.init.xavier_uniform_)
        layers = [part for conv in convolutions for part in (spectral_norm(conv), nn.LeakyReLU(0.1))]
        super().__init__(nn.Sequential(*layers), head, trunc)
