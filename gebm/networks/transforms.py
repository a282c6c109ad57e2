"""Maps that zuko has not: the paper's coupling, batch normalisation, a triangular Gaussian, mixtures of Gaussians."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from zuko.lazy import LazyTransform
from zuko.nn import MLP
from zuko.transforms import CouplingTransform, DependentTransform, MonotonicAffineTransform, SoftclipTransform
from zuko.utils import bisection

__all__ = ["AffineCoupling", "BatchNorm", "Mixture", "Standardise", "zeroed"]


def zeroed(network: nn.Sequential) -> nn.Sequential:
    """The network with a last layer of zeros: a map whose parameters it gives starts from the identity."""
    nn.init.zeros_(network[-1].weight)
    nn.init.zeros_(network[-1].bias)
    return network


class Standardise(Transform):
    """z = L^-1 (x - mean), L the lower triangle of `factor` with the exponential of its diagonal."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, mean: Tensor, factor: Tensor):
        super().__init__()
        self.mean = mean
        self.log_diagonal = factor.diagonal()
        self.factor = factor.tril(-1) + self.log_diagonal.exp().diag()

    def _call(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, (x - self.mean).mT, upper=False).mT

    def _inverse(self, z: Tensor) -> Tensor:
        return z @ self.factor.mT + self.mean

    def log_abs_det_jacobian(self, x: Tensor, z: Tensor) -> Tensor:
        return -self.log_diagonal.sum().expand(x.shape[:-1])


class AffineCoupling(LazyTransform):
    """Affine coupling of Dinh et al. 2017: columns outside the mask are scaled and shifted by networks of those inside.

    Tanh in the log-scale's network, ReLU in the shift's (paper.md section 4). The log-scale is softly bounded by
    log 1000 = 6.9, which leaves it alone where it is small: without a bound one step too large overflows exp.
    """

    def __init__(self, mask: Tensor, hidden: Sequence[int]):
        super().__init__()
        self.register_buffer("mask", mask)
        inside = int(mask.sum())
        self.scale = zeroed(MLP(inside, len(mask) - inside, hidden, activation=nn.Tanh))
        self.shift = zeroed(MLP(inside, len(mask) - inside, hidden, activation=nn.ReLU))

    def forward(self, context: None = None) -> Transform:
        return CouplingTransform(self._affine, self.mask)

    def _affine(self, inside: Tensor) -> Transform:
        return DependentTransform(MonotonicAffineTransform(self.shift(inside), self.scale(inside)), 1)


class BatchNorm(Transform):
    """Batch normalisation as a map (Dinh et al. 2017): by the running statistics, but by the batch's own where
    densities are computed in training mode, which also moves the running ones."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, norm: nn.BatchNorm1d):
        super().__init__()
        self.norm = norm

    def _call(self, x: Tensor) -> Tensor:
        return (x - self.norm.running_mean) * self._slope(self.norm.running_var) + self.norm.bias

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.norm.bias) / self._slope(self.norm.running_var) + self.norm.running_mean

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._log_det(self.norm.running_var).expand(x.shape[:-1])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.norm.training:
            return super().call_and_ladj(x)
        return self.norm(x), self._log_det(x.var(0, correction=0)).expand(x.shape[:-1])

    def _slope(self, variance: Tensor) -> Tensor:
        return self.norm.weight * (variance + self.norm.eps).rsqrt()

    def _log_det(self, variance: Tensor) -> Tensor:
        return self._slope(variance).abs().log().sum()


class Mixture:
    """Mixtures of K Gaussians on the line, one for each entry of a tensor (*).

    Arguments:
        parameters: logits of the weights, means and softly bounded log standard deviations, (*, 3, K).
    """

    def __init__(self, parameters: Tensor):
        logits, mean, log_scale = parameters.unbind(-2)
        self.log_weight, self.mean = logits.log_softmax(-1), mean
        self.log_scale = SoftclipTransform(math.log(1000))(log_scale)

    def log_prob(self, x: Tensor) -> Tensor:
        exponent = self.log_weight - self.log_scale - 0.5 * self._standardised(x).square()
        return exponent.logsumexp(-1) - 0.5 * math.log(2 * math.pi)

    def normal_score(self, x: Tensor) -> Tensor:
        """The z whose probability under N(0, 1) is that of x under the mixture."""
        # That z lies between the standardised values of x under the components, as x does between their quantiles.
        low, high = self._standardised(x).detach().aminmax(dim=-1)
        return _solve(_normal_log_odds, self._log_odds(x), low, high)

    def quantile(self, z: Tensor) -> Tensor:
        """The x whose probability under the mixture is that of z under N(0, 1); `normal_score` backwards."""
        low, high = (self.mean + self.log_scale.exp() * z[..., None]).detach().aminmax(dim=-1)
        return _solve(self._log_odds, _normal_log_odds(z), low, high, (self.log_weight, self.mean, self.log_scale))

    def _standardised(self, x: Tensor) -> Tensor:
        return (x[..., None] - self.mean) * (-self.log_scale).exp()

    def _log_odds(self, x: Tensor) -> Tensor:
        # Equal log-odds are equal probabilities, and keep their digits in both tails.
        t = self._standardised(x)
        below, above = (self.log_weight + torch.special.log_ndtr(side) for side in (t, -t))
        return below.logsumexp(-1) - above.logsumexp(-1)


def _normal_log_odds(z: Tensor) -> Tensor:
    return torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)


def _solve(
    f: Callable[[Tensor], Tensor], y: Tensor, low: Tensor, high: Tensor, parameters: Sequence[Tensor] = ()
) -> Tensor:
    """The x in [low, high] with f(x) = y, f increasing; derivatives in y and the parameters by zuko's implicit rule."""
    halvings = 8 - round(math.log2(torch.finfo(y.dtype).eps))  # to the last digit of brackets up to 2^8 wide
    return bisection(f, y, low, high, halvings, [p for p in parameters if p.requires_grad])
