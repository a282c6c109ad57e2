"""One posterior, several samplers: who has reached it, and how each would tell you. Seconds on one CPU thread.

    python examples/samplers_compared.py --out samplers

The latent posterior is U(z) = |z|^2/2 + beta E(z) in ten dimensions, with an energy whose answer is known: a double
well in the first coordinate, its right side the deeper, and a narrow well in each of the others. The coordinates are
independent, so integrals in one dimension give the truth: the mean energy, and the share of the mass on the right.

Chains start at the prior, half of them on either side, and every sampler may evaluate the posterior equally often.
What to look at:

- R-hat near 1 says that the chains agree. That of the energy alone does not see a mode which chains cannot leave, as
  both wells have nearly the same energies; that of the first coordinate does.
- ESS, the effective sample size, says what the draws are worth; per 1,000 evaluations it compares samplers.
- Unadjusted samplers are off by an amount that grows with the step, exact ones are not, however long the step.
- SMC moves its chains as one population through rising inverse temperatures and re-weights them on the way, so that
  it finds the share of each well without crossing between them. Its draws are not chains, and R-hat does not apply.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import gebm
from gebm.samplers import IndependentMetropolis, Kernel
from gebm.samplers.diagnostics import ess, rhat

DIM, BETA, CHAINS, BUDGET = 10, 1.0, 500, 1000
WIDTHS = 0.35  # of the narrow wells

KERNELS: dict[str, tuple[Kernel, bool]] = {  # and whether a warm-up tunes it
    "Langevin, h 0.002": (gebm.Langevin(0.002), False),
    "Langevin, h 0.05": (gebm.Langevin(0.05), False),
    "kinetic, h 0.2": (gebm.KineticLangevin(0.2, friction=1.0), False),
    "MALA, tuned": (gebm.MALA(0.05), True),
    "HMC, L 5, tuned": (gebm.HMC(0.2, leapfrog=5), True),
    "independent MH": (IndependentMetropolis(), False),
    "SMC": (gebm.SMC(0.05), False),
}


def double_well(x: Tensor) -> Tensor:
    return (x**2 - 4) ** 2 / 3 - 0.4 * x


def narrow_well(x: Tensor) -> Tensor:
    return (x - 0.5) ** 2 / (2 * WIDTHS**2)


def energy(x: Tensor) -> Tensor:
    """E of points (N, d): (N,)."""
    return double_well(x[:, 0]) + narrow_well(x[:, 1:]).sum(1)


def truth() -> tuple[float, float]:
    """The mean energy under the posterior, and the mass where the first coordinate is positive."""
    x = torch.linspace(-8, 8, 200_001, dtype=torch.float64)

    def mean(well: Callable[[Tensor], Tensor], of: Tensor) -> float:
        return float(torch.softmax(-(x**2) / 2 - BETA * well(x), 0) @ of)

    energy = mean(double_well, double_well(x)) + (DIM - 1) * mean(narrow_well, narrow_well(x))
    return energy, mean(double_well, (x > 0).double())


def measure(kernel: Kernel, tuned: bool, target: gebm.LatentPosterior, chains: int, budget: int) -> dict[str, object]:
    """Run a kernel within the budget of evaluations, keep the second half of its steps, and diagnose them."""
    generator = torch.Generator().manual_seed(0)
    start = target.start(chains, generator)
    steps = budget // kernel.cost
    if tuned:
        warm_up = steps // 4
        kernel, start, _ = gebm.adapt(kernel, target, start, warm_up, generator=generator)
        steps -= warm_up
    chain = gebm.run(kernel, target, start, steps, thin=1, generator=generator)
    kernel.finished(chain.state)  # of a population: has it arrived?
    last = chain.state.position
    found = {"acceptance": float(chain.acceptance.mean()), "last": last}
    if not kernel.moves:  # a population: its last draws, and no R-hat
        e = energy(last)
        family = torch.bincount(chain.state.extra["ancestor"]).double()  # those of one start are no independent draws
        right, kept = (last[:, 0] > 0).double(), float(family.sum() ** 2 / family.square().sum())
        return found | {"mean": float(e.mean()), "right": float(right.mean()), "se": float(right.std()) / kept**0.5}
    draws = chain.positions[steps // 2 :].transpose(0, 1)  # (chain, draw, d)
    e = energy(draws.flatten(0, 1)).view(draws.shape[:2])
    right = (draws[..., 0] > 0).double()
    n = float(ess(draws[..., 0]))
    return found | {
        "rhat_energy": float(rhat(e)),
        "rhat_first": float(rhat(draws[..., 0])),
        "ess": 1000 * n / (draws.shape[1] * chains * kernel.cost),
        "mean": float(e.mean()),
        "right": float(right.mean()),
        "se": float(right.std()) / n**0.5,
    }


def picture(path: Path, found: dict[str, dict[str, object]], right: float) -> None:
    """Where each sampler's chains end, in the plane of the first two coordinates, over the true density."""
    x, y = np.meshgrid(np.linspace(-3.2, 3.2, 200), np.linspace(-1.2, 2.2, 120))
    plane = torch.tensor(np.stack([x.ravel(), y.ravel()], 1))
    u = plane.square().sum(1) / 2 + BETA * (double_well(plane[:, 0]) + narrow_well(plane[:, 1]))
    density = torch.exp(u.min() - u).view(x.shape).numpy()
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True, sharey=True).flat
    for (name, row), axis in zip(found.items(), axes):
        axis.contour(x, y, density, levels=np.exp([-4.5, -2, -0.5]), colors="#999999", linewidths=0.8)
        axis.plot(*row["last"][:, :2].T.numpy(), ".", color="#0072b2", markersize=3, alpha=0.6)
        axis.set_title(f"{name}: {row['right']:.0%} on the right", fontsize=10)
        axis.set(xlim=(-3.2, 3.2), ylim=(-1.2, 2.2))
    for axis in axes:  # left over
        axis.axis("off")
        axis.text(0.5, 0.5, f"truth: {right:.0%} on the right", ha="center", va="center", transform=axis.transAxes)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("samplers"), help="folder of the picture [samplers]")
    parser.add_argument("--tiny", action="store_true", help="a look in seconds; the figures mean nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    chains, budget = (50, 100) if args.tiny else (CHAINS, BUDGET)

    # Any functions will do as base and energy; of networks take `model.posterior(beta).frozen()`.
    target = gebm.LatentPosterior(gebm.GaussianPrior(DIM), lambda z: z, energy, BETA)
    mean, right = truth()
    print(f"{chains} chains in {DIM} dimensions, {budget} evaluations each, the second half kept")
    print(f"truth: mean energy {mean:.2f}, {right:.1%} of the mass on the right; {0.5:.0%} of the starts are there\n")
    heads = ("acceptance", "R-hat E", "R-hat z1", "ESS/1000", "mean E", "on the right", "off by")
    print(f"{'':20}", *(f"{head:>12}" for head in heads))
    found = {}
    for name, (kernel, tuned) in KERNELS.items():
        try:
            row = found[name] = measure(kernel, tuned, target, chains, budget)
        except FloatingPointError as error:  # a chain that ran away, or a population that has not arrived
            print(f"{name:20} {error}")
            continue
        numbers = [row["acceptance"], row.get("rhat_energy"), row.get("rhat_first"), row.get("ess"), row["mean"]]
        cells = ["-" if number is None else f"{number:.2f}" for number in numbers]
        off = (row["right"] - right) / max(row["se"], 1e-9)
        cells += [f"{row['right']:.1%}", f"{off:+.1f} s.e." if math.isfinite(off) else "-"]
        print(f"{name:20}", *(f"{cell:>12}" for cell in cells))
    picture(args.out / "samplers.png", found, right)
    print(f"\npicture in {args.out}/")


if __name__ == "__main__":
    main()
