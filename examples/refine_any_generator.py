r"""Refine a generator that you bring: an energy on top of it, its weights left alone. Under a minute on one CPU thread.

    python examples/refine_any_generator.py --out refined

The command line does the same for whatever trained generator a factory of yours returns, here `make_base`:

    export OMP_NUM_THREADS=1 PYTHONPATH=examples
    gebm train --train_mode energy --g_model refine_any_generator:make_base --Z_dim 20 --dataset digits \
        --d_model dcgan --width 0.5 --penalty_type gradient --penalty_lambda 0.02 \
        --lr 2e-3 --beta_2 0.999 --noise_factor 2 --refine_iter 3000 --log_name refined
    gebm sample --g_path runs/refined --latent_sampler hmc --lmc_gamma 0.04 --num_leapfrog 5 --step_decay_every 0 \
        --num_sampler_steps 100 --temperature 1 --eval_fid --fid_samples 2000
"""

import argparse
from pathlib import Path

import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import gebm
from gebm.data import Batches, from_uint8, labelled_digits, to_uint8
from gebm.metrics import Frechet, Reference, choose_features, extract, metric_name
from gebm.metrics.partition import base_energies, relative_ess
from gebm.networks import DCGANEnergy
from gebm.pictures import save_grid
from gebm.samplers import HMC
from gebm.sampling import draw

LATENT_DIM, CHAINS, SAMPLER_STEPS = 20, 2000, 100
KERNEL = HMC(step_size=0.4, leapfrog=5)


class PCAGenerator(nn.Module):
    """A generator that knows nothing of gebm: latents z ~ N(0, I) (N, d) on d principal axes -> images (N, C, H, W)."""

    def __init__(self, images: Tensor, latent_dim: int):
        super().__init__()
        pca = PCA(latent_dim, svd_solver="full").fit(images.flatten(1).numpy())
        self.image_shape = images.shape[1:]
        self.register_buffer("mean", torch.tensor(pca.mean_))
        self.register_buffer("axes", torch.tensor(pca.components_ * pca.explained_variance_[:, None] ** 0.5))

    def forward(self, z: Tensor) -> Tensor:
        return (self.mean + z @ self.axes).unflatten(1, self.image_shape).clamp(-1, 1)


class ThreeCritic(nn.Module):
    """A critic trained elsewhere, low where it is content: -log p(3 | x) of scikit-learn's logistic regression."""

    def __init__(self, images: Tensor, labels: Tensor):
        super().__init__()
        fitted = LogisticRegression(max_iter=1000).fit(images.flatten(1).numpy(), labels.numpy())
        self.register_buffer("weight", torch.tensor(fitted.coef_).float())
        self.register_buffer("bias", torch.tensor(fitted.intercept_).float())

    def forward(self, x: Tensor) -> Tensor:
        return -nn.functional.linear(x.flatten(1), self.weight, self.bias).log_softmax(1)[:, 3]


def make_base(image_shape: tuple[int, int, int], latent_dim: int, width: float) -> nn.Module:
    """What `--g_model` calls. Yours would build your generator and load its weights; `width` is for gebm's own."""
    return PCAGenerator(from_uint8(torch.tensor(gebm.load_images("digits").train)), latent_dim)


