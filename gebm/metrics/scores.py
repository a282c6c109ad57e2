"""The classifier score: are samples of one sure class each, and of all classes together?"""

import math

from torch import Tensor

__all__ = ["classifier_score"]


def classifier_score(logits: Tensor) -> Tensor:
    r"""Pseudo-values (n,) of the score of class logits (n, classes): their mean is the score.

    .. math:: \exp \frac1n \sum_i \mathrm{KL}(p(y | x_i) \| \bar p), \qquad \bar p = \frac1n \sum_i p(y | x_i)

    from 1, all samples alike, to the number of classes, each sure and all as frequent. It knows no real images, and a
    sample of each class would do. On the logits of Inception it is the Inception score; over all samples at once and
    not the mean of ten tenths, whose scores are a little lower.

    The influence of a row on the mean divergence is its own divergence less the mean, as that of :math:`\bar p` adds
    up to nothing; times the score it is that on the score (delta method).

    Reference: Salimans et al., *Improved techniques for training GANs*, arXiv 1606.03498, section 4.
    """
    log_p = logits.double().log_softmax(1)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))
    divergence = (log_p.exp() * (log_p - log_mean)).sum(1)
    mean = divergence.mean()
    return mean.exp() * (1 + divergence - mean)
