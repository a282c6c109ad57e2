"""GEBMs of toy distributions, in pictures and figures. Under five minutes on one CPU thread.

    python examples/toy_gallery.py --out gallery

Moons, rings and pinwheel have a density. The base is a small flow, fitted briefly by maximum likelihood, and the energy
makes up for what it lacks. Line and flower lie on a curve and on a surface, where there is no density. The base is the
generator of the data with its latents spread evenly: it has the support right and the mass on it wrong. The energy puts
the mass right and leaves the support as it is, which a flow by itself does not find: the toy of M. Arbel, L. Zhou and
A. Gretton, Generalized energy based models (ICLR 2021).
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.spatial import KDTree
from torch import Tensor, nn

import gebm
from gebm.data import TOYS, Batches
from gebm.data.toy import flower_energy, flower_surface
from gebm.metrics.likelihood import base_log_prob, log_partition, model_log_prob
from gebm.metrics.partition import energies, importance_sampling
from gebm.networks import ENERGIES
from gebm.samplers import SIR
from gebm.seeds import stream
from gebm.training.trainer import Trainer

LEARNING_RATE, PIXELS = 2e-3, 200
KERNEL = SIR()  # in so few dimensions no chain need travel between modes: each holds one of many draws from the prior
COLOURS = {"data": "#555555", "base": "#d55e00", "GEBM": "#0072b2", "flow alone": "#009e73"}


@dataclass(frozen=True)
class Effort:
    """How much of everything; rows: to train on, and as many to test on; draws: of the base, for means over it."""

    rows: int = 20_000
    batch: int = 500
    base_steps: int = 300
    flow_steps: int = 1000  # of the flow that is a model by itself
    energy_steps: int = 2000
    samples: int = 4000
    sampler_steps: int = 300
    draws: int = 300_000


TINY = Effort(2000, 200, base_steps=50, flow_steps=50, energy_steps=150, samples=800, sampler_steps=30, draws=10_000)


class Line(nn.Module):
    """The line's generator with t uniform, where the data have density 3 t^2: latents in [-1, 1] (N, 1) -> (N, 2)."""

    prior = gebm.UniformPrior(1)
    parts = ("t", ["0–⅛", "⅛–¼", "¼–⅜", "⅜–½", "½–⅝", "⅝–¾", "¾–⅞", "⅞–1"])

    def forward(self, z: Tensor) -> Tensor:
        t = (z + 1) / 2
        return torch.cat([4 * t - 2, torch.sin(2 * math.pi * t)], 1)

    def part(self, x: Tensor) -> Tensor:
        """Which eighth of [0, 1] t is in."""
        return (2 * x[:, 0] + 4).long().clamp(0, 7)

    def log_ratio(self, x: Tensor) -> Tensor:
        """Log-density of the data relative to this base, up to a constant."""
        return 2 * (x[:, 0] + 2).log()


class Flower(nn.Module):
    """The flower's generator with directions uniform, where the data go by an energy: latents (N, 3) -> (N, 3)."""

    prior = gebm.GaussianPrior(3)
    parts = ("octant", [f"{k:03b}".translate({48: "−", 49: "+"}) for k in range(8)])

    def forward(self, z: Tensor) -> Tensor:
        return flower_surface(nn.functional.normalize(z, dim=1))

    def part(self, x: Tensor) -> Tensor:
        """Which octant, by the signs of the three coordinates."""
        return ((x > 0) * torch.tensor([4, 2, 1])).sum(1)

    def log_ratio(self, x: Tensor) -> Tensor:
        """Log-density of the data relative to this base, up to a constant."""
        return -flower_energy(x.double())


def fit(model: gebm.GEBM, batches: Batches, *, base_steps: int = 0, energy_steps: int = 0) -> None:
    """Fit the base by maximum likelihood, then the energy by KALE with the base frozen; rates fall to zero in both."""
    objective = gebm.KALE(model.energy, model.log_partition, penalty_type="none")  # rows are plenty, and E may be steep
    energy_optimizer = torch.optim.Adam(objective.parameters(), lr=LEARNING_RATE)
    base_optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)  # all: a base may have none of its own
    trainer = Trainer(model, batches, objective, energy_optimizer, base_optimizer, generator=batches.generator)
    stages = (("base", base_steps, trainer.likelihood_step), ("refine", energy_steps, trainer.energy_step))
    for stage, steps, step in stages:
        trainer.start(stage)
        for done in range(steps):
            trainer.scale_lr(1 - done / steps)
            step()
    model.eval().requires_grad_(False)


