"""Train a small pair on digits from Python, sample from it, and see whether the energy helped. Two minutes on one CPU.

    python examples/first_steps.py --out first

A generalized energy-based model is a base G, which turns noise into images, and an energy E, which says which of them
are too many (high) and which too few (low). `gebm.fit` trains both in turn: energy steps raise KALE, a lower bound on
the KL divergence from the base to the data, base steps lower it. The base is stopped early here, so that it leaves the
energy something to mend; then it rests, and the energy goes on alone. `gebm.tune` chooses on training images how the
pair is sampled, `gebm.sample` moves latents of the base by it, and `gebm.evaluate` compares the result, and the base
alone, with digits that neither network has seen.
"""

import argparse
from pathlib import Path

import torch

import gebm
from gebm.pictures import save_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("first"), help="folder of the run and of the pictures [first]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a look in seconds; the figures mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the networks are too small for more
    torch.manual_seed(args.seed)  # of the networks' first weights

    data = gebm.load_images("digits")  # uint8 (N, 1, 8, 8), a train and a test split
    model = gebm.GEBM.build("sngan", shape=data.shape, latent_dim=10, width=0.25)
    steps, refine_steps, n = (4, 8, 200) if args.tiny else (150, 1500, 2000)
    history = gebm.fit(
        model, data, steps=steps, refine_steps=refine_steps, base_factor=2, learning_rate=1e-3, seed=args.seed,
        out=args.out,
    )  # fmt: skip
    print(history)

    setting = gebm.tune(model, data, n=n // 2, seed=args.seed)
    for kind, how in {"refined": setting, "model": gebm.Setting()}.items():  # the second is beta 1: the model itself
        draws = gebm.sample(model, n, how, seed=args.seed + 1)
        print(f"\n{kind}\n{gebm.evaluate(model, data, draws)}")
        save_grid(args.out / f"{kind}.png", draws.images()[:64])
    save_grid(args.out / "base.png", draws.images(draws.base_samples)[:64])  # from the same latents
    print(f"pictures in {args.out}/")


if __name__ == "__main__":
    main()
