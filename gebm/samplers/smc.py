"""Sequential Monte Carlo from the prior to the target."""

import math
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from gebm.errors import InputError
from gebm.latent import Target
from gebm.samplers.base import Info, Kernel, State, UnfinishedError
from gebm.samplers.mala import MALA
from gebm.samplers.tempering import Tempered, excess
from gebm.text import show

__all__ = ["SMC", "family_totals", "log_partition_of", "log_weights_of"]

POPULATION = 100  # particles that make one that is worth having
RESAMPLE = 0.5  # relative effective sample size below which the population is resampled
RATE = 0.5  # of the adaptation of the step size: d log h for an acceptance that is off by one
BISECTIONS = 20
HALVINGS = 60.0  # of the way that is left, down to the shortest step


@dataclass(frozen=True)
class SMC(Kernel):
    r"""Adaptively tempered sequential Monte Carlo (Del Moral, Doucet and Jasra 2006), the N chains as one population.

    A step goes on along the path :math:`U_t`, t from 0 (prior) to 1 (target), see `Tempered`, with weights W:

    1. to the largest t' <= 1 at which :math:`w = e^{-(t' - t) \phi(z)}`, phi what U has over the prior's potential, has
       the conditional relative effective sample size :math:`(\sum W w)^2 / \sum W w^2 =` `ess` (Zhou, Johansen and
       Aston 2016); :math:`\log \sum W w` is added to log Z;
    2. systematic resampling where the relative effective sample size of W w is below 0.5, at the end of the path, and
       where a particle has a potential that is not finite, which weighs nothing;
    3. one MALA step at t'. Its step size follows the acceptance to 0.574, from `step_size` on.

    Once t is 1 a step is a MALA step. Starts must be draws from the prior.

    Target: exp(-U) as N grows, at a rate of one over N; Z is unbiased for :math:`\int e^{-U}`, up to the adaptation.
    Cost: one value-and-gradient a step. Extra: t, log_z and log_h (the log of the factor on h), 0-dimensional, weights
    (N,) and families (N,), the weight of all descendants of a start at the end of the path (see `log_weights_of`), all
    float64; ancestor (N,), the start that each particle descends from.

    Arguments:
        step_size: h of the first MALA step.
        ess: conditional relative effective sample size of a step, in (0, 1); nearer to 1: more steps, a better log Z.

    Example:

        >>> import torch
        >>> from gebm.latent import GaussianPrior, LatentPosterior
        >>> from gebm.samplers import run
        >>> posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: 1.5 * x.square().sum(1))  # N(0, I / 4)
        >>> start, generator = posterior.start(1000), torch.Generator().manual_seed(0)
        >>> chain = run(SMC(0.3), posterior, start, 200, generator=generator)
        >>> round(float(chain.state.position.std()), 1)
        0.5
    """

    ess: float = 0.99

    exact = True
    moves = False
    anneals = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ess, Real) or not 0 < self.ess < 1:
            raise InputError(f"SMC: ess must be a number between 0 and 1, not {show(self.ess)}")

    @staticmethod
    def check_populations(n: int, chunk: int) -> None:
        """Raise InputError where n particles, `chunk` at a time, leave a last population that is too small."""
        least, last = POPULATION if n > chunk >= POPULATION else 2, n % chunk or min(n, chunk)
        if last < least:
            raise InputError(
                f"SMC: n={n} with chunk={chunk} leaves a last population of {last}, and one takes {least} or more; "
                "give an n that chunk divides, or another chunk"
            )

    def init(self, position: Tensor, target: Target) -> State:
        n = len(position)
        if n < 2:
            raise InputError(f"SMC: needs a population, and n is {n}: give hundreds or more")
        zero = torch.zeros((), dtype=torch.float64, device=position.device)
        weights = (zero + 1 / n).repeat(n)
        extra = {"t": zero, "log_z": zero, "log_h": zero, "weights": weights, "families": weights}
        extra["ancestor"] = torch.arange(n, device=position.device)
        return super().init(position, target)._replace(extra=extra)

    def step(self, state: State, target: Target, generator: torch.Generator | None = None) -> tuple[State, Info]:
        if "families" not in state.extra:
            raise InputError("SMC: this population lacks its families: it is of another version; start it anew")
        extra, weights, ancestor = state.extra, state.extra["weights"], state.extra["ancestor"]
        phi = excess(state).double()
        phi = torch.where(torch.isfinite(phi), phi, torch.inf)
        further = self._further(phi, weights, 1 - extra["t"])
        t = extra["t"] + further
        log_w = weights.log() + _exponents(phi, further)
        log_sum, weights = torch.logsumexp(log_w, 0), torch.softmax(log_w, 0)
        families = torch.where(further > 0, family_totals(weights, ancestor), extra["families"])

        n, everyone = len(phi), torch.arange(len(phi), device=phi.device)
        resample = (1 / (n * weights.square().sum()) < RESAMPLE) | ((t >= 1) & (further > 0)) | torch.isinf(phi).any()
        keep = torch.where(resample, _systematic(weights, generator), everyone)
        weights = torch.where(resample, 1 / n, weights)

        chosen = State(state.position[keep], state.potential[keep], state.grad[keep])
        h = self.step_size * torch.exp(extra["log_h"])
        moved, info = Tempered(MALA(h), t).step(chosen, target, generator)
        log_h = extra["log_h"] + RATE * ((weights * info.acceptance).sum() - MALA.goal)
        now = {"t": t, "log_z": extra["log_z"] + log_sum, "log_h": log_h, "weights": weights}
        return moved._replace(extra={**now, "families": families, "ancestor": ancestor[keep]}), info

    def finished(self, state: State) -> "SMC":
        t = float(state.extra["t"])
        if t < 1:
            raise UnfinishedError(
                f"smc: came only {t:.1%} of the way from the prior to the target; give more steps, or a lower beta"
            )
        return replace(self, step_size=self.step_size * math.exp(state.extra["log_h"]))

    def _further(self, phi: Tensor, weights: Tensor, most: Tensor) -> Tensor:
        """The largest step along the path, at most `most`, that keeps the conditional effective sample size."""

        def enough(step: Tensor) -> Tensor:
            log_w = _exponents(phi, step)
            w = torch.exp(log_w - log_w.max())
            return (weights * w).sum().square() / (weights * w.square()).sum() >= self.ess

        # In the number of halvings, because a step is as short as one over the spread of phi, be that 1 or 1e9.
        few, many = torch.zeros_like(most), torch.full_like(most, HALVINGS)
        for _ in range(BISECTIONS):  # a fixed number: no waiting for the device
            middle = (few + many) / 2
            fine = enough(most * torch.exp2(-middle))
            few, many = torch.where(fine, few, middle), torch.where(fine, middle, many)
        return torch.where(enough(most), most, most * torch.exp2(-many))


