"""Train a small pair on digits from Python, sample from it, and see whether the energy helped. A minute on one CPU.

    python examples/first_steps.py --out first

A generalized energy-based model is a base G, which turns noise into images, and an energy E, which says which of them
are too many (high) and which too few (low). Four things happen here:

1. joint training: energy steps raise KALE, a lower bound on the KL divergence from the base to the data; base steps
   lower it. The base is stopped early, so that it leaves the energy something to mend;
2. refinement: the base is frozen, and the energy goes on alone. That is where most of what sampling gains comes from;
3. sampling: Langevin chains in the latent space of the base, from the same latents that the base's own samples come
   from;
4. evaluation: the distance to digits that neither network has seen, of the base and of the pair, with the gain's
   interval.

What `gebm demo` does beyond this: it chooses beta and the step size on training images, draws from the model itself
too, and writes a report.
"""

import argparse
from pathlib import Path

import torch

import gebm
from gebm.data import Batches, ImageData
from gebm.metrics import Frechet, Reference, choose_features, extract, metric_name
from gebm.networks import SNGANBase, SNGANEnergy
from gebm.pictures import save_grid
from gebm.training.trainer import Trainer

LATENT_DIM, BATCH, LEARNING_RATE = 10, 128, 1e-3
BASE_STEPS, ENERGY_STEPS_EACH, REFINE_STEPS = 150, 5, 600
BETA, KERNEL, SAMPLER_STEPS, CHAINS = 30.0, gebm.Langevin(0.015), 16, 2000


def make_trainer(data: ImageData, generator: torch.Generator) -> Trainer:
    """A pair, its objective and its optimisers. Every piece takes plain arguments; put your own in the place of any."""
    base = SNGANBase(data.shape, latent_dim=LATENT_DIM, width=0.25)
    energy = SNGANEnergy(data.shape, width=0.25)
    model = gebm.GEBM(base, energy, gebm.GaussianPrior(LATENT_DIM))
    objective = gebm.KALE(model.energy, model.log_partition, penalty_type="gradient", penalty_lambda=1.0)
    adam = {"lr": LEARNING_RATE, "betas": (0.5, 0.999)}
    return Trainer(
        model,
        Batches(data.train, BATCH, generator=generator),
        objective,
        torch.optim.Adam(objective.parameters(), **adam),  # of the energy and of c, the log-partition
        torch.optim.Adam(base.parameters(), **adam),
        noise_factor=2,
        generator=generator,
    )


def train(trainer: Trainer, base_steps: int, refine_steps: int) -> None:
    """Both stages. `gebm.training.loop.train` does this with checkpoints, a log, schedules and resuming."""
    trainer.initialize_log_partition()
    for step in range(1, base_steps + 1):
        for _ in range(ENERGY_STEPS_EACH):
            stats = trainer.energy_step()
        trainer.base_step()
        if step % max(base_steps // 4, 1) == 0:
            print(f"  base step {step}: KALE {stats['kale']:.2f} nats, c {stats['c']:.2f}", flush=True)
    trainer.start("refine")  # freezes the base
    for step in range(1, refine_steps + 1):
        trainer.scale_lr(1 - step / refine_steps)  # to zero, which brings c to the log-partition
        stats = trainer.energy_step()
        if step % max(refine_steps // 4, 1) == 0:
            print(f"  refinement step {step}: KALE {stats['kale']:.2f} nats, c {stats['c']:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("first"), help="folder of the pictures and weights [first]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a look in seconds; the figures mean nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the networks are too small for more
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    data = gebm.load_images("digits")
    trainer = make_trainer(data, generator)
    model = trainer.model
    parts = (f"{sum(p.numel() for p in part.parameters()):,}" for part in (model.base, model.energy))
    print("training on {} digits, base of {} and energy of {} parameters".format(len(data.train), *parts))
    train(trainer, *(4, 8) if args.tiny else (BASE_STEPS, REFINE_STEPS))
    model.eval().requires_grad_(False)

    # Chains start at the latents of the base's samples, so each pair of pictures has a before and an after.
    chains = 64 if args.tiny else CHAINS
    draws = gebm.draw(model.posterior(BETA).frozen(), KERNEL, chains, SAMPLER_STEPS, seed=args.seed)
    save_grid(args.out / "base.png", draws.start[:64])
    save_grid(args.out / "refined.png", draws.images[:64])
    print(f"{chains} chains, {KERNEL}, {SAMPLER_STEPS} steps, beta {BETA:g}")
    print(f"  mean energy {draws.energies_start.mean():.2f} at the start, {draws.energies.mean():.2f} at the end")
    if not draws.diagnostics.mixed:
        print("  these are refined samples, not draws from the model: the chains have not forgotten their starts")

    requested = "pixels" if args.tiny else "auto"  # auto: a small classifier of the digits, trained on the first use
    features, why = choose_features(requested, data.name, data.shape, cache_dir=args.out / "cache")
    print(why)
    metric = Frechet(Reference.of(extract(data.test, features)), metric_name("FD", features))
    base, refined, gain, (low, high) = metric.compare(extract(draws.start, features), extract(draws.images, features))
    print(f"{metric.name} to {len(data.test)} held-out digits: base {base.value:.2f}, refined {refined.value:.2f}")
    print(f"  gain {gain:.2f}, 95 % interval {low:.2f} to {high:.2f}")
    print("  the energy helped" if low > 0 else "  the interval holds zero or less: no help that could be shown")
    print(f"pictures in {args.out}/")


if __name__ == "__main__":
    main()
