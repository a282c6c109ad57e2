r"""Penalties on the energy: what keeps it smooth."""

from functools import reduce

import torch
from torch import Tensor, nn

from gebm.parallel import gathered, processes, share
from gebm.second_order import input_gradient

__all__ = ["PENALTIES", "gradient_penalty", "l2_penalty"]


def gradient_penalty(energy: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Mean squared gradient norm of the energy between data and base samples.

    .. math:: \mathbb E \|\nabla_x E(t x + (1 - t) y)\|^2, \quad t \sim U[0, 1]

    Interpolation after Gulrajani et al. 2017, the zero-centred norm as a regulariser of smoothness.

    Arguments:
        energy: network (N, ...) -> (N,).
        real: data (N, ...).
        fake: base samples (M, ...); the first min(N, M) of both are paired.
        generator: source of t.

    Returns a scalar with a graph to the energy's parameters.

    Example:

        >>> energy = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0))
        >>> penalty = gradient_penalty(energy, torch.randn(8, 2), torch.randn(8, 2))
        >>> torch.isclose(penalty, energy[0].weight.square().sum())
        tensor(True)
    """
    n = min(len(real), len(fake))
    shape = n * processes(), *[1] * (real.ndim - 1)
    t = share(torch.rand(shape, generator=generator, device=real.device, dtype=real.dtype))
    gradient = input_gradient(energy, torch.lerp(fake[:n].detach(), real[:n], t))
    return gathered(gradient.flatten(1).square().sum(1)).mean()


def l2_penalty(energy: nn.Module) -> Tensor:
    """Mean square of all parameters of the energy: the sum of squares over the number of entries."""
    parameters = list(energy.parameters())
    total = reduce(torch.add, (p.square().sum() for p in parameters))
    return total / sum(p.numel() for p in parameters)


# name -> (gradient penalty, L2 penalty)
PENALTIES = {"gradient_l2": (True, True), "gradient": (True, False), "l2": (False, True), "none": (False, False)}