def log_partition_of(state: State) -> tuple[Tensor, Tensor]:
    r"""log Z of a population and its standard error, float64 scalars.

    The error comes from the genealogy: with W_a the weight of all particles that descend from start a, at the end of
    the path, :math:`\widehat{\mathrm{Var}}(Z) / Z^2 = 1 - (1 - \sum_a W_a^2) / (1 - 1/N)` (Lee and Whiteley 2018; their
    further factor N / (N - 1) per resampling is the noise of multinomial resampling, which systematic resampling has
    not). It grows large, rightly, when all particles descend from few starts.
    """
    n, total = len(state.position), state.extra["families"].square().sum()
    return state.extra["log_z"], (1 - (1 - total) / (1 - 1 / n)).clamp(min=0).sqrt()


def log_weights_of(state: State) -> Tensor:
    """Log-weights (N,) of the starts, whose mean weight is Z: log (N Z W_a), W_a as in `log_partition_of`.

    To this mean a start contributes as a draw does in importance sampling, with an error of the same form.
    """
    families = state.extra["families"]
    return state.extra["log_z"] + torch.log(len(families) * families)


def family_totals(values: Tensor, ancestor: Tensor) -> Tensor:
    """Sums (N,) of values (N,) over the particles that descend from each start: what is independent in a population."""
    return torch.zeros_like(values).index_add(0, ancestor, values)


def _exponents(phi: Tensor, step: Tensor) -> Tensor:
    """-step * phi; a particle with an infinite energy weighs nothing, however short the step."""
    return torch.where(torch.isinf(phi), -torch.inf, -step * phi)


def _systematic(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Indices (N,) of the particles kept, each floor(N w) or ceil(N w) times, in order."""
    n = len(weights)
    shift = torch.rand((), generator=generator, device=weights.device, dtype=weights.dtype)
    points = (torch.arange(n, device=weights.device, dtype=weights.dtype) + shift) / n
    return torch.searchsorted(weights.cumsum(0), points).clamp(max=n - 1)
