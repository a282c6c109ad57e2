"""The accept step that exact kernels share."""

import torch
from torch import Tensor

from gebm.samplers.base import Info, State

__all__ = ["accept", "select"]


def accept(state: State, proposal: State, log_ratio: Tensor, generator: torch.Generator | None) -> tuple[State, Info]:
    r"""Metropolis-Hastings: each chain takes its proposal with probability min(1, exp(log_ratio)).

    A proposal with a potential, gradient or ratio that is not finite is rejected; from a state whose own potential is
    not finite, any finite proposal is taken.

    Arguments:
        state, proposal: states of N chains.
        log_ratio: (N,), log of target ratio times proposal ratio.
    """
    finite = torch.isfinite(proposal.potential)
    if proposal.gradient is not None:
        finite = finite & torch.isfinite(proposal.gradient).all(1)
    log_ratio = torch.where(torch.isfinite(state.potential), log_ratio, 0.0)
    possible = finite & torch.isfinite(log_ratio)
    acceptance = torch.where(possible, log_ratio.clamp(max=0).exp(), torch.zeros_like(log_ratio))
    uniform = torch.rand(acceptance.shape, generator=generator, device=acceptance.device, dtype=acceptance.dtype)
    accepted = uniform < acceptance
    return select(accepted, proposal, state), Info(acceptance, accepted, finite)


def select(taken: Tensor, proposal: State, state: State) -> State:
    """Position, potential and gradient together, chain by chain: a rejected chain keeps its own gradient."""
    column, gradient = taken[:, None], None
    if state.gradient is not None:
        gradient = torch.where(column, proposal.grad, state.grad)
    return state._replace(
        position=torch.where(column, proposal.position, state.position),
        potential=torch.where(taken, proposal.potential, state.potential),
        gradient=gradient,
    )
