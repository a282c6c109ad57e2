"""Discriminator optimal transport."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.latent import Target
from gebm.samplers.base import Info, Kernel, State, always_accepted, evaluate
from gebm.samplers.tempering import excess

__all__ = ["OptimalTransport"]

PAIRS = 1000  # chains whose distances estimate the Lipschitz constant


@dataclass(frozen=True)
class OptimalTransport(Kernel):
    r"""Discriminator optimal transport (Tanaka 2019): each start y goes to a better point that is not far away.

    .. math:: \min_{\|z\| = \|y\|} \|z - y\| + \phi(z) / K, \qquad \phi(z) = \beta E(G(z)), \qquad
              K = \max_{i \ne j} |\phi(z_i) - \phi(z_j)| / \|z_i - z_j\|

    by proximal gradient steps: down the part of grad phi / K tangent to the sphere through y, which carries the prior,
    then towards y by h and no further than y itself, then back onto the sphere. K, the effective Lipschitz constant, is
    taken over pairs of starts and their mirror images. It is proportional to beta, so beta makes no difference.

    Target: none; chains end in local minima. Cost: one value-and-gradient a step, and one evaluation at the start.
    Extra: anchor (N, d), the start y; lipschitz (N,), K.

    Arguments:
        step_size: h. The documented gamma is 2h.

    Example:

        >>> from gebm.latent import GaussianPrior, LatentPosterior
        >>> from gebm.samplers import run
        >>> posterior = LatentPosterior(GaussianPrior(4), lambda z: z, lambda x: x[:, 0])
        >>> start = posterior.start(20, torch.Generator().manual_seed(0))
        >>> moved = run(OptimalTransport(0.1), posterior, start, 20).state.position
        >>> bool(posterior.energies(moved).mean() < posterior.energies(start).mean())
        True
    """

    moves = False
    anneals = False

    def init(self, position: Tensor, target: Target) -> State:
        state = super().init(position, target)
        few, mirrored = position[:PAIRS], -position[:PAIRS]  # so that there are pairs even for one chain
        points = torch.cat([few, mirrored])
        phi = torch.cat([excess(state)[:PAIRS], excess(State(mirrored, evaluate(target, mirrored)))])
        slopes = (phi[:, None] - phi).abs() / torch.cdist(points, points)
        k = torch.nan_to_num(slopes, posinf=0.0).max()  # 0 / 0 of a point with itself
        return state._replace(extra={"anchor": position, "lipschitz": k.expand(len(position)).clone()})

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        anchor, k = state.extra["anchor"], state.extra["lipschitz"][:, None]
        z = state.position
        slope = state.grad - z  # of phi alone
        radial = (slope * z).sum(1, keepdim=True) / z.square().sum(1, keepdim=True)
        away = z - self.step_size / k.clamp(min=1e-12) * (slope - radial * z) - anchor
        distance = away.norm(dim=1, keepdim=True)
        position = anchor + away * (1 - self.step_size / distance.clamp(min=1e-12)).clamp(min=0)
        position = position * (anchor.norm(dim=1, keepdim=True) / position.norm(dim=1, keepdim=True))
        return State(position, *target(position), extra=state.extra), always_accepted(position)
