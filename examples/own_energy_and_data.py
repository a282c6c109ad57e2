r"""Your own networks, data and features, from Python and by dotted path on the command line. A minute on one CPU.

    python examples/own_energy_and_data.py --out own

Wherever a flag takes a name it takes `package.module:factory` too, a function of yours that is imported and called.
This file has one of each kind:

    export OMP_NUM_THREADS=1 PYTHONPATH=examples
    gebm train --dataset own_energy_and_data:rings --image_size 8 --Z_dim 4 \
        --g_model own_energy_and_data:make_base --d_model own_energy_and_data:make_energy \
        --total_gen_iter 200 --refine_iter 600 --lr 1e-3 --lr_generator 1e-3 --beta_2 0.999 --noise_factor 2 \
        --penalty_type gradient --penalty_lambda 1 --initialize_log_partition --log_name rings
    gebm evaluate runs/rings --dataset own_energy_and_data:rings --image_size 8 \
        --g_model own_energy_and_data:make_base --d_model own_energy_and_data:make_energy \
        --eval_fid --fid_features own_energy_and_data:make_features --fid_samples 1000 \
        --latent_sampler mala --adapt --lmc_gamma 0.1 --temperature 3 --num_sampler_steps 200

The script runs these two commands, then uses the same pieces from Python. A weights file cannot name code to run:
what it was made with is imported only where you name it too, in `--g_model` or in `GEBM.load(..., allow=[...])`.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import gebm
from gebm.cli import main as command
from gebm.data import Batches, from_uint8
from gebm.metrics import Extractor, Frechet, Reference, extract
from gebm.pictures import save_grid

MODULE = "own_energy_and_data"
SIZE, RINGS, TEST = 8, 4000, 500
BETA = 3.0  # sharpened: 1 is the model itself, which gains less


def rings(data_path: Path, image_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """What `--dataset` calls: a train and a test split, uint8 (N, C, H, W).

    Here soft rings of random place, radius and width; yours would read files below `data_path`.
    """
    side = image_size or SIZE
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0.35, 0.65, (2, RINGS + TEST, 1, 1)) * side
    radius = rng.uniform(0.15, 0.35, (RINGS + TEST, 1, 1)) * side
    width = rng.uniform(0.03, 0.08, (RINGS + TEST, 1, 1)) * side
    row, column = np.mgrid[:side, :side] + 0.5
    away = np.hypot(row - y, column - x) - radius
    images = np.rint(255 * np.exp(-((away / width) ** 2) / 2)).astype(np.uint8)[:, None]
    return images[:RINGS], images[RINGS:]


class Base(nn.Module):
    """A generator knows nothing of gebm: latents (N, d) -> samples (N, C, H, W) in [-1, 1]."""

    def __init__(self, shape: tuple[int, int, int], latent_dim: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, int(np.prod(shape))), nn.Tanh(), nn.Unflatten(1, shape),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Energy(nn.Module):
    """An energy gives one number a sample, (N, C, H, W) -> (N,), low where samples are likely. No batch statistics."""

    def __init__(self, shape: tuple[int, int, int], hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(int(np.prod(shape)), hidden), nn.LeakyReLU(0.1),
            nn.Linear(hidden, hidden), nn.LeakyReLU(0.1), nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)  # (N,), not (N, 1)


class RingFeatures:
    """What is looked at when samples are compared with data: uint8 images (N, C, H, W) -> features (N, d).

    Brightness, the centre, the mean distance from it and its spread. For a ring these are its place, radius and width.
    """

    name, key = "ring-moments", "ring-moments-1"  # in reports; and in caches, so change it with the function

    def __call__(self, images: Tensor) -> Tensor:
        light = images.float().mean(1) / 255
        side = light.shape[-1]
        total = light.sum((1, 2)).clamp(min=1e-6)
        row, column = torch.meshgrid(*2 * [torch.arange(side) + 0.5], indexing="ij")
        y, x = ((light * axis).sum((1, 2)) / total for axis in (row, column))
        away = torch.hypot(row - y[:, None, None], column - x[:, None, None])
        radius = (light * away).sum((1, 2)) / total
        spread = (light * (away - radius[:, None, None]) ** 2).sum((1, 2)) / total
        return torch.stack([total / side, x, y, radius, spread.sqrt()], 1)


def make_base(shape: tuple[int, int, int], latent_dim: int, width: float) -> nn.Module:
    """What `--g_model` calls."""
    return Base(shape, latent_dim, hidden=int(128 * width))


def make_energy(shape: tuple[int, int, int], width: float, trunc: bool) -> nn.Module:
    """What `--d_model` calls; `trunc` is `--no_trunc` turned round, for energies with a floor."""
    return Energy(shape, hidden=int(128 * width))


def make_features(weights: str | None, data_path: Path, cache_dir: Path) -> Extractor:
    """What `--fid_features` calls; `weights` is `--fid_weights`."""
    return RingFeatures()


def run(*words: object) -> None:
    """A command, as in a shell; ends the script where the shell would see an error."""
    words = [str(word) for word in words]
    print(f"$ gebm {' '.join(words)}", flush=True)
    if code := command(words):
        raise SystemExit(code)


CODE = [
    "--dataset", f"{MODULE}:rings", "--image_size", SIZE,
    "--g_model", f"{MODULE}:make_base", "--d_model", f"{MODULE}:make_energy",
]  # fmt: skip


def on_the_command_line(out: Path, tiny: bool) -> Path:
    """Train and evaluate by dotted paths; returns the run's folder."""
    place = ["--data_path", out / "data", "--log_dir", out / "runs", "--log_name", "rings"]
    base_steps, refine_steps = (2, 4) if tiny else (200, 600)
    run(
        "train", *CODE, "--Z_dim", 4, *place, "--total_gen_iter", base_steps, "--refine_iter", refine_steps,
        "--lr", "1e-3", "--lr_generator", "1e-3", "--beta_2", 0.999, "--noise_factor", 2, "--penalty_type", "gradient",
        "--penalty_lambda", 1, "--initialize_log_partition",
    )  # fmt: skip
    run(
        "evaluate", out / "runs" / "rings", *CODE, "--data_path", out / "data", "--eval_fid",
        "--fid_features", f"{MODULE}:make_features", "--fid_samples", 100 if tiny else 1000,
        "--latent_sampler", "mala", "--adapt", "--adapt_steps", 50, "--lmc_gamma", 0.1, "--temperature", BETA,
        "--num_sampler_steps", 20 if tiny else 200,
    )  # fmt: skip
    return out / "runs" / "rings"


