"""A plain eager baseline: samplers and training steps the way the paper's 2021 code works, in our own words."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from gebm import fast

__all__ = ["ReferenceStyle", "ReferenceTraining"]


class ReferenceStyle:
    r"""One step of a sampler of :math:`\exp(-U(z))`, :math:`U(z) = -\log \eta(z) + \beta E(G(z))`, eta Gaussian.

    What makes it slower than `gebm.latent.LatentPosterior.frozen` (paper.md section 6, "Samplers"): the gradient comes
    from `backward()`, which also computes and accumulates the gradient of every parameter of both networks; spectral
    norms are recomputed in each forward (W / sigma, without power iterations: the networks are in evaluation mode);
    BatchNorm, doubling and pooling are operations of their own; tensors are contiguous float32. What it shares: the
    same weights and layers, and algorithms that are right: MALA and HMC evaluate both potentials of their ratio anew,
    which is two forwards more than they need, but accept by the right ratio and go on from the right gradient (paper.md
    section 6, items 1 and 2, has what the 2021 code does instead).

    Arguments:
        base: network (N, d) -> samples; copied.
        energy: network samples -> (N,); copied.
        beta: inverse temperature.
    """

    def __init__(self, base: nn.Module, energy: nn.Module, beta: float = 100.0):
        self.base = copy.deepcopy(base).eval()
        self.energy = copy.deepcopy(energy).eval()
        self.beta = beta

    def potential(self, z: Tensor) -> Tensor:
        """U of latents (N, d): (N,), differentiable."""
        prior = Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(1)
        with fast.plain():
            return self.beta * self.energy(self.base(z)) - prior

    def gradient(self, z: Tensor) -> Tensor:
        """Gradient of U at latents (N, d): (N, d); leaves parameter gradients behind."""
        z = z.clone().detach().requires_grad_()
        self.potential(z).sum().backward()
        return z.grad

    def langevin(self, z: Tensor, gamma: float = 1e-4) -> Tensor:
        """z' = z - (gamma/2) grad U(z) + sqrt(gamma) xi."""
        return z - gamma / 2 * self.gradient(z) + math.sqrt(gamma) * torch.randn_like(z)

    def kinetic(self, z: Tensor, v: Tensor, gamma: float = 1e-4, kappa: float = 100.0) -> tuple[Tensor, Tensor]:
        """ABOBA splitting with step h = 2 sqrt(gamma) and friction kappa: (z, v) -> (z', v')."""
        h = 2 * math.sqrt(gamma)
        keep = math.exp(-kappa * h)
        z = z + h / 2 * v
        kick = h / 2 * self.gradient(z)
        v = keep * (v - kick) + math.sqrt(1 - keep**2) * torch.randn_like(v) - kick
        return z + h / 2 * v, v

    def mala(self, z: Tensor, gradient: Tensor, gamma: float = 1e-4) -> tuple[Tensor, Tensor]:
        """Langevin proposal and accept step: (z, grad U(z)) -> those of the next step; 3 forwards, 1 backward."""
        noise = torch.randn_like(z)
        proposal = z - gamma / 2 * gradient + math.sqrt(gamma) * noise
        onward = self.gradient(proposal)
        back = z - proposal + gamma / 2 * onward
        correction = noise.square().sum(1) / 2 - back.square().sum(1) / (2 * gamma)
        return self._accept(z, gradient, proposal, onward, correction)

    def hmc(self, z: Tensor, gradient: Tensor, gamma: float = 1e-4, leapfrog: int = 2) -> tuple[Tensor, Tensor]:
        """L leapfrog steps h = 2 sqrt(gamma) and accept step, arguments as `mala`; L + 2 forwards, L backwards."""
        h = 2 * math.sqrt(gamma)
        drawn = v = torch.randn_like(z)
        proposal, onward = z, gradient
        for _ in range(leapfrog):
            v = v - h / 2 * onward
            proposal = proposal + h * v
            onward = self.gradient(proposal)
            v = v - h / 2 * onward
        correction = (drawn.square().sum(1) - v.square().sum(1)) / 2
        return self._accept(z, gradient, proposal, onward, correction)

    def _accept(
        self, z: Tensor, gradient: Tensor, proposal: Tensor, onward: Tensor, correction: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Outside no_grad, as in 2021: both forwards record graphs that nothing uses.
        log_ratio = (self.potential(z) - self.potential(proposal)).detach() + correction
        accepted = (torch.rand_like(log_ratio).log() < log_ratio)[:, None]
        return torch.where(accepted, proposal, z), torch.where(accepted, onward, gradient)


class ReferenceTraining:
    r"""An energy step and a base step of KALE with the penalty gradient_l2.

    What makes it slower than `gebm.training.trainer.Trainer`: data, samples and the points between go through the
    energy one after the other, each with a power iteration of every spectral norm of its own; the gradient penalty
    is plain double differentiation; a base step also evaluates the data, which its loss reports, and computes the
    gradients of the energy's parameters; optimisers are the default ones. What it shares: weights, layers, loss,
    batch sizes.

    Arguments:
        base, energy: networks; copied.
        data: batches (N, ...), one a step.
        dim: of the latents.
        penalty: weight of gradient_l2.
    """

    def __init__(
        self,
        base: nn.Module,
        energy: nn.Module,
        data: Iterator[Tensor],
        dim: int,
        lr: float = 1e-4,
        penalty: float = 0.1,
    ):
        self.base, self.energy = copy.deepcopy(base).train(), copy.deepcopy(energy).train()
        self.data, self.dim, self.penalty = data, dim, penalty
        self.log_partition = nn.Parameter(torch.zeros((), device=next(base.parameters()).device))
        self.energy_optimizer = torch.optim.Adam([*self.energy.parameters(), self.log_partition], lr, (0.0, 0.9))
        self.base_optimizer = torch.optim.Adam(self.base.parameters(), lr, (0.0, 0.9))

    def energy_step(self) -> Tensor:
        """One step of the energy and of c; returns its loss."""
        with fast.plain():
            self._forget()
            loss = self.energy_loss(next(self.data))
            loss.backward()
            self.energy_optimizer.step()
        return loss.detach()

    def energy_loss(self, real: Tensor) -> Tensor:
        """Minus KALE in Fenchel form, and the penalty."""
        with torch.no_grad():
            fake = self.base(self._latents(real))
        e_real, e_fake, c = self.energy(real), self.energy(fake), self.log_partition
        t = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = torch.lerp(fake, real, t).requires_grad_()
        (gradient,) = torch.autograd.grad(self.energy(between).sum(), between, create_graph=True)
        weights = list(self.energy.parameters())
        l2 = sum(w.square().sum() for w in weights) / sum(w.numel() for w in weights)
        slope = gradient.flatten(1).square().sum(1).mean()
        return e_real.mean() + c + torch.exp(-(e_fake + c)).mean() - 1 + self.penalty * (slope + l2)

    def base_step(self) -> Tensor:
        """One step of the base; returns its loss."""
        with fast.plain():
            self._forget()
            real = next(self.data)
            e_fake, e_real = self.energy(self.base(self._latents(real))), self.energy(real)
            loss = math.log(len(e_fake)) - torch.logsumexp(-e_fake, 0) - e_real.mean()
            loss.backward()
            self.base_optimizer.step()
        return loss.detach()

    def _latents(self, real: Tensor) -> Tensor:
        return torch.randn(len(real), self.dim, device=real.device)

    def _forget(self) -> None:
        for optimizer in (self.energy_optimizer, self.base_optimizer):
            optimizer.zero_grad()
