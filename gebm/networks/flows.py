"""Normalising flows on R^d: bases with a density, built from the transformations of zuko."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from zuko.flows import MaskedAutoregressiveTransform, UnconditionalTransform
from zuko.lazy import LazyComposedTransform, LazyTransform
from zuko.nn import MaskedMLP

from gebm.errors import InputError
from gebm.networks.common import scaled
from gebm.networks.transforms import AffineCoupling, BatchNorm, Mixture, Standardise, zeroed

__all__ = ["FLOWS", "MADE", "MAF", "Flow", "GaussianFlow", "MixtureMAF", "RealNVP"]


class Flow(nn.Module):
    r"""Normalising flow :math:`x = T(z),\; z \sim \mathcal N(0, I_d)`, with its density

    .. math:: \log p(x) = \log \mathcal N(T^{-1}(x); 0, I_d) + \log |\det \partial T^{-1}(x) / \partial x|.

    Every flow starts at the identity, or close to it.

    Arguments:
        shape: (d,), the shape of a row.
        latent_dim: d, where given.
        width: factor on the hidden units of the networks.
        blocks: number of maps from x to z.
        bn: batch normalisation between them.

    Shapes: latents (N, d) -> rows (N, d).

    Raises:
        InputError: a shape that the flow cannot model, or another number of latents than of columns.
    """

    sequential = False  # whether x from z takes d passes through every block
    least_columns = 1

    def __init__(
        self, shape: tuple[int], *, latent_dim: int | None = None, width: float = 1.0, blocks: int = 5, bn: bool = False
    ):
        super().__init__()
        self.dim = self._columns(shape, latent_dim)
        maps = []
        for block in self._blocks(width, blocks):
            if bn and maps:
                maps.append(UnconditionalTransform(BatchNorm, norm=nn.BatchNorm1d(self.dim)))
            maps.append(block)
        self.transform = LazyComposedTransform(*maps)

    def forward(self, z: Tensor) -> Tensor:
        return self.transform().inv(z)

    def inverse(self, x: Tensor) -> Tensor:
        """The latents (N, d) of rows (N, d)."""
        return self.transform()(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities (N,) of rows (N, d); in training mode, batch normalisation goes by these rows."""
        z, log_det = self.transform().call_and_ladj(x)
        return log_det - 0.5 * z.square().sum(1) - 0.5 * self.dim * math.log(2 * math.pi)

    def _blocks(self, width: float, blocks: int) -> list[LazyTransform]:
        """The maps from x to z, in the order they are taken."""
        raise NotImplementedError

    def _columns(self, shape: Sequence[int], latent_dim: int | None) -> int:
        if len(shape) != 1:
            raise InputError(f"{type(self).__name__}: a flow models rows of a table, not data of shape {tuple(shape)}")
        (dim,) = shape
        if dim < self.least_columns:
            least = self.least_columns
            raise InputError(f"{type(self).__name__}: needs {least} columns, the data have {dim}: choose 'gaussian'")
        if latent_dim not in (None, dim):
            raise InputError(f"--Z_dim {latent_dim}: a flow has one latent a column, so {dim} here; leave it out")
        return dim


class GaussianFlow(Flow):
    r"""Gaussian of full covariance: :math:`x = L z + \mu`, L lower triangular with positive diagonal.

    One map without networks: `width`, `blocks` and `bn` change nothing.
    """

    def _blocks(self, width: float, blocks: int) -> list[LazyTransform]:
        mean, factor = torch.zeros(self.dim), torch.zeros(self.dim, self.dim)
        return [UnconditionalTransform(Standardise, mean=mean, factor=factor)]


class RealNVP(Flow):
    """Affine couplings with a network each for log-scale and shift (Dinh et al. 2017), as in the paper's tables.

    Even and odd columns take turns; the networks have two hidden layers of 100 (paper.md section 4).
    """

    least_columns = 2

    def _blocks(self, width: float, blocks: int) -> list[LazyTransform]:
        hidden = 2 * [scaled(100, width)]
        return [AffineCoupling(torch.arange(self.dim) % 2 == i % 2, hidden) for i in range(blocks)]