def from_python(run_folder: Path, out: Path, tiny: bool) -> None:
    """The same pieces without flags: the trained base, and a new energy on top, fitted by a loop of your own."""
    newest = max((run_folder / "checkpoints").iterdir(), key=os.path.getmtime)
    trained = gebm.GEBM.load(newest, allow=[f"{MODULE}:make_base", f"{MODULE}:make_energy"])
    train, test = rings(out, SIZE)
    x = from_uint8(torch.tensor(test[:3]))
    relative = ", ".join(f"{value:.2f}" for value in trained.log_ratio(x).tolist())
    print(f"log-density of three test rings relative to the base, by the energy of the run: {relative}")

    model = gebm.GEBM(trained.base, Energy(train.shape[1:], hidden=128), trained.prior)
    objective = gebm.KALE(model.energy, model.log_partition, penalty_type="gradient", penalty_lambda=1.0)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3, betas=(0.5, 0.999))
    batches, steps = Batches(train, 128, generator=torch.Generator().manual_seed(0)), 10 if tiny else 1000
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(1, steps + 1):
        loss, stats = objective(next(batches), model.generate(256).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % (steps // 2) == 0:
            print(f"  energy step {step}: KALE {float(stats['kale']):.2f} nats")
    model.eval().requires_grad_(False)

    chains, sampler_steps = (100, 20) if tiny else (1000, 200)
    draws = gebm.draw(model.posterior(BETA).frozen(), gebm.MALA(0.05), chains, sampler_steps, warm_up=50)
    features = RingFeatures()
    metric = Frechet(Reference.of(extract(test, features)), f"FD({features.name})")
    base, pair, gain, (low, high) = metric.compare(extract(draws.start, features), extract(draws.images, features))
    print(
        f"{metric.name} to {len(test)} test rings, {chains} samples: base {base.value:.3f}, pair {pair.value:.3f}, ",
        end="",
    )
    print(f"gain {gain:.3f} ({low:.3f} to {high:.3f})")
    save_grid(out / "data.png", test[:64])
    save_grid(out / "base.png", draws.start[:64])
    save_grid(out / "pair.png", draws.images[:64])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("own"), help="folder of all that is written [own]")
    parser.add_argument("--tiny", action="store_true", help="a look in seconds; the figures mean nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the networks are too small for more
    torch.manual_seed(0)

    print("1. on the command line")
    run_folder = on_the_command_line(args.out, args.tiny)
    print("\n2. from Python")
    from_python(run_folder, args.out, args.tiny)
    print(f"pictures in {args.out}/")


if __name__ == "__main__":
    main()
