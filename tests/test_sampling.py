import numpy as np
import pytest
import torch

from gebm.data import to_uint8
from gebm.latent import GaussianPrior, LatentPosterior
from gebm.model import GEBM, Architecture
from gebm.samplers import KineticLangevin, Langevin, NonFiniteError, run, step_decay
from gebm.sampling import Draws, draw
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
    long = draw(target, kernel, 14, 3, chunk=4, seed=1, on_step=done.append)
    assert_same(short, long, 8)
    assert len(long.images) == 14 and done == [4] * 9 + [2] * 3
    assert len(long.latents.unique(dim=0)) == len(np.unique(long.start, axis=0)) == 14  # no chunk repeats another
    other = draw(target, kernel, 8, 3, chunk=4, seed=2)
    assert not torch.equal(other.latents, short.latents)


@pytest.mark.parametrize("kernel", KERNELS)
def test_looking_changes_nothing(target, kernel):
    plain = draw(target, kernel, 7, 6, chunk=4)
    seen = draw(
        target, kernel, 7, 6, chunk=4, observe=pixels, observe_at=(0, 3, 6), frames_at=(0, 2, 6), frame_chains=3
    )  # fmt: skip
    assert_same(plain, seen)
    assert plain.observed == {} and plain.energy_trace == {} and plain.frames == []
    assert sorted(seen.observed) == sorted(seen.energy_trace) == [0, 3, 6]
    assert torch.equal(seen.observed[0], pixels(seen.start)) and torch.equal(seen.observed[6], pixels(seen.images))
    assert seen.observed[3].shape == (7, 64)
    assert seen.energy_trace[0] == pytest.approx(float(seen.energies_start.mean()))
    assert seen.energy_trace[6] == pytest.approx(float(seen.energies.mean()))
    assert [step for step, _ in seen.frames] == [0, 2, 6] and all(len(images) == 3 for _, images in seen.frames)
    assert np.array_equal(seen.frames[0][1], seen.start[:3]) and np.array_equal(seen.frames[2][1], seen.images[:3])
    traced = draw(target, kernel, 7, 6, chunk=4, observe_at=(6,))
    assert traced.observed == {} and traced.energy_trace == {6: seen.energy_trace[6]}


def test_no_steps(target):
    result = draw(target, KERNELS[0], 3, 0, observe=pixels, observe_at=(0,))
    assert np.array_equal(result.start, result.images) and torch.equal(result.observed[0], pixels(result.images))
    assert result.acceptance == 1.0


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
