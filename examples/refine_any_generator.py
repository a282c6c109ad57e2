r"""Refine a generator that you bring: an energy on top of it, its weights left alone. A minute on one CPU thread.

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
from torch import Tensor, nn

import gebm
from gebm.networks import DCGANEnergy
from gebm.pictures import save_grid


class PCAGenerator(nn.Module):
    """A generator that knows nothing of gebm: latents z ~ N(0, I) (N, d) on d principal axes -> images (N, C, H, W)."""

    def __init__(self, images: Tensor, latent_dim: int):
        super().__init__()
        self.pca, self.shape = PCA(latent_dim, svd_solver="full").fit(images.flatten(1)), images.shape[1:]

    def forward(self, z: Tensor) -> Tensor:
        axes = torch.tensor(self.pca.components_ * self.pca.explained_variance_[:, None] ** 0.5).to(z)
        return (torch.tensor(self.pca.mean_).to(z) + z @ axes).unflatten(1, self.shape).clamp(-1, 1)


def make_base(image_shape: tuple[int, int, int], latent_dim: int, width: float) -> nn.Module:
    """What `--g_model` calls. Yours would build your generator and load its weights; `width` is for gebm's own."""
    return PCAGenerator(torch.tensor(gebm.load_images("digits").train) / 127.5 - 1, latent_dim)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("refined"), help="folder of run and pictures [refined]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a look in seconds; the figures mean nothing")
    args = parser.parse_args()
    steps, n = (20, 200) if args.tiny else (3000, 2000)

    torch.manual_seed(args.seed)  # of the energy's first weights
    data = gebm.load_images("digits")
    energy = DCGANEnergy(data.shape, width=0.5)  # or any module of yours, images -> (N,)
    model = gebm.GEBM(make_base(data.shape, 20, 1.0), energy, gebm.GaussianPrior(20))
    gebm.refine(model, data, steps=steps, learning_rate=2e-3, penalty_weight=0.02, base_factor=2, out=args.out)
    draws = gebm.sample(model, n, sampler="hmc", leapfrog=5, step_size=0.4, steps=200)  # of the model itself: beta 1
    print(gebm.evaluate(model, data, draws))
    save_grid(args.out / "base.png", draws.images(draws.base_samples)[:64])
    save_grid(args.out / "refined.png", draws.images()[:64])  # from the same latents
    print(f"pictures in {args.out}/")
