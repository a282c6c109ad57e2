"""Fréchet distance between feature distributions, and how much each row of samples and of the reference moves it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gebm.errors import InputError

__all__ = ["FrechetValues", "Moments", "frechet_distance", "frechet_pseudo_values", "whiten"]


class Moments:
    r"""Mean and covariance of a stream of feature batches, in float64.

    Batches are merged pairwise, which is stable when the mean is large beside the spread:
    with :math:`\delta = m_b - m_a`, the scatter matrices add as
    :math:`M = M_a + M_b + \delta\delta^\top n_a n_b / (n_a + n_b)`.

    Reference: Chan, Golub and LeVeque, *Updating formulae and a pairwise algorithm for computing sample
    variances*, 1982.

    Attributes:
        n: number of samples seen.
        mean: (d,).

    Example:

        >>> features = torch.randn(100, 3)
        >>> moments = Moments.empty(3).update(features[:50]).update(features[50:])
        >>> moments.n, torch.allclose(moments.cov, torch.cov(features.T.double()))
        (100, True)
    """

    def __init__(self, n: int, mean: Tensor, scatter: Tensor, sqrt_cov: Tensor | None = None):
        self.n, self.mean, self.scatter, self._sqrt_cov = n, mean, scatter, sqrt_cov

    @classmethod
    def empty(cls, d: int) -> Moments:
        """No samples yet of dimension `d`."""
        return cls(0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64))

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Moments of features (n, d)."""
        x = torch.as_tensor(features, dtype=torch.float64)
        mean = x.sum(0) / max(len(x), 1)
        if not mean.isfinite().all():
            raise InputError("features hold NaN or infinite values: check the images and the feature extractor")
        x = x - mean
        return cls(len(x), mean, x.T @ x)

    def to(self, device: str | torch.device) -> Moments:
        """The same on a device."""
        return Moments(self.n, self.mean.to(device), self.scatter.to(device), self.sqrt_cov.to(device))

    def update(self, features: Tensor) -> Moments:
        """Add a batch (B, d) in place; returns self."""
        batch = Moments.of(features)
        n = self.n + batch.n
        if batch.n:
            delta = batch.mean - self.mean
            self.mean = self.mean + delta * (batch.n / n)
            self.scatter = self.scatter + batch.scatter + torch.outer(delta, delta) * (self.n * batch.n / n)
            self.n, self._sqrt_cov = n, None
        return self

    @property
    def cov(self) -> Tensor:
        """Covariance (d, d), normalised by n - 1."""
        if self.n < 2:
            raise InputError(f"a covariance needs at least 2 samples, got {self.n}: use more images")
        return self.scatter / (self.n - 1)

    @property
    def sqrt_cov(self) -> Tensor:
        """Symmetric square root (d, d) of the covariance, computed once for all later distances."""
        if self._sqrt_cov is None:
            values, vectors = torch.linalg.eigh(self.cov)
            self._sqrt_cov = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return self._sqrt_cov


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""Squared Fréchet (2-Wasserstein) distance between the Gaussians with the moments of `a` and `b`.

    .. math:: |m_a - m_b|^2 + \mathrm{tr}\, S_a + \mathrm{tr}\, S_b
              - 2\, \mathrm{tr} (S_b^{1/2} S_a S_b^{1/2})^{1/2}

    Both roots are symmetric eigen-solves, so singular covariances (n <= d) are fine and nothing becomes complex;
    eigenvalues below zero are rounding and count as zero. The root of `b` is kept: pass the reference there.

    References: Dowson and Landau, *The Fréchet distance between multivariate normal distributions*, 1982;
    Heusel et al., *GANs trained by a two time-scale update rule*, arXiv 1706.08500 (on Inception features).

    Example:

        >>> x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(Moments.of(x), Moments.of(x + 1)), 3)  # moved by 1 in each of 4 dimensions
        4.0
    """
    _check_same(a, b)
    cross = torch.linalg.eigvalsh(b.sqrt_cov @ a.cov @ b.sqrt_cov).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross
    return max(float(distance), 0.0)


class FrechetValues(NamedTuple):
    """samples: pseudo-values (n,), whose mean is the distance; reference: influences (k,) of reference rows, of mean
    zero; bias: by how much the distance is expected to exceed that of infinitely many rows, were they Gaussian.
    """

    samples: Tensor
    reference: Tensor
    bias: float


def frechet_pseudo_values(
    features: Tensor, reference: Moments, rows: Tensor | None = None, whitened: Tensor | None = None
) -> FrechetValues:
    r"""Pseudo-values of the Fréchet distance of features (n, d), and the influences of reference rows (k, d) on it.

    The influence of a sample row x on the distance between its moments m, S and those of the reference m_r, R is

    .. math:: 2 (m - m_r)^\top (x - m) + (x - m)^\top (I - T) (x - m) - \mathrm{tr}\,(I - T) S,
              \qquad T = R^{1/2} (R^{1/2} S R^{1/2})^{-1/2} R^{1/2},

    with T the optimal transport from S to R, a pseudo-inverse where S or R is singular. That of a reference row is the
    same with the roles exchanged, where the transport is :math:`R^{-1/2} (R^{1/2} S R^{1/2})^{1/2} R^{-1/2}`. So one
    eigen-solve gives the distance, its standard error and, from the differences between paired sets, that of a gain,
    in which the influences of a reference that both share are subtracted row by row.

    A Fréchet distance grows as its samples get fewer; an interval of these values covers the expected distance *at
    these numbers of rows*, as every published one is quoted. Near the floor (a sample from the reference) the influence
    vanishes; the estimated one then has about twice the variance of the distance, so that the interval is too wide, not
    too narrow. To second order in the noise of Gaussian rows the distance exceeds that of the population by

    .. math:: (\frac1n + \frac1{n_r})
              \sum_{ij} \frac{(1 + \delta_{ij}) \sqrt{\lambda_i \lambda_j}}{2 (\sqrt{\lambda_i} + \sqrt{\lambda_j})}
              + \frac{\mathrm{tr}\,S}{n} + \frac{\mathrm{tr}\,R}{n_r},

    :math:`\lambda` the eigenvalues of :math:`R^{1/2} S R^{1/2}`, estimated by those at hand. That holds where n and
    n_r are at least some six times d (in 64 dimensions: to 7 %, 0.303 of 0.324, at 2000 and 400 rows); with fewer rows
    the excess is larger.

    Measured coverage of 95 % intervals of distances / gains with the reference's moments known, n from 20
    to 2000 in 16 and 64 dimensions, also n < d:

    - Gaussian 0.93 to 1.00 / 0.91 to 0.98; independent Student-t(5) features 0.93 to 0.99 / 0.91 to 0.95;
    - ResNet-56 features of CIFAR-10, clean and noisy, n from 100 to 2000: 0.92 to 1.00 / 0.92 to 1.00;
    - multivariate t(5), whole rows long-tailed: 0.83 to 0.94 / 0.83 to 0.96 up to n = 100, 0.88 to 0.94 / 0.91 to 0.96
      at 500, 0.90 to 0.97 / 0.93 to 0.95 at 2000. A bootstrap has 0.91 to 0.99 / 0.84 to 0.89 up to n = 100.

    Arguments:
        features: (n, d).
        reference: the moments of all reference rows.
        rows: a random choice (k, d) of the reference rows, by which their influence is estimated; None: the reference
            counts as fixed. The influences come out scaled by :math:`\sqrt{k / n_r}`, so that their variance over k is
            that of the mean influence of all :math:`n_r` reference rows.
        whitened: `whiten(rows, reference)` where it is kept; it is the same for all features.

    References: Dowson and Landau, as above; Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 22
    (influence functions and the delta method).
    """
    x = features.to(reference.mean)
    own, root = Moments.of(x), reference.sqrt_cov
    _check_same(own, reference)
    values, vectors = torch.linalg.eigh(root @ own.cov @ root)
    values = values.clamp(min=0)
    shift = own.mean - reference.mean
    distance = shift.square().sum() + own.cov.trace() + reference.cov.trace()
    distance -= 2 * values.sqrt().sum()
    used = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    half = root @ vectors[:, used] * values[used] ** -0.25  # T = half @ half.T
    influence = _influence(x - own.mean, shift, (x - own.mean) @ half)
    samples = distance.clamp(min=0) + influence
    bias = _excess(values, own, reference)
    if rows is None:
        return FrechetValues(samples, samples.new_empty(0), bias)
    if whitened is None:
        whitened = whiten(rows, reference)
    transported = whitened @ (vectors[:, used] * values[used] ** 0.25)
    of_reference = _influence(rows.to(x) - reference.mean, -shift, transported)
    return FrechetValues(samples, of_reference * (len(rows) / reference.n) ** 0.5, bias)


def whiten(rows: Tensor, moments: Moments) -> Tensor:
    """Rows (k, d) less the mean of `moments`, times the pseudo-inverse of the square root of their covariance."""
    values, vectors = torch.linalg.eigh(moments.sqrt_cov)
    used = values.square() > values[-1].square() * len(values) * torch.finfo(values.dtype).eps
    vectors = vectors[:, used]
    whitened: Tensor = ((rows.to(moments.mean) - moments.mean) @ vectors / values[used]) @ vectors.T
    return whitened


def _influence(x: Tensor, shift: Tensor, transported: Tensor) -> Tensor:
    """2 shift^T x + x^T (I - T) x of rows x (n, d), less its mean; transported: x times a root of T."""
    influence: Tensor = 2 * x @ shift + x.square().sum(1) - transported.square().sum(1)
    return influence - influence.mean()


def _excess(values: Tensor, own: Moments, reference: Moments) -> float:
    """The expected excess of the distance over that of the population, from the eigenvalues of R^1/2 S R^1/2."""
    roots = values.sqrt()
    pairs = roots[:, None] * roots / (roots[:, None] + roots).clamp(min=torch.finfo(roots.dtype).tiny)
    of_cov = (pairs.sum() + pairs.trace()) / 2
    return float(sum((of_cov + moments.cov.trace()) / moments.n for moments in (own, reference)))


def _check_same(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise InputError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions: use one extractor for both")
