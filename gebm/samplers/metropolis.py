"""The accept step that exact kernels share."""

import torch
from torch import Tensor

from gebm.samplers.base import Info, State

__all__ = ["accept"]


def accept(state: State, proposal: State, log_ratio: Tensor, generator: torch.Generator | None) -> tuple[State, Info]:
    r"""Metropolis-Hastings: each chain takes its proposal with probability min(1, exp(log_ratio)).

    Position, potential and gradient are selected together, chain by chain, so that a rejected chain keeps its own
    gradient. A proposal with a potential or ratio that is not finite is rejected.

    Arguments:
        state, proposal: states of N chains.
        log_ratio: (N,), log of target ratio times proposal ratio.
    """
    finite = torch.isfinite(log_ratio) & torch.isfinite(proposal.potential) & torch.isfinite(proposal.gradient).all(1)
    acceptance = torch.where(finite, log_ratio.clamp(max=0).exp(), torch.zeros_like(log_ratio))
    uniform = torch.rand(acceptance.shape, generator=generator, device=acceptance.device, dtype=acceptance.dtype)
    accepted = uniform < acceptance
    column = accepted[:, None]
    taken = State(
        torch.where(column, proposal.position, state.position),
        torch.where(accepted, proposal.potential, state.potential),
        torch.where(column, proposal.gradient, state.gradient),
    )
    return taken, Info(acceptance, accepted)
