"""Time of one step of a sampler, against the reference-style baseline.

python benchmarks/sampler_step.py --network sngan --chains 100 --threads 2 --seconds 120 --json step.json
python benchmarks/sampler_step.py --samplers mala hmc --network resnet-sn --chains 16 --threads 1
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from reference_style import ReferenceStyle
from timing import Comparison, compare, environment, interleave

from gebm.latent import GaussianPrior, LatentPosterior, Target
from gebm.networks import BASES, ENERGIES
from gebm.samplers import HMC, MALA, Kernel, KineticLangevin, Langevin

BASELINE, FLOAT32, BFLOAT16 = "reference style", "gebm float32", "gebm bfloat16"
IMAGE_SHAPE, LATENT_DIM, BETA, GAMMA = (3, 32, 32), 100, 100.0, 1e-4

# flag value -> our kernel
KERNELS = {
    "langevin": Langevin.from_gamma(GAMMA),
    "lmc": KineticLangevin.from_gamma(GAMMA),
    "mala": MALA.from_gamma(GAMMA),
    "hmc": HMC.from_gamma(GAMMA, leapfrog=2),
}


def calls(
    network: str, samplers: Sequence[str], chains: int, width: float
) -> dict[tuple[str, str], Callable[[], object]]:
    """(sampler, form) -> one step of its chains; all forms of one pair of networks."""
    base = BASES[network](IMAGE_SHAPE, latent_dim=LATENT_DIM, width=width)
    energy = ENERGIES[network](IMAGE_SHAPE, width=width)
    posterior = LatentPosterior(GaussianPrior(LATENT_DIM), base, energy, BETA)
    start = posterior.start(chains)
    baseline = _baseline(ReferenceStyle(base, energy, BETA), start)
    forms = {FLOAT32: posterior.frozen(), BFLOAT16: posterior.frozen(torch.bfloat16)}
    steps = {}
    for sampler in samplers:
        steps[sampler, BASELINE] = baseline[sampler]
        for form, target in forms.items():
            if form == FLOAT32 or not KERNELS[sampler].exact:  # an accept step needs the potential in float32
                steps[sampler, form] = _kernel_chain(KERNELS[sampler], target, start)
    return steps


def _baseline(reference: ReferenceStyle, start: torch.Tensor) -> dict[str, Callable[[], None]]:
    rest, gradient = torch.zeros_like(start), reference.gradient(start)
    return {
        "langevin": _chain(lambda z: reference.langevin(z, GAMMA), start),
        "lmc": _chain(lambda zv: reference.kinetic(*zv, GAMMA), (start, rest)),
        "mala": _chain(lambda zg: reference.mala(*zg, GAMMA), (start, gradient)),
        "hmc": _chain(lambda zg: reference.hmc(*zg, GAMMA, leapfrog=2), (start, gradient)),
    }


def _chain(step: Callable, state: object) -> Callable[[], None]:
    """A call that moves a chain on by one step."""

    def advance() -> None:
        nonlocal state
        state = step(state)

    return advance


def _kernel_chain(kernel: Kernel, target: Target, start: torch.Tensor) -> Callable[[], None]:
    return _chain(lambda state: kernel.step(state, target, None)[0], kernel.init(start, target))


def table(rows: dict[tuple[str, str], Comparison]) -> str:
    """Plain text, one line a sampler and form."""
    lines = [f"{'step':<10}{'form':<18}{'ms':>9}{'ratio':>8}{'10-90 %':>14}{'rounds':>8}"]
    for (sampler, form), row in rows.items():
        spread = f"{row.low:.2f}-{row.high:.2f}"
        lines.append(f"{sampler:<10}{form:<18}{row.ms:>9.1f}{row.ratio:>8.2f}{spread:>14}{row.rounds:>8}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=BASES, default="sngan")
    parser.add_argument("--samplers", nargs="+", choices=KERNELS, default=list(KERNELS), help="default: all")
    parser.add_argument("--width", type=float, default=1.0, help="factor on every channel count")
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120.0, help="time to measure for, at least one round")
    parser.add_argument("--json", type=Path, help="also write settings, environment and rows here")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    times = interleave(calls(args.network, args.samplers, args.chains, args.width), args.seconds)
    rows = {key: compare(times[key[0], BASELINE], column) for key, column in times.items()}

    where = environment()
    print(f"{args.network} at 32x32, width {args.width:g}, {args.chains} chains")
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    print(table(rows))
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        records = [{"step": step, "form": form, **row._asdict()} for (step, form), row in rows.items()]
        args.json.write_text(json.dumps({"settings": settings, "environment": where, "rows": records}, indent=2) + "\n")


if __name__ == "__main__":
    main()
