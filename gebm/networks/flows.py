"""Normalising flows on R^d: bases with a density, built from the transformations of zuko."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from zuko.flows import MaskedAutoregressiveTransform, UnconditionalTransform
from zuko.lazy import LazyTransform
from zuko.nn import MaskedMLP

from gebm.errors import InputError
from gebm.networks.common import scaled
from gebm.networks.transforms import (
    AffineCoupling,
    BatchNorm,
    CouplingNetwork,
    Dropout,
    Mixture,
    Standardise,
    activation,
    zeroed,
)

__all__ = ["FLOWS", "MADE", "MAF", "Flow", "GaussianFlow", "MixtureMAF", "RealNVP"]

DEPENDENT = 1e-13  # share of a column's variance that the others do not explain, up to which it depends on them


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
        dropout: share of hidden units left out while `log_prob` is computed in training mode, and at no other time: x
            from z and z from x stay each other's inverse.

    Shapes: latents (N, d) -> rows (N, d).

    Raises:
        InputError: a shape that the flow cannot model, or another number of latents than of columns.

    Example:

        >>> flow = FLOWS["nvp"]((3,), latent_dim=3)
        >>> x = flow(torch.randn(5, 3))  # samples, from noise
        >>> flow.log_prob(x).shape
        torch.Size([5])
    """

    sequential = False  # whether x from z takes d passes through every block
    least_columns = 1

    def __init__(
        self,
        shape: tuple[int],
        *,
        latent_dim: int | None = None,
        width: float = 1.0,
        blocks: int = 5,
        bn: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dim = self._columns(shape, latent_dim)
        self.maps = nn.ModuleList()
        for block in self._blocks(width, blocks, dropout):
            if bn and self.maps:
                self.maps.append(UnconditionalTransform(BatchNorm, norm=nn.BatchNorm1d(self.dim)))
            self.maps.append(block)

    def forward(self, z: Tensor) -> Tensor:
        for block in reversed(self.maps):
            z = block().inv(z)
        return z

    def inverse(self, x: Tensor) -> Tensor:
        """The latents (N, d) of rows (N, d)."""
        for block in self.maps:
            x = block()(x)
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities (N,) of rows (N, d); in training mode with dropout, and batch normalisation by these rows."""
        log_det = torch.zeros_like(x[:, 0])
        with _dropping(self):
            for block in self.maps:
                x, change = block().call_and_ladj(x)
                log_det = log_det + change
            return log_det + self._log_prior(x)

    def _log_prior(self, z: Tensor) -> Tensor:
        """Log-density (N,) of what the maps lead to."""
        return -0.5 * z.square().sum(1) - 0.5 * self.dim * math.log(2 * math.pi)

    def _blocks(self, width: float, blocks: int, dropout: float) -> list[LazyTransform]:
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

    One map without networks: `width`, `blocks`, `bn` and `dropout` change nothing. Its maximum likelihood is known in
    closed form, which `fit` takes.
    """

    @torch.no_grad()
    def fit(self, x: Tensor, noise: Tensor | None = None) -> None:
        r"""Take the parameters of greatest likelihood: mean and covariance of rows (N, d), the latter over N.

        Arguments:
            noise: a map (d, d); the expected likelihood of rows x + u @ noise, u uniform on [-1, 1]^d, is what is then
                greatest, and its covariance is that of x and noise^T noise / 3.

        Raises:
            InputError: the columns depend on each other linearly, so that no density is the best.
        """
        x = x.double()
        mean = x.mean(0)
        covariance = (x - mean).mT @ (x - mean) / len(x)
        if noise is not None:
            covariance += noise.double().mT @ noise.double() / 3
        factor, failed = torch.linalg.cholesky_ex(covariance)
        # Rounding decides whether the factor of a singular matrix fails: what is left of a column tells.
        left = factor.diagonal().square() / covariance.diagonal()
        if bool(failed) or not bool((left > DEPENDENT).all()):
            raise InputError("gaussian: the columns depend on each other linearly, so no density is best; drop some")
        (standardise,) = self.maps
        standardise.get_parameter("mean").copy_(mean)
        standardise.get_parameter("factor").copy_(factor.tril(-1) + factor.diagonal().log().diag())

    def _blocks(self, width: float, blocks: int, dropout: float) -> list[LazyTransform]:
        mean, factor = torch.zeros(self.dim), torch.zeros(self.dim, self.dim)
        return [UnconditionalTransform(Standardise, mean=mean, factor=factor)]


class RealNVP(Flow):
    """Affine couplings with a network each for log-scale and shift (Dinh et al. 2017), as in the paper's tables.

    Even and odd columns take turns; the networks have two hidden layers of 100 (paper.md section 4).
    """

    least_columns = 2

    def _blocks(self, width: float, blocks: int, dropout: float) -> list[LazyTransform]:
        hidden, columns = 2 * [scaled(100, width)], torch.arange(self.dim)
        couplings = []
        for i in range(blocks):
            inside, outside = columns[i % 2 :: 2].clone(), columns[1 - i % 2 :: 2].clone()
            network = CouplingNetwork(len(inside), len(outside), hidden, dropout)
            places = torch.cat([inside, outside]).argsort()
            columns_of = {"inside": inside, "outside": outside, "places": places}
            couplings.append(UnconditionalTransform(AffineCoupling, network=network, **columns_of, buffer=True))
        return couplings


class MAF(Flow):
    """Masked autoregressive affine layers in alternating order of the columns (Papamakarios et al. 2017).

    The networks have one hidden layer of 512 ReLU units. A density takes one pass, a sample d of them.
    """

    sequential = True
    least_columns = 2

    def _blocks(self, width: float, blocks: int, dropout: float) -> list[LazyTransform]:
        hidden, unit = [scaled(512, width)], partial(activation, nn.ReLU, dropout)
        layers = [
            MaskedAutoregressiveTransform(self.dim, order=self._order(i), hidden_features=hidden, activation=unit)
            for i in range(blocks)
        ]
        for layer in layers:
            zeroed(layer.hyper)
        return layers

    def _order(self, block: int) -> Tensor:
        """Rank (d,) of each column in the autoregression of that block."""
        ranks = torch.arange(self.dim)
        return ranks.flip(0) if block % 2 else ranks


class MADE(MAF):
    """One masked autoregressive affine layer: Gaussian conditionals in the order of the columns (Germain et al. 2015).

    One map: `blocks` and `bn` change nothing.
    """

    def _blocks(self, width: float, blocks: int, dropout: float) -> list[LazyTransform]:
        return super()._blocks(width, 1, dropout)


class MixtureMAF(MAF):
    r"""A MAF whose last layer has mixtures of Gaussians as conditionals: of what the affine ones leave, u,

    .. math:: p(u_i \mid u_{<i}) = \sum_{k=1}^{20} w_k \mathcal N(u_i; \mu_k, \sigma_k^2), \qquad
        z_i = \Phi^{-1}\left(\sum_k w_k \Phi((u_i - \mu_k) / \sigma_k)\right)

    (MAF MoG of Papamakarios et al. 2017). With one block u is x: an autoregressive mixture density in the order of the
    columns. w, mu and sigma come from a masked network of one residual block, 256 SiLU units wide (as in Nash and
    Durkan 2019). Densities need no z and can be differentiated any number of times; z and samples are found by
    bisection and have first derivatives. Batch normalisation is between the affine layers alone.
    """

    components = 20

    def __init__(self, shape: tuple[int], *, width: float = 1.0, blocks: int = 5, dropout: float = 0.0, **options: Any):
        super().__init__(shape, width=width, blocks=blocks, dropout=dropout, **options)
        self.order = self._order(blocks - 1).tolist()
        self.conditionals = self._network(scaled(256, width), dropout)
        # Close to N(0, 1), with components apart: were they the same, their gradients would keep them so.
        levels = (torch.arange(self.components) + 0.5) / self.components
        means, scales = math.sqrt(0.5) * torch.special.ndtri(levels), torch.full_like(levels, math.sqrt(0.5))
        with torch.no_grad():
            self.conditionals[-1].get_parameter("bias").copy_(
                torch.cat([0 * levels, means, scales.expm1().log()]).repeat(self.dim)
            )

    def forward(self, z: Tensor) -> Tensor:
        u = torch.zeros_like(z)
        for i in sorted(range(self.dim), key=self.order.__getitem__):  # one column a pass: bisections are what costs
            column = self._mixtures(u, [i]).quantile(z[:, [i]])
            u = torch.cat([u[:, :i], column, u[:, i + 1 :]], dim=1)
        return super().forward(u)

    def inverse(self, x: Tensor) -> Tensor:
        u = super().inverse(x)
        return self._mixtures(u).normal_score(u)

    def _blocks(self, width: float, blocks: int, dropout: float) -> list[LazyTransform]:
        return super()._blocks(width, blocks - 1, dropout)

    def _log_prior(self, u: Tensor) -> Tensor:
        return self._mixtures(u).log_prob(u).sum(1)

    def _mixtures(self, u: Tensor, columns: slice | list[int] = slice(None)) -> Mixture:
        """The conditionals of these columns of u (N, d)."""
        return Mixture(self.conditionals(u).unflatten(1, (self.dim, 3, self.components))[:, columns])

    def _network(self, hidden: int, dropout: float) -> nn.Sequential:
        """Columns (N, d) -> parameters of the mixtures (N, 3 d K), each column's of those before it."""
        ranks = torch.tensor(self.order)
        before = (ranks[:, None] > ranks).repeat_interleave(3 * self.components, dim=0)
        unit = partial(activation, nn.SiLU, dropout)
        first, residual, last = MaskedMLP(before, [hidden], unit, residual=True)
        return zeroed(nn.Sequential(first, nn.SiLU(), residual, unit(), last))


@contextmanager
def _dropping(flow: Flow) -> Iterator[None]:
    """Dropout within, if the flow is in training mode."""
    layers = [module for module in flow.modules() if isinstance(module, Dropout)] if flow.training else []
    try:
        for layer in layers:
            layer.active = True
        yield
    finally:
        for layer in layers:
            layer.active = False


FLOWS = {"gaussian": GaussianFlow, "nvp": RealNVP, "made": MADE, "maf": MAF, "mogmaf": MixtureMAF}
