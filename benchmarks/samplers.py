"""Every sampler at the same cost on one trained model: has it mixed, has it reached the posterior, what is it worth.

python benchmarks/samplers.py runs/demo --betas 1 10 --evaluations 300 --chains 1000 --markdown --json samplers.json

The truth at each beta is one of two that share nothing, shown side by side: weighted draws from the prior, as long as
enough of them count, else a large SMC population.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from timing import environment
from torch import Tensor

from gebm.commands.datasets import dataset_for
from gebm.commands.pairs import load_pair
from gebm.config import Config
from gebm.data import to_uint8
from gebm.latent import LatentPosterior
from gebm.metrics import (
    Extractor,
    Frechet,
    Moments,
    Reference,
    choose_features,
    extract,
    frechet_distance,
    make_reference,
    metric_name,
)
from gebm.metrics.partition import LogPartition, importance_sampling
from gebm.samplers import HMC, SAMPLERS, SMC, Kernel, KineticLangevin, NonFiniteError, UnfinishedError, ramp, run
from gebm.samplers.smc import family_totals, log_partition_of
from gebm.sampling import Draws, Observer, draw

# Samplers that nothing tunes, with the gammas of their rows: every one that was tried is shown.
GAMMAS = {
    "langevin": (0.1, 0.03),
    "lmc": (0.03, 0.01),
    "lmc-baoab": (0.03, 0.01),
    "zero_temperature_langevin": (0.1,),
    "dot": (0.1,),
    "spherelangevin": (0.1,),
    "trunclangevin": (0.1,),
}
OWN = {
    "lmc-baoab": lambda gamma: KineticLangevin.from_gamma(gamma, friction=1.0, splitting="BAOAB"),
    "hmc": lambda gamma: HMC.from_gamma(gamma, leapfrog=5),
}
FIRST_GAMMA = 0.03  # from which the others are tuned
MORE_PARTICLES = 10  # than chains, in the population that stands for the truth
ENOUGH = 500  # effective number of weighted prior draws from which they are the truth: their errors can be believed


class Row(NamedTuple):
    """One line of the table; NaN where a thing has no value.

    evaluations: of the target, per chain, warm_up those of them that tuned the kernel; ess: of the energy, per 1,000
    evaluations after it; energy, energy_se: mean of E; apart: distance of the samples to the truth's; early: distance
    to the real images after a tenth of the evaluations; distance, base, gain: after all of them, with 95 % intervals.
    """

    beta: float
    sampler: str
    step_size: float = math.nan
    warm_up: int = 0
    evaluations: int = 0
    acceptance: float = math.nan
    ess: float = math.nan
    rhat_energy: float = math.nan
    rhat_projection: float = math.nan
    left_start: float = math.nan
    energy: float = math.nan
    energy_se: float = math.nan
    log_z: float = math.nan
    log_z_se: float = math.nan
    apart: float = math.nan
    early: float = math.nan
    distance: float = math.nan
    distance_ci: tuple[float, float] = (math.nan, math.nan)
    base: float = math.nan
    gain: float = math.nan
    gain_ci: tuple[float, float] = (math.nan, math.nan)
    seconds: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Truth:
    """Draws of the posterior that no short chain made: features (n, d), mean energy, log Z, each with its error."""

    name: str
    features: Tensor
    energy: float
    energy_se: float
    partition: LogPartition
    seconds: float

    def row(self, beta: float, reference: Moments, truth: "Truth", n: int) -> Row:
        """Its line, with the distances that n draws have; `apart` is then the least that a sampler can come to."""
        few = Moments.of(self.features[:n])
        return Row(
            beta, self.name, energy=self.energy, energy_se=self.energy_se, log_z=self.partition.value,
            log_z_se=self.partition.se, distance=frechet_distance(few, reference), seconds=self.seconds,
            apart=math.nan if truth is self else frechet_distance(few, Moments.of(truth.features)),
            note="the truth" if truth is self else "",
        )  # fmt: skip


class Pool:
    """Draws from the prior with their energies, which weights turn into the posterior at any beta."""

    def __init__(self, posterior: LatentPosterior, n: int, batch: int = 10_000):
        begin = time.perf_counter()
        generator = torch.Generator(posterior.device).manual_seed(1)
        self.latents = posterior.start(n, generator)
        self.energies = torch.cat([posterior.energies(z) for z in self.latents.split(batch)]).double()
        self.seconds = time.perf_counter() - begin

    def truth(self, posterior: LatentPosterior, n: int, look: Callable[[Tensor], Tensor]) -> Truth:
        partition = importance_sampling(-posterior.beta * self.energies)
        weights = torch.softmax(-posterior.beta * self.energies, 0)
        mean = weights @ self.energies
        se = (weights * (self.energies - mean)).norm()
        # `multinomial` takes at most 2^24 categories; the inverse of the distribution function takes any number.
        uniform = torch.rand(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        kept = torch.searchsorted(weights.cumsum(0), uniform).clamp(max=len(weights) - 1)
        name = f"truth: {len(weights):,} weighted prior draws"
        return Truth(name, look(self.latents[kept]), float(mean), float(se), partition, self.seconds)


def population_truth(posterior: LatentPosterior, n: int, steps: int, look: Callable[[Tensor], Tensor]) -> Truth:
    """The end of one SMC population of n particles; the errors count families, not particles."""
    begin = time.perf_counter()
    generator = torch.Generator(posterior.device).manual_seed(3)
    kernel = SMC(0.1)
    state = run(kernel, posterior, posterior.start(n, generator), steps, generator=generator).state
    kernel.finished(state)
    seconds = time.perf_counter() - begin
    energies = posterior.energies(state.position).double()
    log_z, log_z_se = (float(x) for x in log_partition_of(state))
    families = family_totals(energies - energies.mean(), state.extra["ancestor"]) / n
    shuffled = torch.randperm(n, generator=generator)  # relatives are neighbours
    return Truth(
        f"truth: smc of {n:,} particles", look(state.position[shuffled]), float(energies.mean()),
        float(families.norm()), LogPartition(log_z, log_z_se, 1 / (1 + n * log_z_se**2), n), seconds,
    )  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """What all rows share.

    evaluations: per chain, warm-up included, of which it gets a third; chains: all start from the same latents.
    """

    extractor: Extractor
    reference: Reference
    evaluations: int
    chains: int

    def look(self, posterior: LatentPosterior) -> Callable[[Tensor], Tensor]:
        """Latents (n, d) -> features of their images."""
        return lambda u: torch.cat(
            [extract(to_uint8(posterior.decode(z)).numpy(), self.extractor) for z in u.split(1000)]
        )

    def truths(self, posterior: LatentPosterior, pool: Pool) -> list[Truth]:
        """Both, the one to be believed first."""
        n, look = MORE_PARTICLES * self.chains, self.look(posterior)
        weighted = pool.truth(posterior, n, look)
        population = population_truth(posterior, n, self.evaluations, look)
        enough = weighted.partition.relative_ess * weighted.partition.n >= ENOUGH
        return [weighted, population] if enough else [population, weighted]

    def rows(self, sampler: str, posterior: LatentPosterior, truth: Truth) -> Iterator[Row]:
        """The rows of a sampler: one for each gamma, or tuned, and then once more with beta raised slowly."""
        make = OWN.get(sampler) or SAMPLERS[sampler].from_gamma
        for gamma in GAMMAS.get(sampler, ()):
            yield self.row(f"{sampler}, gamma {gamma:g}", make(gamma), posterior, truth)[0]
        if sampler in GAMMAS:
            return
        kernel = make(FIRST_GAMMA)
        row, draws = self.row(sampler, kernel, posterior, truth, tune=kernel.goal is not None)
        yield row
        if draws is not None and draws.adapted:
            yield self.row(f"{sampler}, its h, beta raised", draws.kernel, posterior, truth, raised=True)[0]

    def row(
        self, name: str, kernel: Kernel, posterior: LatentPosterior, truth: Truth, tune: bool = False,
        raised: bool = False,
    ) -> tuple[Row, Draws | None]:  # fmt: skip
        """Draw and measure; a run that fails is a row that says so."""
        warm_up = self.evaluations // 3 // kernel.cost if tune else 0
        steps = self.evaluations // kernel.cost - warm_up
        early = 0 if warm_up else max(1, steps // 10)
        observer = Observer(lambda images: extract(images, self.extractor), images_at=(0, early, steps))
        try:
            draws = draw(
                posterior, kernel, self.chains, steps, warm_up=warm_up, chunk=self.chains, observer=observer,
                beta_schedule=ramp(steps // 2) if raised else None,
            )  # fmt: skip
        except (NonFiniteError, UnfinishedError) as error:
            return Row(posterior.beta, name, note=str(error)), None
        features, d = observer.features(), draws.diagnostics
        base, model, gain, gain_ci = Frechet(self.reference).compare(features[0], features[steps])
        log_z, log_z_se = draws.log_partition[:2] if draws.log_partition else (math.nan, math.nan)
        energy_se = float(draws.energies.std()) / self.chains**0.5
        return Row(
            posterior.beta, name, draws.kernel.step_size if kernel.gamma_power else math.nan, warm_up * kernel.cost,
            (warm_up + steps) * kernel.cost, draws.acceptance, d.ess_per_1000_evaluations, d.rhat_energy,
            d.rhat_projection, d.left_start, float(draws.energies.mean()),
            math.nan if draws.log_partition else energy_se,  # particles are relatives
            log_z, log_z_se,
            frechet_distance(Moments.of(features[steps]), Moments.of(truth.features)),
            frechet_distance(Moments.of(features[early]), self.reference.moments) if early else math.nan,
            *model, base.value, gain, gain_ci, draws.seconds,
        ), draws  # fmt: skip


def _number(value: float, digits: int, error: float = math.nan) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def _interval(value: float, ci: tuple[float, float]) -> str:
    return _number(value, 2) + ("" if math.isnan(ci[0]) else f" ({ci[0]:.2f} to {ci[1]:.2f})")


COLUMNS: dict[str, Callable[[Row], str]] = {
    "sampler": lambda r: r.sampler,
    "h": lambda r: "" if math.isnan(r.step_size) else f"{r.step_size:.3g}",
    "evaluations": lambda r: f"{r.warm_up} + {r.evaluations - r.warm_up}" if r.evaluations else "",
    "acceptance": lambda r: _number(r.acceptance, 2),
    "ESS / 1000": lambda r: _number(r.ess, 0),
    "R-hat E / proj.": lambda r: f"{r.rhat_energy:.2f} / {r.rhat_projection:.2f}" if r.rhat_energy > 0 else "",
    "left start": lambda r: _number(r.left_start, 2),
    "mean E": lambda r: _number(r.energy, 3, r.energy_se),
    "log Z": lambda r: _number(r.log_z, 2, r.log_z_se),
    "FD to truth": lambda r: r.note or _number(r.apart, 2),
    "FD early": lambda r: _number(r.early, 2),
    "FD": lambda r: _interval(r.distance, r.distance_ci),
    "gain": lambda r: _interval(r.gain, r.gain_ci),
    "s": lambda r: _number(r.seconds, 0),
}


def table(rows: Sequence[Row], markdown: bool = False) -> str:
    """The rows as aligned text, or as a table of a markdown document."""
    cells = [list(COLUMNS), *[[show(row) for show in COLUMNS.values()] for row in rows]]
    if markdown:
        lines = ["| " + " | ".join(line) + " |" for line in cells]
        return "\n".join([lines[0], "|---" * len(COLUMNS) + "|", *lines[1:]])
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a training run or a demo")
    parser.add_argument("--betas", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--evaluations", type=int, default=300, help="of the target, per chain, warm-up included")
    parser.add_argument("--chains", type=int, default=1000)
    samplers = list(dict.fromkeys([*SAMPLERS, *GAMMAS]))
    parser.add_argument("--samplers", nargs="+", choices=samplers, default=samplers, help="default: all")
    parser.add_argument("--prior_draws", type=int, default=1_000_000, help="that are weighted for the truth")
    parser.add_argument("--features", default="auto", help="as --fid_features of gebm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", action="store_true", help="tables for a markdown document")
    parser.add_argument("--json", type=Path, help="also write settings, environment and rows here")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    config = Config.load(args.run / "config.yaml")
    model, base, energy = load_pair(replace(config, g_path=str(args.run), d_path=str(args.run)), frozenset())
    data = dataset_for(model, config)
    extractor, _ = choose_features(args.features, data.name, data.shape, data_path=config.data_path)
    reference = make_reference(data.test, extractor, Path(config.data_path) / "cache", "test")
    benchmark = Benchmark(extractor, reference, args.evaluations, args.chains)
    posterior = model.posterior().frozen()
    where, rows = environment(), []
    print(f"{energy}: {args.chains} chains, {args.evaluations} evaluations of the target each")
    print(f"FD: {metric_name('FD', extractor)} to {len(data.test)} images of {data.name} test; early: after a tenth")
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    pool = Pool(posterior, args.prior_draws)
    for beta in args.betas:
        at_beta = posterior.at(beta)
        truths = benchmark.truths(at_beta, pool)
        found = [truth.row(beta, reference.moments, truths[0], args.chains) for truth in truths]
        for sampler in args.samplers:
            print(f"beta {beta:g}: {sampler}", file=sys.stderr)
            found += benchmark.rows(sampler, at_beta, truths[0])
        rows += found
        print(f"\nbeta {beta:g}, base FD {next((r.base for r in found if r.base > 0), math.nan):.2f}\n")
        print(table(found, args.markdown), flush=True)
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "json"}
        records = [{k: None if v != v else v for k, v in row._asdict().items()} for row in rows]
        args.json.write_text(json.dumps({"settings": settings, "environment": where, "rows": records}, indent=2) + "\n")


if __name__ == "__main__":
    main()
