"""Time of one training step of a pair of RealNVPs on rows of a table, against a plain eager baseline.

python benchmarks/density_step.py --seconds 60 --json density.json

The baseline is the same mathematics in the way of the paper's 2021 code: couplings that mask the full width, energies
of data and samples in passes of their own, the base's density with a graph to its parameters.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from timing import compare, environment, interleave
from torch import Tensor, nn

from gebm.model import GEBM, Architecture
from gebm.objectives import KALE, MaximumLikelihood

LAMBDA = 0.1  # of the gradient_l2 penalty
PUBLISHED = {"energy": 72, "base": 51, "ml": 20}  # ms a step of the 2021 code, batch 100, on this kind of machine


class MaskedNVP(nn.Module):
    """RealNVP whose couplings multiply by masks: inputs, outputs and zeros, all of them computed."""

    def __init__(self, dim: int, blocks: int, hidden: int = 100):
        super().__init__()
        self.register_buffer("masks", torch.stack([(torch.arange(dim) % 2 == i % 2).float() for i in range(blocks)]))
        self.scales = nn.ModuleList(_network(dim, hidden, nn.Tanh) for _ in range(blocks))
        self.shifts = nn.ModuleList(_network(dim, hidden, nn.ReLU) for _ in range(blocks))

    def forward(self, z: Tensor) -> Tensor:
        for mask, scale, shift in reversed(list(zip(self.masks, self.scales, self.shifts))):
            z = (z - shift(z * mask) * (1 - mask)) * torch.exp(-scale(z * mask) * (1 - mask))
        return z

    def log_prob(self, x: Tensor) -> Tensor:
        log_det = torch.zeros(len(x))
        for mask, scale, shift in zip(self.masks, self.scales, self.shifts):
            log_scale = scale(x * mask) * (1 - mask)
            x = x * torch.exp(log_scale) + shift(x * mask) * (1 - mask)
            log_det = log_det + log_scale.sum(1)
        return log_det + (-0.5 * x.square() - 0.5 * math.log(2 * math.pi)).sum(1)


def _network(dim: int, hidden: int, activation: type[nn.Module]) -> nn.Sequential:
    network = nn.Sequential(
        nn.Linear(dim, hidden), activation(), nn.Linear(hidden, hidden), activation(), nn.Linear(hidden, dim)
    )
    nn.init.zeros_(network[-1].weight)
    return network


def baseline(dim: int, blocks: int, real: Tensor, noise: int) -> dict[str, Callable[[], None]]:
    """One step of each kind, in the way of the 2021 code."""
    base, flow, c = MaskedNVP(dim, blocks), MaskedNVP(dim, blocks), nn.Parameter(torch.zeros(()))
    energy_optimizer, base_optimizer = _adam([*flow.parameters(), c]), _adam(base.parameters())

    def energy_of(x: Tensor) -> Tensor:
        return base.log_prob(x) - flow.log_prob(x)

    def step_energy() -> None:
        fake = base(torch.randn(noise * len(real), dim)).detach()
        x = torch.lerp(fake[: len(real)], real, torch.rand(len(real), 1)).requires_grad_()
        (gradient,) = torch.autograd.grad(energy_of(x).sum(), x, create_graph=True)
        parameters = list(flow.parameters())
        l2 = sum(p.square().sum() for p in parameters) / sum(p.numel() for p in parameters)
        loss = energy_of(real).mean() + c + torch.exp(-(energy_of(fake) + c)).mean() - 1
        _descend(energy_optimizer, loss + LAMBDA * (gradient.square().sum(1).mean() + l2))

    def step_base() -> None:
        fake = base(torch.randn(len(real), dim))
        _descend(base_optimizer, math.log(len(fake)) - torch.logsumexp(-energy_of(fake), 0))

    def step_ml() -> None:
        _descend(energy_optimizer, -flow.log_prob(real).mean())

    return {"energy": step_energy, "base": step_base, "ml": step_ml}


def ours(dim: int, blocks: int, real: Tensor, noise: int) -> dict[str, Callable[[], None]]:
    """One step of each kind."""
    model = GEBM.build(Architecture("nvp", "nvp", shape=(dim,), latent_dim=dim, blocks=blocks))
    kale = KALE(model.energy, model.log_partition, "gradient_l2", LAMBDA)
    likelihood = MaximumLikelihood(model.energy, model.log_partition, "none")
    energy_optimizer, base_optimizer = _adam(kale.parameters()), _adam(model.base.parameters())
    weights = list(kale.parameters())

    def step_energy() -> None:
        with torch.no_grad():
            fake = model.generate(noise * len(real))
        _descend(energy_optimizer, kale(real, fake)[0], weights)

    def step_base() -> None:
        model.energy.requires_grad_(False)
        _descend(base_optimizer, kale.base_loss(model.base, torch.randn(len(real), dim), lambda: real)[0])
        model.energy.requires_grad_(True)

    def step_ml() -> None:
        _descend(energy_optimizer, likelihood(real)[0])

    return {"energy": step_energy, "base": step_base, "ml": step_ml}


def _adam(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-4, (0.5, 0.9))


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, inputs: list[Tensor] | None = None) -> None:
    optimizer.zero_grad()
    loss.backward(inputs=inputs)
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=11)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--noise", type=int, nargs="+", default=[1, 20], help="base samples for each row of a batch")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    real = torch.randn(args.batch, args.dim)
    calls = {}
    for noise in args.noise:
        for form, make in (("baseline", baseline), ("gebm", ours)):
            steps = make(args.dim, args.blocks, real, noise)
            kinds = steps if noise == args.noise[0] else ["energy"]  # the other steps take no samples of that number
            calls |= {f"{kind}, noise {noise}|{form}": steps[kind] for kind in kinds}
    times = interleave(calls, args.seconds)
    found = {}
    print(f"{args.threads} thread(s), {args.dim} columns, {args.blocks} couplings, batch {args.batch}")
    for name in dict.fromkeys(key.partition("|")[0] for key in calls):
        before = compare(times[f"{name}|baseline"], times[f"{name}|baseline"]).ms
        mine = compare(times[f"{name}|baseline"], times[f"{name}|gebm"])
        found[name] = {"baseline_ms": before, **mine._asdict()}
        ratio = f"{mine.ratio:.2f}x ({mine.low:.2f} to {mine.high:.2f})"
        print(f"{name:18} baseline {before:7.2f} ms   gebm {mine.ms:7.2f} ms   {ratio}")
    print(f"seen of the 2021 code at batch 100, ms: {', '.join(f'{kind} {ms}' for kind, ms in PUBLISHED.items())}")
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key != "json"}
        args.json.write_text(json.dumps({"environment": environment(), "settings": settings, "steps": found}, indent=1))


if __name__ == "__main__":
    main()
