"""The gap between KALE with c and with the log-partition of 20,000 base samples, at three learning rates.

python benchmarks/kale_gap.py --data_path data --redwine_path DIR --markdown

For each data set and learning rate a joint training, then the energy alone; in the second half of each stage the gap
exp(d) - 1 - d, d = log Z - c, is taken every --every steps, with log Z from 20,000 base samples in that stage's mode.
The last column is |c - log Z| on 100,000 samples after the end of the refinement, as the run leaves c.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gebm.commands.build import build_trainer
from gebm.commands.datasets import dataset
from gebm.commands.setup import schedule_of
from gebm.commands.tables import settled
from gebm.config import Config
from gebm.metrics.partition import base_energies
from gebm.objectives import log_mean_exp
from gebm.training.schedules import energy_steps, remaining
from gebm.training.trainer import Trainer

SETS: dict[str, dict[str, Any]] = {
    "digits": {
        "dataset": "digits", "Z_dim": 10, "width": 0.25, "penalty_type": "gradient", "penalty_lambda": 1.0,
        "noise_factor": 2, "b_size": 128, "n_iter_d_init": 100, "lr_generator": 1e-3, "beta_2": 0.999,
    },
    "redwine": {"dataset": "redwine", "g_model": "nvp", "d_model": "mlp", "initialize_log_partition": True},
    "cifar10-small": {},
}  # fmt: skip


@torch.no_grad()
def log_partition(trainer: Trainer, n: int) -> float:
    """That of n base samples as the stage sees them, with nothing of the trainer moved."""
    model = trainer.model
    generator = torch.Generator().manual_seed(10**6 + trainer.counters.e_step)  # not the latents that c is set from
    if trainer.counters.stage == "refine":
        return float(log_mean_exp(-base_energies(model, n, generator)))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    size = trainer.batches.batch_size
    energies = [model.energy(model.generate(size, generator)).double() for _ in range(n // size)]
    model.load_state_dict(state)
    return float(log_mean_exp(-torch.cat(energies)))


def gap(trainer: Trainer, n: int) -> float:
    d = torch.tensor(log_partition(trainer, n) - float(trainer.model.log_partition), dtype=torch.float64)
    return float(torch.expm1(d) - d)


def measure(config: Config, given: frozenset[str], joint: int, refine: int, every: int) -> dict[str, float]:
    """Median gaps of both stages, and how far c is from the log-partition at the end."""
    data = dataset(config)
    trainer, _ = build_trainer(config, given, data, torch.device("cpu"))
    if trainer.counters.stage == "base":
        ml = schedule_of(config, len(data.train)).ml_steps
        for step in range(ml):
            trainer.scale_lr(remaining(step, ml), config.ml_lr or None)
            trainer.likelihood_step()
        trainer.scale_lr(1.0)
        trainer.start("joint")
    else:
        trainer.prepare_energy()
    found: dict[str, list[float]] = {"joint": [], "refine": []}
    for step in range(joint):
        for _ in range(energy_steps(step, config.n_iter_d, config.n_iter_d_init)):
            trainer.energy_step()
        if step > joint // 2 and step % every == 0:
            found["joint"].append(gap(trainer, 20_000))
        trainer.base_step()
    trainer.start("refine")
    for step in range(refine):
        trainer.scale_lr(remaining(step, refine))
        stats = trainer.energy_step()
        if step > refine // 2 and step % every == 0:
            found["refine"].append(gap(trainer, 20_000))
    trainer.end_stage()
    end = abs(log_partition(trainer, 100_000) - float(trainer.model.log_partition))
    medians = {stage: median(values) if values else float("nan") for stage, values in found.items()}
    return {**medians, "end": end, "kale": float(stats["kale"]), "ess": float(stats["relative_ess"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="data")
    parser.add_argument("--redwine_path", default="", help="folder of winequality-red.csv; empty: data_path")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-5, 2e-4, 1e-3])
    parser.add_argument("--joint", type=int, default=200, help="base steps")
    parser.add_argument("--refine", type=int, default=600, help="energy steps")
    parser.add_argument("--every", type=int, default=25)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | lr | gap, joint | gap, energy alone | abs(c - log Z) at the end | KALE | relative ESS of a batch |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in args.sets:
        config = Config()
        if name == "cifar10-small":
            config = Config.load(Path(__file__).parent.parent / "configs" / "cifar10-small.yaml")
        path = args.redwine_path if name == "redwine" and args.redwine_path else args.data_path
        own = {**SETS[name], "data_path": path}
        for lr in args.lrs:
            config, given = settled(replace(config, **own, lr=lr), frozenset({*own, "lr"}))
            f = measure(config, given, args.joint, args.refine, args.every)
            cells = [name, f"{lr:g}", *(f"{f[key]:.3f}" for key in ("joint", "refine", "end", "kale", "ess"))]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
