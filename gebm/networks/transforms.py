"""Maps that zuko has not: the paper's coupling, batch normalisation, a triangular Gaussian, mixtures of Gaussians."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn import functional as F
from zuko.nn import Linear
from zuko.utils import bisection

__all__ = ["AffineCoupling", "BatchNorm", "CouplingNetwork", "Dropout", "Mixture", "Standardise"]
__all__ += ["activation", "zeroed"]

BOUND = math.log(1000)  # of log-scales: beyond it one step too large would overflow exp
NARROWEST = 1e-3  # standard deviation of a mixture's component


def zeroed(network: nn.Sequential) -> nn.Sequential:
    """The network with a last layer of zeros: a map whose parameters it gives starts from the identity."""
    nn.init.zeros_(network[-1].get_parameter("weight"))
    nn.init.zeros_(network[-1].get_parameter("bias"))
    return network


class Dropout(nn.Module):
    """Dropout with probability p while it is `active`, which its flow says; the mode of training does not."""

    def __init__(self, p: float):
        super().__init__()
        self.p, self.active = p, False

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p) if self.active else x


def activation(kind: type[nn.Module], dropout: float) -> nn.Module:
    """The activation, with dropout after it if there is any."""
    return nn.Sequential(kind(), Dropout(dropout)) if dropout else kind()


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
        z: Tensor = torch.linalg.solve_triangular(self.factor, (x - self.mean).mT, upper=False).mT
        return z

    def _inverse(self, z: Tensor) -> Tensor:
        return z @ self.factor.mT + self.mean

    def log_abs_det_jacobian(self, x: Tensor, z: Tensor) -> Tensor:
        return -self.log_diagonal.sum().expand(x.shape[:-1])


class CouplingNetwork(nn.Module):
    """Two networks side by side, from columns (N, inside) to log-scales and shifts, (N, outside) each.

    Tanh in the log-scale's network, ReLU in the shift's (paper.md section 4). The log-scale is softly bounded by
    log 1000 = 6.9, which leaves it alone where it is small.
    """

    def __init__(self, inside: int, outside: int, hidden: Sequence[int], dropout: float = 0.0):
        super().__init__()
        # Weights in pairs: half as many tensors, and as much less to do for an optimiser.
        self.layers = nn.Sequential(*(Linear(a, b, stack=2) for a, b in pairwise([inside, *hidden, outside])))
        self.tanh, self.relu = activation(nn.Tanh, dropout), activation(nn.ReLU, dropout)
        zeroed(self.layers)

    def forward(self, inside: Tensor) -> tuple[Tensor, Tensor]:
        scale = shift = inside
        for i, layer in enumerate(self.layers):
            if i:
                scale, shift = self.tanh(scale), self.relu(shift)
            weights, biases = layer.get_parameter("weight"), layer.get_parameter("bias")
            scale, shift = map(F.linear, (scale, shift), weights, biases)
        return BOUND * torch.tanh(scale / BOUND), shift


class AffineCoupling(Transform):
    """Affine coupling of Dinh et al. 2017: the columns outside are scaled and shifted by functions of those inside.

    Arguments:
        network: from columns inside to log-scales and shifts of those outside.
        inside, outside: which columns they are.
        places: where each column is in the two put together.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, network: nn.Module, inside: Tensor, outside: Tensor, places: Tensor):
        super().__init__()
        self.network, self.inside, self.outside, self.places = network, inside, outside, places

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside, outside = self._split(x)
        log_scale, shift = self.network(inside)
        return self._merge(inside, outside * log_scale.exp() + shift), log_scale.sum(1)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        inside, outside = self._split(y)
        log_scale, shift = self.network(inside)
        return self._merge(inside, (outside - shift) * (-log_scale).exp())

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.inside), x.index_select(1, self.outside)

    def _merge(self, inside: Tensor, outside: Tensor) -> Tensor:
        return torch.cat([inside, outside], 1).index_select(1, self.places)


class BatchNorm(Transform):
    """Batch normalisation as a map (Dinh et al. 2017): by the running statistics, but by the batch's own where
    densities are computed in training mode, which also moves the running ones."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, norm: nn.BatchNorm1d):
        super().__init__()
        self.norm = norm

    @property
    def _running(self) -> tuple[Tensor, Tensor]:
        """The running mean and variance."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        return mean, variance

    def _call(self, x: Tensor) -> Tensor:
        mean, variance = self._running
        return (x - mean) * self._slope(variance) + self.norm.bias

    def _inverse(self, y: Tensor) -> Tensor:
        mean, variance = self._running
        return (y - self.norm.bias) / self._slope(variance) + mean

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._log_det(self._running[1]).expand(x.shape[:-1])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.norm.training:
            y = self._call(x)
            return y, self.log_abs_det_jacobian(x, y)
        return self.norm(x), self._log_det(x.var(0, correction=0)).expand(x.shape[:-1])

    def _slope(self, variance: Tensor) -> Tensor:
        return self.norm.weight * (variance + self.norm.eps).rsqrt()

    def _log_det(self, variance: Tensor) -> Tensor:
        return self._slope(variance).abs().log().sum()


class Mixture:
    """Mixtures of K Gaussians on the line, one for each entry of a tensor (*).

    Arguments:
        parameters: logits of the weights, means, and s of the standard deviations softplus(s) + 0.001, (*, 3, K).
    """

    def __init__(self, parameters: Tensor):
        logits, self.mean, scale = parameters.unbind(-2)
        self.log_weight = logits.log_softmax(-1)
        self.log_scale = (F.softplus(scale) + NARROWEST).log()

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
        log_odds: Tensor = below.logsumexp(-1) - above.logsumexp(-1)
        return log_odds


def _normal_log_odds(z: Tensor) -> Tensor:
    log_odds: Tensor = torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)
    return log_odds


def _solve(
    f: Callable[[Tensor], Tensor], y: Tensor, low: Tensor, high: Tensor, parameters: Sequence[Tensor] = ()
) -> Tensor:
    """The x in [low, high] with f(x) = y, f increasing; derivatives in y and the parameters by zuko's implicit rule."""
    halvings = 8 - round(math.log2(torch.finfo(y.dtype).eps))  # to the last digit of brackets up to 2^8 wide
    x: Tensor = bisection(f, y, low, high, halvings, [p for p in parameters if p.requires_grad])
    return x
