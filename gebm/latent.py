r"""Latent priors and the latent posterior that every sampler targets."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from gebm import fast
from gebm.arguments import check_number, check_whole
from gebm.errors import InputError
from gebm.graphs import Graphed
from gebm.networks.common import called, evaluating, floats
from gebm.networks.folding import ROWS, Original, copied, inference_form, is_known
from gebm.networks.trials import is_cut, rounds, same_noise, unchanged

__all__ = [
    "PRIORS", "GaussianPrior", "LatentPosterior", "Prior", "Target", "UniformPrior", "prior_potential",
    "value_and_grad",
]  # fmt: skip


T = TypeVar("T", Tensor, tuple[Tensor, Tensor])


class Target(Protocol):
    """What a kernel samples from: positions (N, d) -> potentials (N,) and their gradients (N, d).

    `potential` gives the first alone, which is all that kernels without gradients need.
    """

    def __call__(self, z: Tensor, /) -> tuple[Tensor, Tensor]: ...

    def potential(self, z: Tensor, /) -> Tensor: ...


def prior_potential(u: Tensor) -> Tensor:
    r"""Minus the log-density of N(0, I) at Gaussian coordinates (N, d), :math:`\|u\|^2/2 + (d/2) \log 2\pi`: (N,)."""
    return 0.5 * u.square().sum(1) + 0.5 * u.shape[1] * math.log(2 * math.pi)


def one_a_row(values: Tensor, rows: Tensor, what: str) -> Tensor:
    """The values, of shape (N,); (N, 1) would be broadcast to (N, N) without a word. Raises InputError."""
    if not isinstance(values, Tensor):
        raise InputError(f"{what} gives a {type(values).__name__}, not a tensor of one number a row")
    n = len(rows)
    if values.shape != (n,):
        mend = "squeeze it, by .squeeze(1)" if values.shape == (n, 1) else "give one number a row, no mean over rows"
        if n == 1 and not values.ndim:
            mend = "squeeze one dimension alone, by .squeeze(1)"
        raise InputError(f"{what} gives {tuple(values.shape)} for {n} rows, not {(n,)}: {mend}")
    return values


def value_and_grad(potential: Callable[[Tensor], Tensor]) -> Target:
    """Turn any differentiable potential (N, d) -> (N,) of independent rows into a `Target`.

    Raises (when called):
        InputError: the potential does not give one number a row.

    Example:

        >>> target = value_and_grad(lambda z: z.square().sum(1) / 2)  # a standard Gaussian
        >>> target(torch.tensor([[3.0, 4.0]]))
        (tensor([12.5000]), tensor([[3., 4.]]))
    """
    return _Differentiated(potential)


class _Differentiated:
    def __init__(self, potential: Callable[[Tensor], Tensor]):
        self.potential = potential

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = one_a_row(self.potential(z), z, "the potential")
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient


@contextmanager
def _no_tf32() -> Iterator[None]:
    """TF32 keeps 10 bits of a float32's 23: too few for an accept ratio at beta 100."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    backends: tuple[Any, ...] = cuda.matmul, cudnn.conv, cudnn.rnn  # type: ignore[attr-defined]  # torch: untyped
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


