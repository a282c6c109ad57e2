"""A critic that was trained elsewhere as the energy of a generator that was: nothing is trained here. Half a minute.

    python examples/critic_as_energy.py --out threes

The generator is a PCA of the digits, the critic a logistic regression of "is it a three?". `gebm.critic(D)` is the
energy -D, `gebm.sample` draws from the generator reweighted by exp(D), and energies add up: a second pair asks for
threes whose ink is bold, by one more term. For the discriminator of a GAN this is discriminator-driven latent sampling
(Che et al. 2020).
"""

import argparse
from pathlib import Path

import torch
from refine_any_generator import make_base
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import gebm
from gebm.data import labelled_digits
from gebm.metrics import choose_features
from gebm.pictures import save_grid


def three_critic() -> "torch.nn.Module":
    """log p(3 | x) - log p(not 3 | x) of a logistic regression: images (N, 1, 8, 8) -> logits (N, 1)."""
    images, labels = labelled_digits()
    x = torch.tensor(images).flatten(1) / 127.5 - 1
    fitted = LogisticRegression(max_iter=1000).fit(x.numpy(), labels == 3)
    head = torch.nn.Linear(64, 1)
    head.weight.data, head.bias.data = torch.tensor(fitted.coef_).float(), torch.tensor(fitted.intercept_).float()
    return torch.nn.Sequential(torch.nn.Flatten(), head)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("threes"), help="folder of the pictures [threes]")
    parser.add_argument("--tiny", action="store_true", help="a look in seconds; the figures mean nothing")
    args = parser.parse_args()
    n, steps = (100, 10) if args.tiny else (500, 100)

    base, prior, is_three = make_base((1, 8, 8), 20, 1.0), gebm.GaussianPrior(20), gebm.critic(three_critic())

    def bold_three(x: Tensor) -> Tensor:
        return is_three(x) - 60 * x.mean((1, 2, 3))

    args.out.mkdir(parents=True, exist_ok=True)
    features, _ = choose_features("digits-cnn", "digits", (1, 8, 8), cache_dir=args.out / "cache")
    for name, energy in {"threes": is_three, "bold-threes": bold_three}.items():
        draws = gebm.sample(gebm.GEBM(base, energy, prior), n, sampler="hmc", leapfrog=5, step_size=0.3, steps=steps)
        for kind, samples in {"base": draws.base_samples, name: draws.samples}.items():
            images = torch.from_numpy(draws.images(samples))
            threes = (features.logits(images).argmax(1) == 3).float().mean()
            ink = float(samples.mean())
            print(f"{kind}: {threes:.0%} threes in the eyes of {features.name}, mean ink {ink:.2f}")
            save_grid(args.out / f"{kind}.png", images[:64].numpy())
    print(f"pictures in {args.out}/")
