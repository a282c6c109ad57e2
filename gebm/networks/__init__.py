"""Networks: one file a family, base and energy side by side."""

from gebm.networks.dcgan import DCGANBase, DCGANEnergy
from gebm.networks.resnet import ResNetBase, ResNetEnergy
from gebm.networks.sngan import SNGANBase, SNGANEnergy

__all__ = ["BASES", "ENERGIES", "DCGANBase", "DCGANEnergy", "ResNetBase", "ResNetEnergy", "SNGANBase", "SNGANEnergy"]

# name -> factory(image_shape, latent_dim=..., width=...)
BASES = {"dcgan": DCGANBase, "sngan": SNGANBase, "resnet-sn": ResNetBase}
# name -> factory(image_shape, width=..., trunc=...)
ENERGIES = {"dcgan": DCGANEnergy, "sngan": SNGANEnergy, "resnet-sn": ResNetEnergy}