class MAF(Flow):
    """Masked autoregressive affine layers in alternating order of the columns (Papamakarios et al. 2017).

    The networks have one hidden layer of 512 ReLU units. A density takes one pass, a sample d of them.
    """

    sequential = True
    least_columns = 2

    def _blocks(self, width: float, blocks: int) -> list[LazyTransform]:
        ascending = torch.arange(self.dim)
        orders = [ascending.flip(0) if i % 2 else ascending for i in range(blocks)]
        hidden = [scaled(512, width)]
        layers = [MaskedAutoregressiveTransform(self.dim, order=order, hidden_features=hidden) for order in orders]
        for layer in layers:
            zeroed(layer.hyper)
        return layers


class MADE(MAF):
    """One masked autoregressive affine layer: Gaussian conditionals in the order of the columns (Germain et al. 2015).

    One map: `blocks` and `bn` change nothing.
    """

    def _blocks(self, width: float, blocks: int) -> list[LazyTransform]:
        return super()._blocks(width, 1)


class MixtureMAF(MAF):
    r"""A MAF whose latents are themselves autoregressive, u with mixtures of Gaussians as conditionals.

    .. math:: p(u_i \mid u_{<i}) = \sum_{k=1}^{10} w_k \mathcal N(u_i; \mu_k, \sigma_k^2), \qquad
        z_i = \Phi^{-1}\Big(\sum_k w_k \Phi\big((u_i - \mu_k) / \sigma_k\big)\Big)

    with w, mu, sigma from a masked network like the MAF's: MAF MoG of Papamakarios et al. 2017. Densities need no z and
    can be differentiated any number of times; z and samples are found by bisection and have first derivatives.
    """

    components = 10

    def __init__(
        self, shape: tuple[int], *, latent_dim: int | None = None, width: float = 1.0, blocks: int = 5, bn: bool = False
    ):
        super().__init__(shape, latent_dim=latent_dim, width=width, blocks=blocks, bn=bn)
        before = torch.ones(self.dim, self.dim, dtype=torch.bool).tril(-1)
        outputs = before.repeat_interleave(3 * self.components, dim=0)
        self.conditionals = zeroed(MaskedMLP(outputs, [scaled(512, width)]))
        # Close to N(0, 1), with components apart: were they the same, their gradients would keep them so.
        levels = (torch.arange(self.components) + 0.5) / self.components
        start = [0 * levels, math.sqrt(0.5) * torch.special.ndtri(levels), 0 * levels - 0.5 * math.log(2)]
        with torch.no_grad():
            self.conditionals[-1].bias.copy_(torch.cat(start).repeat(self.dim))

    def forward(self, z: Tensor) -> Tensor:
        u = torch.zeros_like(z)
        for i in range(self.dim):  # one column a pass: the bisections are what costs
            column = self._mixtures(u, [i]).quantile(z[:, [i]])
            u = torch.cat([u[:, :i], column, u[:, i + 1 :]], dim=1)
        return super().forward(u)

    def inverse(self, x: Tensor) -> Tensor:
        u = super().inverse(x)
        return self._mixtures(u).normal_score(u)

    def log_prob(self, x: Tensor) -> Tensor:
        u, log_det = self.transform().call_and_ladj(x)
        return log_det + self._mixtures(u).log_prob(u).sum(1)

    def _mixtures(self, u: Tensor, columns: slice | list[int] = slice(None)) -> Mixture:
        """The conditionals of these columns of u (N, d)."""
        return Mixture(self.conditionals(u).unflatten(1, (self.dim, 3, self.components))[:, columns])


FLOWS = {"gaussian": GaussianFlow, "nvp": RealNVP, "made": MADE, "maf": MAF, "mogmaf": MixtureMAF}
