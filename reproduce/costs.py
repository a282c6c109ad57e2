"""What a row costs: its operations, counted, over an assumed rate; or measured seconds a step, of tables.

    GPU-hours = sum over commands of operations / RATE / 3600; CPU-hours likewise, / CPU_RATE
    training:  b_size (energy steps * energy + base steps * base),
               energy steps = n_iter_d_init in each 500th base step, n_iter_d in the others, then refine_iter
    sampling:  chains * (steps * gradient + 11 looks * features)
    CPU-hours of a table = splits * sum over methods of steps * seconds a step / 3600

Counted: operations (a multiply-add is two) of convolutions and matrix products in one step of ours, for one image or
chain at the row's width, by gebm.precision.Operations. A sampler without gradients takes a third of one with.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from gebm.config import Config
from gebm.metrics.resnet56 import ResNet56
from gebm.precision import Operations

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "examples")]

from cases import FLOAT32, Size, sampling, training  # noqa: E402
from timing import operations  # noqa: E402

__all__ = ["ASSUMED", "RATE", "Step", "of_images", "of_sampling", "of_table", "of_training", "step"]

# What was not counted or measured: said wherever a cost is printed.
RATE = 10e12  # operations a second: half the float32 peak of an A100 (19.5e12)
INCEPTION = 11.4e9  # operations an image of 299 x 299: twice the 5.7e9 multiply-adds in the literature
ASSUMED = f"at an assumed {RATE / 1e12:g}e12 float32 operations a second, half the peak of one A100, no GPU timed"
# Measured: the joint stage of configs/cifar10-small.yaml, 1.57e14 operations by the formula above, took 44 minutes on
# one thread of a shared machine (docs/results.md).
CPU_RATE = 1.57e14 / (44 * 60)
LOOKS = 11  # along a chain, at which a distance is taken
# Seconds a training step of a table, batch 100, 11 columns, one CPU thread: docs/results.md (density_step.py).
ENERGY_S, BASE_S, ML_S = 0.0225, 0.0107, 0.0049
TRAINING_ROWS = {"redwine": 1296, "whitewine": 3969, "parkinsons": 4760, "hepmass": 349_223, "miniboone": 31_840}


class Step(NamedTuple):
    """Operations of one image in an energy step and in a base step, and of one chain in a sampling step."""

    energy: float
    base: float
    gradient: float


@cache
def step(network: str, width: float) -> Step:
    """Operations a step, counted with two images and two chains."""
    size, state = Size(chains=2, batch=2, width=width), torch.get_rng_state()
    calls = dict(training(network, size)) | dict(sampling(network, size, ("langevin",)))
    counts = [operations(calls[f"{name}, {network}"][FLOAT32]) for name in ("energy step", "base step", "langevin")]
    torch.set_rng_state(state)
    return Step(*(count / 2 for count in counts))


@cache
def features(name: str) -> float:
    """Operations an image."""
    if name == "inception":
        return INCEPTION
    if name in ("auto", "cifar-resnet56"):
        with Operations() as counted:
            ResNet56()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        return float(counted.total)
    return 0.0


def of_training(config: Config) -> float:
    """Operations of `gebm train`."""
    n, each = config.total_gen_iter, step(config.g_model, config.width)
    at_start = math.ceil(n / 500)
    refine = n // 10 if config.refine_iter == -1 else config.refine_iter
    energy_steps = (n - at_start) * config.n_iter_d + at_start * config.n_iter_d_init + refine
    return float(config.b_size * (energy_steps * each.energy + n * each.base))


def of_sampling(config: Config, trained: Config) -> float:
    """Operations of `gebm sample` from the pair that `trained` makes."""
    gradient = step(trained.g_model, trained.width).gradient
    steps = config.num_sampler_steps + (config.adapt_steps if config.adapt else 0)
    one = gradient / 3 if config.latent_sampler in ("imh", "mh", "sir") else gradient
    chains = max(config.fid_samples, config.n_samples)
    return float(chains * (steps * one + LOOKS * features(config.fid_features)))


def of_images(counts: Mapping[str, float]) -> str:
    """The cost of commands from their operations, by name."""
    lines = [f"{name}: {count:.2g} operations, {_gpu_hours(count)}" for name, count in counts.items()]
    total = sum(counts.values())
    cpu = f"{total / CPU_RATE / 3600:.2g} CPU-hours of one thread at the {CPU_RATE / 1e9:.0f}e9 that were measured"
    return "\n".join([*lines, f"all: {_gpu_hours(total)} {ASSUMED}; {cpu}"])


def _gpu_hours(count: float) -> str:
    return f"{count / RATE / 3600:.2g} GPU-hours"


def of_table(dataset: str, configs: Sequence[Config], splits: int) -> str:
    """The cost of a table's methods: CPU-hours."""
    total = 0.0
    for config in configs:
        passes = math.ceil(TRAINING_ROWS[dataset] / config.b_size)
        joint = passes * config.total_epochs
        energy = ML_S if config.criterion == "ml" else ENERGY_S
        total += passes * config.ml_epochs * ML_S + joint * energy + joint / config.n_iter_d * BASE_S
        total += passes * config.refine_epochs * ENERGY_S
    return (
        f"all: at most {splits * total / 3600:.2g} CPU-hours of one thread; seconds a step measured at 11 columns and "
        "a base of couplings, assumed for the others"
    )