def refined(model: gebm.GEBM, effort: Effort, seed: int) -> Tensor:
    """Samples of the GEBM, by the latent sampler from the prior."""
    n = effort.samples
    draws = gebm.draw(model.posterior(beta=1.0).frozen(), KERNEL, n, effort.sampler_steps, chunk=n, seed=seed)
    return torch.from_numpy(draws.images)


def mean(values: Tensor) -> str:
    """A mean with its standard error."""
    return f"{values.double().mean():.3f} ± {values.double().std() / len(values) ** 0.5:.3f}"


def densities(name: str, effort: Effort, seed: int, axes: Sequence[Axes]) -> list[list[str]]:
    """A toy with a density: draws densities and samples of data, base and GEBM, returns the rows of the table."""
    toy, generator = TOYS[name], torch.Generator().manual_seed(stream(seed, name))
    torch.manual_seed(stream(seed, name, "networks"))
    train, test = toy.sample(effort.rows, generator), toy.sample(effort.rows, generator)
    model = gebm.GEBM.build(gebm.Architecture("nvp", "mlp", shape=(2,), latent_dim=2, blocks=2))
    batches = Batches(train, effort.batch, generator=generator)
    fit(model, batches, base_steps=effort.base_steps, energy_steps=effort.energy_steps)
    a = log_partition(model, effort.draws, generator)
    log_probs = (toy.log_density, partial(base_log_prob, model), partial(model_log_prob, model, log_partition=a.value))
    samples = (test, model.generate(effort.samples, generator), refined(model, effort, seed))

    grid = torch.cartesian_prod(*(torch.linspace(low, high, PIXELS) for low, high in toy.bounds))
    images = [log_prob(grid).exp().view(PIXELS, PIXELS).T for log_prob in log_probs]
    style = {"origin": "lower", "cmap": "Blues", "vmin": 0, "vmax": float(images[0].max())}  # one scale for the three
    for axis, image in zip(axes[:3], images):
        shown = axis.imshow(image, extent=sum(toy.bounds, ()), interpolation="nearest", **style)
    for axis, x, key in zip(axes[3:], samples, COLOURS):
        scatter(axis, x[: effort.samples // 2], toy.bounds, COLOURS[key])
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    axes[0].set_ylabel(name, fontsize=14)
    axes[0].figure.colorbar(shown, ax=axes[2], location="right", shrink=0.8, pad=0.02)

    logs = [log_prob(test).double() for log_prob in log_probs]
    return [
        [f"{name}: test NLL, nats", *(mean(-log) for log in logs)],
        [f"{name}: KL from the data, nats", "0", *(mean(logs[0] - log) for log in logs[1:])],
        [f"{name}: log-partition A", "", "", f"{a.value:.3f} ± {a.se:.3f}"],
    ]


def supports(name: str, base: Line | Flower, effort: Effort, seed: int, axes: dict[str, Axes]) -> list[list[str]]:
    """A toy on a curve or surface: draws data, base, GEBM and a flow alone, returns the rows of the table."""
    toy, generator = TOYS[name], torch.Generator().manual_seed(stream(seed, name))
    torch.manual_seed(stream(seed, name, "networks"))
    train, test = toy.sample(effort.rows, generator), toy.sample(effort.rows, generator)
    model = gebm.GEBM(base, ENERGIES["mlp"]((toy.dim,), blocks=2), base.prior)
    batches = Batches(train, effort.batch, generator=generator)
    fit(model, batches, energy_steps=effort.energy_steps)
    flow = gebm.GEBM.build(gebm.Architecture("nvp", "mlp", shape=(toy.dim,), latent_dim=toy.dim, blocks=5))
    fit(flow, batches, base_steps=effort.flow_steps)
    samples = {
        "data": test,
        "base": model.generate(effort.samples, generator),
        "GEBM": refined(model, effort, seed),
        "flow alone": flow.generate(effort.samples, generator),
    }
    label, names = base.parts
    shares = {key: nn.functional.one_hot(base.part(x), len(names)).double() for key, x in samples.items()}
    for offset, (key, x) in enumerate(samples.items()):
        scatter(axes[key], x[: effort.samples], toy.bounds, COLOURS[key])
        style = {"yerr": shares[key].std(0) / len(x) ** 0.5, "error_kw": {"lw": 0.8}, "color": COLOURS[key]}
        places = np.arange(len(names)) + 0.2 * (offset - 1.5)
        axes["mass"].bar(places, shares[key].mean(0), 0.2, label=key, **style)
    axes["mass"].set_xticks(range(len(names)), names)
    axes["mass"].margins(x=0.02, y=0.15)
    axes["mass"].set_title(f"{name}: share of the mass, by {label}")

    support = model.generate(effort.draws, generator)  # dense on the true support, as the base's generator is true
    tree = KDTree(support.numpy())
    distances = (mean(torch.from_numpy(tree.query(x[: effort.samples].numpy())[0])) for x in samples.values())
    truth = base.log_ratio(test) - importance_sampling(base.log_ratio(support)).value
    a = importance_sampling(-energies(model.energy, support))
    gain = -energies(model.energy, test) - a.value
    return [
        [f"{name}: distance to the support", *distances],
        [f"{name}: KL from the data, nats", "0", mean(truth), mean(truth - gain), "infinite"],
        *([f"{name}: {label} {part}", *(mean(s[:, k]) for s in shares.values())] for k, part in enumerate(names)),
    ]


def scatter(axis: Axes, x: Tensor, bounds: tuple[tuple[float, float], ...], colour: str) -> None:
    """Dots within the bounds, in the plane or in space."""
    low, high = torch.tensor(bounds).T
    axis.plot(*x[((x > low) & (x < high)).all(1)].T, ".", color=colour, markersize=2, markeredgewidth=0, alpha=0.7)
    axis.set(**{f"{way}lim": bound for way, bound in zip("xyz", bounds)})
    axis.set_aspect("equal")
    if len(bounds) == 3:
        axis.view_init(elev=30, azim=35)
        axis.set_box_aspect(None, zoom=1.25)
        axis.tick_params(labelsize=7, pad=-3)
        axis.set(**{f"{way}ticks": [-2, 0, 2, 4] for way in "xyz"})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gallery"), help="folder of the pictures [gallery]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a look in seconds: little training, few samples")
    parser.add_argument("--json", type=Path, help="also write the cells of the table here")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the networks are too small for more
    effort = TINY if args.tiny else Effort()

    table = [["", *COLOURS]]
    figure = Figure(figsize=(13, 5.8), layout="constrained")
    axes = figure.subplots(3, 6, height_ratios=[0.62, 1, 1])
    for name, row in zip(("moons", "rings", "pinwheel"), axes):
        print(f"{name} ...", flush=True)
        table += densities(name, effort, args.seed, row)
    for i, key in enumerate(("data", "base", "GEBM")):
        axes[0, i].set_title(f"{key}: density", fontsize=14)
        axes[0, i + 3].set_title(f"{key}: samples", fontsize=14, color=COLOURS[key])
    figure.savefig(args.out / "toy-gallery.png", dpi=110)

    figure = Figure(figsize=(9, 10), layout="constrained")
    for (name, base), part in zip({"line": Line(), "flower": Flower()}.items(), figure.subfigures(2, 1)):
        print(f"{name} ...", flush=True)
        kinds = dict.fromkeys(COLOURS, {} if name == "line" else {"projection": "3d"})
        axes = part.subplot_mosaic([["data", "base", "GEBM"], ["flow alone", "mass", "mass"]], per_subplot_kw=kinds)
        for key in COLOURS:
            axes[key].set_title(f"{name}: {key}", color=COLOURS[key])
        table += supports(name, base, effort, args.seed, axes)
        axes["mass"].legend(frameon=False, ncols=4, loc="upper center")
    figure.savefig(args.out / "toy-line-flower.png", dpi=130)

    print(f"means with standard errors; seed {args.seed}; {KERNEL}, {effort.sampler_steps} steps, beta 1")
    print("the support is given by points, whose spacing shows in the distance of the data to it")
    for first, *cells in table:
        print(f"{first:32}", *(f"{cell:>16}" for cell in cells))
    print(f"pictures in {args.out}/")
    if args.json:
        args.json.write_text(json.dumps(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
