"""Networks: one file a family, base and energy side by side."""

from gebm.networks.dcgan import DCGANBase, DCGANEnergy
from gebm.networks.flows import FLOWS, Flow
from gebm.networks.mlp import ResidualMLP
from gebm.networks.ratio import DensityRatio
from gebm.networks.resnet import ResNetBase, ResNetEnergy
from gebm.networks.sngan import SNGANBase, SNGANEnergy

__all__ = ["BASES", "ENERGIES", "FLOWS", "DCGANBase", "DCGANEnergy", "DensityRatio", "Flow", "ResNetBase"]
__all__ += ["ResNetEnergy", "ResidualMLP", "SNGANBase", "SNGANEnergy"]

# name -> factory(shape, latent_dim=..., width=...); of a flow also blocks=..., bn=...
BASES = {"dcgan": DCGANBase, "sngan": SNGANBase, "resnet-sn": ResNetBase, **FLOWS}
# name -> factory(shape, width=...), of an image energy also trunc=..., of a table's blocks=..., bn=...; a flow is the p
# of a `DensityRatio`
ENERGIES = {"dcgan": DCGANEnergy, "sngan": SNGANEnergy, "resnet-sn": ResNetEnergy, "mlp": ResidualMLP, **FLOWS}
