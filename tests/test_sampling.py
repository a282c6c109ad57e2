import numpy as np
import pytest
import torch

from gebm.data import to_uint8
from gebm.latent import GaussianPrior, LatentPosterior
from gebm.metrics.partition import importance_sampling
from gebm.model import GEBM, Architecture
from gebm.samplers import (
    MALA,
    SMC,
    DrawFiles,
    KineticLangevin,
    Langevin,
    NonFiniteError,
    SphereLangevin,
    UnfinishedError,
    run,
    step_decay,
)
from gebm.samplers.diagnostics import rhat
from gebm.sampling import Draws, Observer, draw
from gebm.seeds import stream

KERNELS = [Langevin(0.05), KineticLangevin(0.2, 1.0)]


@pytest.fixture(scope="module")
def target() -> LatentPosterior:
    torch.manual_seed(0)
    model = GEBM.build(Architecture("dcgan", "dcgan", (1, 8, 8), latent_dim=4, width=0.1, trunc=False))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5)
    return model.posterior(beta=5.0).frozen()


def pixels(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(images).flatten(1).double()


def assert_same(a: Draws, b: Draws, n: int | None = None) -> None:
    """The first n chains of two results are equal bit for bit."""
    for name in ("start", "images", "latents", "energies_start", "energies"):
        assert np.array_equal(np.asarray(getattr(a, name))[:n], np.asarray(getattr(b, name))[:n]), name


@pytest.mark.parametrize("kernel", KERNELS)
def test_draws_are_those_of_run(target, kernel):
    result = draw(target, kernel, 5, 4, schedule=step_decay(0.1, 2), chunk=5, seed=3)
    generator = torch.Generator().manual_seed(stream(3, "chains", 0))
    start = target.start(5, generator)
    end = run(kernel, target, start, 4, schedule=step_decay(0.1, 2), generator=generator).state.position
    assert torch.equal(result.latents, end)
    assert np.array_equal(result.start, to_uint8(target.decode(start)).numpy())
    assert np.array_equal(result.images, to_uint8(target.decode(end)).numpy())
    assert torch.equal(result.energies_start, target.energies(start))
    assert torch.equal(result.energies, target.energies(end))
    assert result.images.shape == (5, 1, 8, 8) and result.images.dtype == np.uint8
    assert (result.start != result.images).any() and result.acceptance == 1.0


@pytest.mark.parametrize("kernel", KERNELS)
def test_first_chunks_of_a_longer_run(target, kernel):
    done = []
    short = draw(target, kernel, 8, 3, chunk=4, seed=1)
    long = draw(target, kernel, 14, 3, chunk=4, seed=1, observer=Observer(on_step=done.append))
    assert_same(short, long, 8)
    assert len(long.images) == 14 and done == [4] * 9 + [2] * 3
    assert len(long.latents.unique(dim=0)) == len(np.unique(long.start, axis=0)) == 14  # no chunk repeats another
    other = draw(target, kernel, 8, 3, chunk=4, seed=2)
    assert not torch.equal(other.latents, short.latents)


@pytest.mark.parametrize("kernel", KERNELS)
def test_looking_changes_nothing(target, kernel, tmp_path):
    plain = draw(target, kernel, 7, 6, chunk=4)
    seen = Observer(pixels, (0, 3, 6), (0, 2, 6), 3, DrawFiles(tmp_path, 7, 6, 4, 2))
    looked = draw(target, kernel, 7, 6, chunk=4, observer=seen)
    assert_same(plain, looked)
    features, energies = seen.features(), seen.energies
    assert sorted(features) == sorted(energies) == [0, 3, 6]
    assert torch.equal(features[0], pixels(looked.start)) and torch.equal(features[6], pixels(looked.images))
    assert features[3].shape == (7, 64)
    assert torch.equal(torch.cat(energies[0]), looked.energies_start)
    assert torch.equal(torch.cat(energies[6]), looked.energies)
    assert [step for step, _ in seen.frames] == [0, 2, 6] and all(len(images) == 3 for _, images in seen.frames)
    assert np.array_equal(seen.frames[0][1], looked.start[:3]) and np.array_equal(seen.frames[2][1], looked.images[:3])
    positions = np.load(tmp_path / "position.npy", mmap_mode="r")
    assert positions.shape == (7, 3, 4) and np.array_equal(positions[:, -1], looked.latents.numpy())
    unseen = Observer(images_at=(6,))
    draw(target, kernel, 7, 6, chunk=4, observer=unseen)
    assert unseen.features() == {} and torch.equal(torch.cat(unseen.energies[6]), looked.energies)


def test_no_steps(target):
    seen = Observer(pixels, (0,))
    result = draw(target, SphereLangevin(0.1), 3, 0, observer=seen)  # which would move even its starts
    assert torch.equal(target.energies(result.latents), result.energies)
    assert np.array_equal(result.start, result.images) and torch.equal(seen.features()[0], pixels(result.images))
    assert result.acceptance == 1.0 and result.trace == {} and not result.diagnostics.mixed


def test_tuned_on_the_first_chunk_for_all(target):
    result = draw(target, MALA(10.0), 40, 30, warm_up=60, chunk=20, seed=3)
    assert result.kernel.step_size == result.adapted.kernel.step_size < 5
    assert 0.4 < result.acceptance < 0.75
    generator = torch.Generator().manual_seed(stream(3, "chains", 1))
    warm = run(result.kernel, target, target.start(20, generator), 60, generator=generator).state
    end = run(result.kernel, target, warm, 30, generator=generator).state.position
    assert torch.equal(result.latents[20:], end)


def test_diagnostics_are_those_of_the_first_chunk(target):
    result = draw(target, MALA(0.3), 30, 40, chunk=20)
    assert result.trace["energy"].shape == (20, 40) and result.trace["projection"].shape == (20, 40, 4)
    energies = 5.0 * result.energies[:20]
    assert np.allclose(result.trace["energy"][:, -1], energies.numpy(), atol=1e-4)
    assert result.diagnostics.chains == 20 and result.diagnostics.draws == 20
    assert result.diagnostics.rhat_energy == pytest.approx(float(rhat(torch.tensor(result.trace["energy"][:, 20:]))))


def test_population_gives_log_z_and_needs_its_steps(target):
    result = draw(target, SMC(0.3), 600, 40, chunk=300, seed=1)
    draws = target.start(50_000, torch.Generator().manual_seed(9))
    exact = importance_sampling(-target.beta * target.energies(draws))
    value, se, _, n, k = result.log_partition
    assert n == 600 and k < 0.6 and not result.log_partition.warning
    assert 0 < se < 0.1 and abs(value - exact.value) < 4 * (se**2 + exact.se**2) ** 0.5
    with pytest.raises(UnfinishedError, match="only .*% of the way"):
        draw(target.at(500.0), SMC(0.3), 100, 2)


class Images(torch.nn.Module):
    """Latents (N, 2) as images of two pixels."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.reshape(-1, 1, 1, 2)


class Bowl(torch.nn.Module):
    """E(x) = |x|^2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().flatten(1).sum(1)


def test_the_energy_moves_the_chains_as_it_should():
    """E(x) = |x|^2 with beta = 2: the posterior is N(0, 1 / (1 + 4)), Langevin's variance 1 / (5 (1 - 5 h / 2))."""
    n, h = 4000, 0.02
    target = LatentPosterior(GaussianPrior(2), Images(), Bowl(), beta=2.0)
    result = draw(target, Langevin(h), n, 60, chunk=1500)
    variance = 1 / (5 * (1 - 5 * h / 2))
    assert abs(result.latents.square().mean() - variance) < 4 * variance * (2 / (2 * n)) ** 0.5
    assert abs(result.energies.mean() - 2 * variance) < 4 * 2 * variance / n**0.5
    assert abs(result.energies_start.mean() - 2) < 4 * 2 / n**0.5


def test_divergence_is_an_error():
    target = LatentPosterior(GaussianPrior(2), Images(), Bowl())
    with pytest.raises(NonFiniteError, match="smaller step size"):
        draw(target, Langevin(50.0), 2, 200)


def test_the_base_is_seen_as_it_is():
    """Also by a sampler that moves its starts, onto a sphere."""
    target = LatentPosterior(GaussianPrior(2), Images(), Bowl())
    seen = Observer(pixels, (0,))
    result = draw(target, SphereLangevin(0.01), 20, 2, observer=seen)
    assert torch.equal(seen.features()[0], pixels(result.start))
    assert torch.equal(torch.cat(seen.energies[0]), result.energies_start) and result.energies_start.std() > 0.1