def train_energy(model: gebm.GEBM, batches: Batches, steps: int, generator: torch.Generator) -> None:
    """Maximise KALE over the energy and c with the base as it is, as `gebm train --train_mode energy` does."""
    objective = gebm.KALE(model.energy, model.log_partition, penalty_type="gradient", penalty_lambda=0.02)
    optimizer = torch.optim.Adam(objective.parameters(), lr=2e-3, betas=(0.5, 0.999))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(1, steps + 1):
        real = next(batches)
        fake = model.generate(2 * len(real), generator).detach()
        loss, stats = objective(real, fake, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 500 == 0:
            print(f"  step {step}: KALE {float(stats['kale']):.2f} nats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("refined"), help="folder of the pictures [refined]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000, help="energy steps [3000]")
    parser.add_argument("--tiny", action="store_true", help="a look in seconds; the figures mean nothing")
    args = parser.parse_args()
    if args.tiny:
        args.steps = 20
    chains, sampler_steps = (100, 10) if args.tiny else (CHAINS, SAMPLER_STEPS)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the networks are too small for more
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    # 1. An energy on a frozen generator, and draws from the pair.
    data = gebm.load_images("digits")
    prior, base = gebm.GaussianPrior(LATENT_DIM), make_base(data.shape, LATENT_DIM, width=1.0)
    model = gebm.GEBM(base, DCGANEnergy(data.shape, width=0.5), prior)
    print(f"training the energy on {len(data.train)} digits, {args.steps} steps, seed {args.seed}")
    train_energy(model, Batches(data.train, 128, generator=generator), args.steps, generator)
    model.eval().requires_grad_(False)
    draws = draw(model.posterior(beta=1.0).frozen(), KERNEL, chains, sampler_steps, seed=args.seed)
    save_grid(args.out / "base.png", draws.start[:64])
    save_grid(args.out / "refined.png", draws.images[:64])  # from the same latents

    # Did it help? Distances to digits that neither of the two was fitted to.
    cnn, _ = choose_features("auto", data.name, data.shape, cache_dir=args.out / "cache")
    held_out = Reference.of(extract(data.test, cnn))
    metric = Frechet(held_out, metric_name("FD", cnn))
    start, end, *gain = metric.compare(extract(draws.start, cnn), extract(draws.images, cnn))
    print(f"{metric.name} to {len(data.test)} held-out digits, {chains} samples each, 95 % intervals")
    for name, (value, (low, high)) in {"base": start, "GEBM": end, "gain": gain}.items():
        print(f"  {name} {value:.2f} ({low:.2f} to {high:.2f})")
    print(f"  {KERNEL}, {sampler_steps} steps, beta 1, acceptance {draws.acceptance:.2f}")

    # Are they draws from the model? R-hat says whether the chains have forgotten their starts, and the mean energy of
    # the model is also that of base samples with weights exp(-E).
    mixing = draws.diagnostics
    print(f"  R-hat of the energy {mixing.rhat_energy:.2f}, of the worst projection {mixing.rhat_projection:.2f}")
    e = base_energies(model, 1000 if args.tiny else 100_000, generator)
    weights = torch.softmax(-e, 0)
    mean = weights @ e
    error = (weights * (e - mean)).norm()
    print(f"mean energy of the base {e.mean():.2f}, of the chains {draws.energies.mean():.2f}")
    print(f"  and of the model, by importance, {mean:.2f} +- {error:.2f} (relative ESS {relative_ess(-e):.3f})")

    # 2. Nothing trained here: any generator and any critic. For the critic D of a GAN the energy is -D.
    images, labels = (torch.from_numpy(array[: len(data.train)]) for array in labelled_digits())
    critic = ThreeCritic(from_uint8(images), labels)
    posterior = gebm.LatentPosterior(prior, base, critic, beta=3.0)
    start = posterior.start(100 if args.tiny else 500, generator)
    by_critic = gebm.run(KERNEL, posterior, start, sampler_steps, generator=generator)

    # 3. Any differentiable potential, (N, d) -> (N,), is a target. Energies add up: of digits, and of threes.
    def potential(z: Tensor) -> Tensor:
        x = base(z)
        return z.square().sum(1) / 2 + model.energy(x) + 3.0 * critic(x)

    by_both = gebm.run(KERNEL, gebm.value_and_grad(potential), start, sampler_steps, generator=generator)
    print(f"threes among {len(start)} samples, in the eyes of {cnn.name}")
    chains = {"base": start, "critic": by_critic.state.position, "critic and energy": by_both.state.position}
    for name, z in chains.items():
        samples = to_uint8(base(z))
        print(f"  {name} {(cnn.logits(samples).argmax(1) == 3).float().mean():.0%}")
        save_grid(args.out / f"threes {name}.png".replace(" ", "-"), samples[:64].numpy())
    print(f"pictures in {args.out}/")


if __name__ == "__main__":
    main()
