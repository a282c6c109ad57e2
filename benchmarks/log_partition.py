"""How far c and the estimate of a single batch are from the log-partition while an energy is trained.

python benchmarks/log_partition.py out --data_path data

Two trainings by KALE, each with batches of 128 base samples:

- A Gaussian pair whose log-partition is known: base N(0, I) in two dimensions, data N(mu, I), |mu| = 2.5, energy
  -<theta, x>. At the optimum theta = mu the weights exp(-E) are lognormal with s = 2.5: relative effective size 0.002.
- The pair of `configs/cifar10-small.yaml`, from the start or from a checkpoint (--pair): joint training, then the
  energy alone. The log-partition is that of --reference other base samples at the same weights.

Writes log_partition.json and log_partition.png into the folder: |estimate - log Z| against steps, in nats, which is
the relative error of the partition Z itself where it is small.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from timing import environment
from torch import Tensor, nn

from gebm.commands.build import build_trainer
from gebm.commands.datasets import dataset
from gebm.config import Config
from gebm.data import Batches
from gebm.latent import GaussianPrior
from gebm.model import GEBM
from gebm.objectives import KALE, log_mean_exp
from gebm.training.trainer import Trainer

Row = dict[str, float]
FAR = 2.5  # |mu| of the Gaussian pair


class Linear(nn.Module):
    """E(x) = -<theta, x>, whose log-partition on N(0, I) is |theta|^2 / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return -(x @ self.theta)


def gaussian_pair(batch: int, seed: int) -> tuple[Trainer, Callable[[], float]]:
    """The trainer of the Gaussian pair, and its log-partition now."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(50_000, 2, generator=generator) + torch.tensor([FAR, 0.0])
    model = GEBM(nn.Linear(2, 2), Linear(), GaussianPrior(2))
    with torch.no_grad():
        model.base.weight.copy_(torch.eye(2))
        model.base.bias.zero_()
    objective = KALE(model.energy, model.log_partition, "none")
    optimizers = [torch.optim.Adam(module.parameters(), lr=3e-3) for module in (model.energy, model.base)]
    trainer = Trainer(model, Batches(data, batch, generator=generator), objective, *optimizers, generator=generator)
    trainer.start("refine")
    return trainer, lambda: float(model.energy.theta.detach().square().sum() / 2)


def cifar_pair(config: Config, reference: int) -> tuple[Trainer, Callable[[], float]]:
    """The trainer of the pair on CIFAR-10, and its log-partition now, of the base in the mode it is trained in."""
    data = dataset(config)
    trainer, _ = build_trainer(config, frozenset(), data, torch.device("cpu"))
    trainer.prepare_energy()
    model = trainer.model

    @torch.no_grad()
    def truth() -> float:
        state = {key: value.clone() for key, value in model.state_dict().items()}
        generator = torch.Generator().manual_seed(trainer.counters.e_step)
        energies = []
        with torch.autocast("cpu", torch.bfloat16, enabled=trainer.autocast is not None):
            for _ in range(reference // config.b_size):
                energies.append(model.energy(model.generate(config.b_size, generator)).float())
        model.load_state_dict(state)  # statistics of batches and power iterations
        return float(log_mean_exp(-torch.cat(energies).double()))

    return trainer, truth


def follow(trainer: Trainer, truth: Callable[[], float], steps: int, every: int, n_iter_d: int = 0) -> list[Row]:
    """Take energy steps (with a base step after every `n_iter_d`, if that is not 0), and compare now and then.

    The estimates are of the weights that a step starts from, as the criterion uses them.
    """
    rows = []
    for step in range(1, steps + 1):
        log_z = truth() if step % every == 0 else None
        stats = trainer.energy_step()
        if log_z is not None:
            batch, c = float(stats["c_batch"]), float(stats["c"])
            row = {"step": trainer.counters.e_step, "log_z": log_z, "batch": abs(batch - log_z), "c": abs(c - log_z)}
            rows.append({**row, "relative_ess": float(stats["relative_ess"])})
        if n_iter_d and step % n_iter_d == 0:
            trainer.base_step()
    return rows


def draw(found: dict[str, list[Row]], path: Path) -> None:
    """One panel a training, both errors over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(found), figsize=(4.2 * len(found), 3.4), layout="constrained", squeeze=False
    )
    for panel, (title, rows) in zip(panels[0], found.items()):
        steps = [row["step"] for row in rows]
        for key, name, colour in (("batch", "one batch of 128", "#999999"), ("c", "c", "#0072b2")):
            panel.plot(steps, [row[key] for row in rows], ".", color=colour, alpha=0.35, markersize=4)
            smooth = [median(row[key] for row in rows[max(0, i - 10) : i + 11]) for i in range(len(rows))]
            panel.plot(steps, smooth, color=colour, label=f"{name}, median {median(row[key] for row in rows):.2g}")
        panel.set(title=title, xlabel="energy steps", yscale="log")
        panel.legend(loc="best", fontsize=8)
    panels[0, 0].set_ylabel("|estimate - log Z|, nats")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data_path", default="data")
    parser.add_argument("--pair", default="", help="checkpoint of a trained pair of that configuration, to go on from")
    parser.add_argument("--gaussian_steps", type=int, default=3000)
    parser.add_argument("--joint_steps", type=int, default=1500, help="energy steps of the joint training on CIFAR-10")
    parser.add_argument("--refine_steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--reference", type=int, default=20_480, help="base samples of the log-partition on CIFAR-10")
    parser.add_argument("--criterion", default="kale")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    found = {"Gaussian pair": follow(*gaussian_pair(128, args.seed), args.gaussian_steps, args.every)}
    if args.joint_steps:
        config = Config.load(Path(__file__).parent.parent / "configs" / "cifar10-small.yaml")
        config = replace(
            config, data_path=args.data_path, b_size=128, width=args.width, seed=args.seed, criterion=args.criterion,
            g_path=args.pair, d_path=args.pair,
        )  # fmt: skip
        trainer, truth = cifar_pair(config, args.reference)
        found["CIFAR-10, joint"] = follow(trainer, truth, args.joint_steps, 3 * args.every, config.n_iter_d)
        trainer.start("refine")
        found["CIFAR-10, energy alone"] = follow(trainer, truth, args.refine_steps, args.every)
    (args.out / "log_partition.json").write_text(json.dumps({"environment": environment(), **found}, indent=1))
    draw(found, args.out / "log_partition.png")
    for title, rows in found.items():
        for half, part in (("first half", rows[: len(rows) // 2]), ("second half", rows[len(rows) // 2 :])):
            errors = "  ".join(f"{key} {median(row[key] for row in part):.3f}" for key in ("batch", "c"))
            ess = median(row["relative_ess"] for row in part)
            print(f"{title:24} {half:12} median |estimate - log Z|: {errors}   relative ESS in a batch {ess:.2f}")


if __name__ == "__main__":
    main()