class Prior(ABC):
    """Distribution eta of independent latent coordinates.

    Arguments:
        dim: dimension d.

    Raises:
        InputError: a dimension, or a number of draws, that is not a whole number of 1 or more.
    """

    def __init__(self, dim: int):
        check_whole(1, dim=dim)
        self.dim = dim

    def sample(self, n: int, generator: torch.Generator | None = None, like: Tensor | None = None) -> Tensor:
        """Draw latents (n, d), with the device and dtype of `like`."""
        return self.from_gaussian(_normal(n, self.dim, generator, like))

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of latents (N, d), summed over coordinates: (N,)."""

    @abstractmethod
    def from_gaussian(self, u: Tensor) -> Tensor:
        """Map N(0, I) to this prior, coordinate by coordinate."""


class GaussianPrior(Prior):
    r"""Standard Gaussian, :math:`\log \eta(z) = -\|z\|^2/2 - (d/2) \log 2\pi`.

    Example:

        >>> prior = GaussianPrior(2)
        >>> prior.sample(3).shape, prior.log_prob(torch.zeros(1, 2))
        (torch.Size([3, 2]), tensor([-1.8379]))
    """

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(1) - 0.5 * self.dim * math.log(2 * math.pi)

    def from_gaussian(self, u: Tensor) -> Tensor:
        return u


class UniformPrior(Prior):
    r"""Uniform on [-1, 1]^d, :math:`\log \eta(z) = -d \log 2` inside and minus infinity outside.

    Example:

        >>> prior = UniformPrior(2)
        >>> prior.log_prob(torch.tensor([[0.0, 0.5], [0.0, 1.5]]))
        tensor([-1.3863,    -inf])
    """

    def log_prob(self, z: Tensor) -> Tensor:
        inside = (z.abs() <= 1).all(1)
        return z.new_full((len(z),), -self.dim * math.log(2)).masked_fill(~inside, -math.inf)

    def from_gaussian(self, u: Tensor) -> Tensor:
        return torch.erf(u / math.sqrt(2))


PRIORS: dict[str, type[Prior]] = {"gaussian": GaussianPrior, "uniform": UniformPrior}


def _normal(n: int, dim: int, generator: torch.Generator | None, like: Tensor | None) -> Tensor:
    check_whole(1, n=n)
    like = torch.empty(0) if like is None else like
    return torch.randn(n, dim, generator=generator, device=like.device, dtype=like.dtype)


class LatentPosterior:
    r"""Latent posterior of a generalized energy-based model, in Gaussian coordinates u.

    .. math:: U(u) = \tfrac12 \|u\|^2 + \beta E(G(T(u))) + \tfrac d2 \log 2\pi,

    T the coordinate-wise map from N(0, I) to the prior (the identity for the Gaussian prior, where u is z). For
    u ~ exp(-U), z = T(u) follows the latent posterior nu(z) ∝ eta(z) exp(-beta E(G(z))) and x = G(z) the model Q
    (paper.md section 1). A bounded prior thus needs no special case in any sampler.

    Arguments:
        prior: latent prior.
        base: network, or any function, (N, d) -> samples.
        energy: network, or any function, samples -> (N,).
        beta: inverse temperature, a finite number of 0 (the prior) or more; anything else is an InputError.

    Calling it with u (N, d) gives the potentials (N,) and gradients (N, d); parameters take no gradients when it is
    `frozen()`. The networks are used in the mode they are in: put them into `eval()` first, or freeze.

    Example:

        >>> posterior = LatentPosterior(GaussianPrior(2), lambda z: z, lambda x: x.square().sum(1) / 2, beta=3.0)
        >>> potential, gradient = posterior(torch.ones(1, 2))  # of N(0, I / 4)
        >>> gradient
        tensor([[4., 4.]])
        >>> posterior.at(0.0)(torch.ones(1, 2))[1]  # the prior
        tensor([[1., 1.]])
    """

    def __init__(
        self, prior: Prior, base: Callable[[Tensor], Tensor], energy: Callable[[Tensor], Tensor], beta: float = 1.0
    ):
        check_number(0, beta=beta)
        self.prior = prior
        self.base = base
        self.energy = energy
        self.beta = beta
        tensors = (t for network in (energy, base) if isinstance(network, nn.Module) for t in floats(network))
        self._like = next(tensors, torch.empty(0))
        self._moving = base, energy  # what chains move by; of a frozen form in half precision, copies of less
        self._rows = 0
        self._rounds: bool | None = None  # whether anything is computed in half precision; None: not yet tried
        self._cut: str | None = None  # which of the networks has no gradient, "" for none; None: not yet tried
        self._value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]] = value_and_grad(self.potential)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self._like.device

    @property
    def exact(self) -> bool:
        """Whether potentials are precise enough for an accept step: networks in float32 or float64, and no autocast.

        Functions, and networks with modules that are not torch's or ours, are tried once on a few latents, as they may
        have an autocast of their own.
        """
        dtypes = {t.dtype for network in self._networks() for t in floats(network)}
        if not dtypes <= {torch.float32, torch.float64} or torch.is_autocast_enabled(self.device.type):
            return False
        if self._rounds is None:
            self._rounds = not all(is_known(part) for part in self._moving) and self._tried()
        return not self._rounds

    @property
    def cut(self) -> str:
        """Which of "base" and "energy" cuts the gradient of E(G(z)), tried once on a few latents; none, or where beta
        is 0, an empty string. A gradient of zero, as of a constant or on a floor, is no cut.
        """
        if not self.beta:
            return ""
        if self._cut is None:
            self._cut = "" if all(is_known(part) for part in self._moving) else self._tried_gradient()
        return self._cut

    def _tried_gradient(self) -> str:
        networks, (base, energy) = self._networks(), self._moving
        try:
            with torch.inference_mode(False), evaluating(*networks), unchanged(*networks), same_noise(self.device):
                u = self._trial()
                z = self.prior.from_gaussian(u).to(self._weight_dtype(u))
                if is_cut(base, z):
                    return "base"
                return "energy" if is_cut(energy, base(z)) else ""
        except Exception:  # whatever a user's network may raise; chains then will
            return ""

    def _networks(self) -> list[nn.Module]:
        return [network for network in self._moving if isinstance(network, nn.Module)]

    def _tried(self) -> bool:
        """Whether anything is computed in half precision; False where the trial fails, as chains then will."""
        networks = self._networks()
        try:
            with evaluating(*networks), unchanged(*networks):
                return rounds(self._potential, self._trial())
        except Exception:  # whatever a user's network may raise
            return False

    def _trial(self, wide: bool = False) -> Tensor:
        """Positions to try networks on, always the same; wide: more, from near the prior's centre to far out."""
        n = 8 * ROWS if wide else ROWS
        u = self.start(n, torch.Generator(self.device).manual_seed(0))
        return u * 2 ** torch.linspace(-2, 2, n, dtype=u.dtype, device=u.device)[:, None] if wide else u

    def start(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n starts (n, d) from the prior, as Gaussian coordinates."""
        return _normal(n, self.prior.dim, generator, self._like)

    def decode(self, u: Tensor) -> Tensor:
        """Samples x = G(T(u)) of positions (N, d), without gradients, in the dtype of u."""
        with torch.no_grad():
            return self._by_rows(lambda u: called(self.base, self.prior.from_gaussian(u), "the base").to(u.dtype), u)

    def energies(self, u: Tensor) -> Tensor:
        """E(G(T(u))) of positions (N, d): (N,), without gradients."""
        return self.decode_with_energies(u)[1]

    def decode_with_energies(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Samples x = G(T(u)) of positions (N, d) and their energies (N,), without gradients."""

        def both(u: Tensor) -> tuple[Tensor, Tensor]:
            x = called(self.base, self.prior.from_gaussian(u), "the base")
            return x.to(u.dtype), one_a_row(called(self.energy, x, "the energy"), u, "the energy").to(u.dtype)

        with torch.no_grad():
            return self._by_rows(both, u)

    def potential(self, u: Tensor) -> Tensor:
        """U of positions (N, d): (N,), differentiable."""
        with _no_tf32():
            return self._by_rows(self._potential, u)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        with _no_tf32():
            return self._by_rows(self._value_and_grad, u)

    def at(self, beta: float) -> "LatentPosterior":
        """The same networks at another inverse temperature; InputError for one below 0 or not finite."""
        check_number(0, beta=beta)
        other = copy.copy(self)
        other.beta = beta
        other._value_and_grad = value_and_grad(other.potential)
        if isinstance(self._value_and_grad, Graphed):
            other._value_and_grad = Graphed(other._value_and_grad)
        return other

    def frozen(self, dtype: torch.dtype | None = None, rows: int = 0) -> "LatentPosterior":
        """Inference form: the same function with norms folded, no parameter gradients, channels-last layout.

        Where that is seen to change a network's values or gradients at a few latents, the network is computed as it is
        written, and where a copy changes them, by itself in evaluation mode; the log says so once. Plain functions stay
        as they are. On a GPU potential and gradient are one
        CUDA graph (untested on CUDA).

        Arguments:
            dtype: torch.bfloat16 lets chains move by the gradient of networks in bfloat16, while samples, energies,
                positions, the energy's head and the prior term keep their precision. The potential then moves by whole
                nats at beta 100 (measured in design.md), so `run` refuses it to kernels with an accept step.
            rows: positions that go through the networks at a time, which bounds the memory; 0: all.

        Raises:
            InputError: a dtype for plain functions, or `rows` below 0; a network that cannot be copied, or fails on
                latents or samples.
        """
        check_whole(0, rows=rows)
        with torch.inference_mode(False), _no_tf32():
            base, energy = self._inference_forms()
        frozen = LatentPosterior(self.prior, base, energy, self.beta)
        frozen._like, frozen._rows = self._like.detach(), rows
        if dtype not in (None, self._like.dtype):
            if not isinstance(base, nn.Module) or not isinstance(energy, nn.Module):
                raise InputError("frozen: a dtype can be given to networks (torch modules), not to plain functions")
            if isinstance(base, Original) or isinstance(energy, Original):
                raise InputError("frozen: a dtype needs networks of which a copy is the same function; leave it out")
            moving_base, moving_energy = copied(base).to(dtype), copied(energy)
            features = getattr(moving_energy, "features", None)  # all but its head, of an energy of ours
            (features if isinstance(features, nn.Module) else moving_energy).to(dtype)
            frozen._moving = moving_base, moving_energy
        if fast.enabled() and self.device.type == "cuda":
            frozen._value_and_grad = Graphed(frozen._value_and_grad)
        return frozen

    def _inference_forms(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Base and energy for inference, tried on a few latents, always the same ones, and on their samples."""
        base, energy = self.base, self.energy

        def latents(wide: bool) -> Tensor:
            return self.prior.from_gaussian(self._trial(wide))

        def samples(wide: bool) -> Tensor:
            with torch.no_grad(), same_noise(self.device):
                return called(base, latents(wide), "the base")

        if isinstance(base, nn.Module):
            base = inference_form(base, latents, "the base")
        if isinstance(energy, nn.Module):
            energy = inference_form(energy, samples, "the energy")
        return base, energy

    def _potential(self, u: Tensor) -> Tensor:
        base, energy = self._moving
        x = called(base, self.prior.from_gaussian(u).to(self._weight_dtype(u)), "the base")
        e = one_a_row(called(energy, x, "the energy"), u, "the energy")
        return prior_potential(u) + self.beta * e.to(u.dtype)

    def _weight_dtype(self, otherwise: Tensor) -> torch.dtype:
        """That of the base's weights, or else that of a tensor."""
        base = self._moving[0]
        return next(base.parameters(), otherwise).dtype if isinstance(base, nn.Module) else otherwise.dtype

    def _by_rows(self, function: Callable[[Tensor], T], u: Tensor) -> T:
        """function(u), `rows` positions at a time."""
        parts = [function(part) for part in torch.split(u, self._rows or max(len(u), 1))]
        if len(parts) == 1:
            return parts[0]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        first, second = zip(*parts)
        return torch.cat(first), torch.cat(second)
