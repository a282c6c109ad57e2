"""Samplers that use no gradients: random walk, independent proposals, importance resampling."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm.latent import Target, prior_potential
from gebm.samplers.base import Info, Kernel, State, check_target, evaluate, normal_like
from gebm.samplers.metropolis import accept, select

__all__ = ["SIR", "IndependentMetropolis", "RandomWalk"]


@dataclass(frozen=True)
class GradientFree(Kernel):
    """A kernel that asks the target for potentials alone."""

    exact = True
    differentiates = False

    def init(self, position: Tensor, target: Target) -> State:
        check_target(self, target)
        return State(position, evaluate(target, position))


@dataclass(frozen=True)
class PriorProposals(GradientFree):
    """A kernel whose every proposal is a fresh draw from the prior, so that it has no step size."""

    step_size: float = 1.0

    gamma_power = 0.0

    @classmethod
    def from_gamma(cls, gamma: float, **own: Any) -> "Kernel":
        """The same kernel for every gamma."""
        return cls(**own)


@dataclass(frozen=True)
class RandomWalk(GradientFree):
    r"""Random-walk Metropolis, :math:`z^* = z + \sqrt{2h}\, \xi`: the noise of MALA without its drift.

    Target: exp(-U), exactly. Cost: one evaluation a step, without gradient.

    Arguments:
        step_size: h. The documented gamma is 2h.

    Example:

        >>> import torch
        >>> from gebm.latent import GaussianPrior, LatentPosterior
        >>> from gebm.samplers import run
        >>> posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: 1.5 * x.square().sum(1))  # N(0, I / 4)
        >>> start, generator = posterior.start(1000), torch.Generator().manual_seed(0)
        >>> chain = run(RandomWalk(0.3), posterior, start, 200, generator=generator)
        >>> round(float(chain.state.position.std()), 1)
        0.5
    """

    goal = 0.234

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        position = state.position + (2 * self.step_size) ** 0.5 * normal_like(state.position, generator)
        proposal = State(position, evaluate(target, position))
        return accept(state, proposal, state.potential - proposal.potential, generator)


@dataclass(frozen=True)
class IndependentMetropolis(PriorProposals):
    r"""Metropolis-Hastings with proposals from the prior, :math:`z^* \sim N(0, I)`, whatever the chain's position.

    .. math:: \log \alpha = [U(z) - \tfrac12 \|z\|^2] - [U(z^*) - \tfrac12 \|z^*\|^2] = \beta E(G(z)) - \beta E(G(z^*))

    Target: exp(-U), exactly. Cost: one evaluation a step, without gradient. The MH-GAN of Turner et al. 2019 is this
    sampler.

    Example:

        >>> import torch
        >>> from gebm.latent import GaussianPrior, LatentPosterior
        >>> from gebm.samplers import run
        >>> posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: 1.5 * x.square().sum(1))  # N(0, I / 4)
        >>> start, generator = posterior.start(1000), torch.Generator().manual_seed(0)
        >>> chain = run(IndependentMetropolis(), posterior, start, 200, generator=generator)
        >>> round(float(chain.state.position.std()), 1)
        0.5
    """

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        position = normal_like(state.position, generator)
        proposal = State(position, evaluate(target, position))
        prior = prior_potential(position) - prior_potential(state.position)
        return accept(state, proposal, state.potential - proposal.potential + prior, generator)


@dataclass(frozen=True)
class SIR(PriorProposals):
    r"""Sampling importance resampling (Rubin 1988) of prior draws, one draw a step, in constant memory.

    Chain i has seen the draws z_0, ..., z_t and holds one of them, each with probability proportional to its weight
    w = exp(-U(z) + \|z\|^2/2): a fresh draw takes the place with probability :math:`w_t / \sum_{s \le t} w_s` (the
    weighted reservoir of Chao 1982).

    Target: exp(-U) in the limit of many steps; the bias falls as one over the effective number of draws, steps times
    relative ESS. Cost: one evaluation a step, without gradient. The acceptance falls to zero as the chain settles.
    Extra: log_weights (N,), the log of the sum of the weights so far.

    Example:

        >>> import torch
        >>> from gebm.latent import GaussianPrior, LatentPosterior
        >>> from gebm.samplers import run
        >>> posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: 1.5 * x.square().sum(1))  # N(0, I / 4)
        >>> start, generator = posterior.start(1000), torch.Generator().manual_seed(0)
        >>> chain = run(SIR(), posterior, start, 200, generator=generator)
        >>> round(float(chain.state.position.std()), 1)
        0.5
    """

    moves = False
    anneals = False

    def init(self, position: Tensor, target: Target) -> State:
        state = super().init(position, target)
        return state._replace(extra={"log_weights": _log_weight(state)})

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        position = normal_like(state.position, generator)
        candidate = State(position, evaluate(target, position))
        log_weight = _log_weight(candidate)
        total = torch.logaddexp(state.extra["log_weights"], log_weight)
        probability = torch.nan_to_num(torch.exp(log_weight - total))  # no weight at all so far: stay
        uniform = torch.rand(probability.shape, generator=generator, device=position.device, dtype=position.dtype)
        taken = uniform < probability
        state = select(taken, candidate, state)._replace(extra={"log_weights": total})
        return state, Info(probability, taken, torch.isfinite(log_weight))


def _log_weight(state: State) -> Tensor:
    """log w up to a constant; a draw whose potential is not finite weighs nothing."""
    log_weight = prior_potential(state.position) - state.potential
    return torch.where(torch.isfinite(log_weight), log_weight, -torch.inf)
