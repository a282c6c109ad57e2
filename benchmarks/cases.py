"""What the suite times: steps of training and sampling and what goes on around them, in up to three forms."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from reference_style import ReferenceStyle, ReferenceTraining

from gebm.commands.build import build_trainer
from gebm.config import Config
from gebm.data import Batches, ImageData
from gebm.latent import GaussianPrior, LatentPosterior, Target
from gebm.metrics import Moments, frechet_distance
from gebm.networks import BASES, ENERGIES
from gebm.precision import has_bfloat16
from gebm.samplers import HMC, SAMPLERS, Kernel
from gebm.training.checkpoint import save_checkpoint

__all__ = ["BASELINE", "BFLOAT16", "FLOAT32", "NETWORKS", "Size", "around", "sampling", "training"]

BASELINE, FLOAT32, BFLOAT16 = "reference style", "gebm float32", "gebm bfloat16"
NETWORKS = ("sngan", "resnet-sn")
LATENT_DIM, BETA, GAMMA = 100, 100.0, 1e-4
Forms = dict[str, Callable[[], object]]  # form -> one step


@dataclass(frozen=True)
class Size:
    """Chains and images that go through a step at once; width: factor on the networks' channels."""

    chains: int = 100
    batch: int = 128
    image: int = 32
    width: float = 1.0
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.image, self.image


def sampling(network: str, size: Size, samplers: tuple[str, ...] = tuple(SAMPLERS)) -> Iterator[tuple[str, Forms]]:
    """A step of each sampler; the baseline has four of them."""
    torch.manual_seed(0)
    base = BASES[network](size.shape, latent_dim=LATENT_DIM, width=size.width).to(size.device)
    energy = ENERGIES[network](size.shape, width=size.width).to(size.device)
    posterior = LatentPosterior(GaussianPrior(LATENT_DIM), base, energy, BETA)
    start = posterior.start(size.chains)
    reference, targets = ReferenceStyle(base, energy, BETA), {FLOAT32: posterior.frozen()}
    if has_bfloat16(start.device):
        targets[BFLOAT16] = posterior.frozen(torch.bfloat16)
    gradient = reference.gradient(start)
    baseline = {
        "langevin": (lambda z: reference.langevin(z, GAMMA), start),
        "lmc": (lambda zv: reference.kinetic(*zv, GAMMA), (start, torch.zeros_like(start))),
        "mala": (lambda zg: reference.mala(*zg, GAMMA), (start, gradient)),
        "hmc": (lambda zg: reference.hmc(*zg, GAMMA, leapfrog=2), (start, gradient)),
    }
    for name in samplers:
        kernel = HMC.from_gamma(GAMMA, leapfrog=2) if name == "hmc" else SAMPLERS[name].from_gamma(GAMMA)
        forms = {BASELINE: _chain(*baseline[name])} if name in baseline else {}
        for form, target in targets.items():
            if form == FLOAT32 or not kernel.exact:
                forms[form] = _kernel_chain(kernel, target, start)
        yield f"{name}, {network}", forms


def training(network: str, size: Size) -> Iterator[tuple[str, Forms]]:
    """An energy step and a base step, ours as `gebm train` builds them."""
    images = np.random.RandomState(0).randint(256, size=(4 * size.batch, *size.shape), dtype=np.uint8)
    data = ImageData("noise", images, images, "")
    device = torch.device(size.device)
    energy_steps, base_steps = {}, {}
    for form, precision in ((FLOAT32, 32), (BFLOAT16, "bf16")):
        if form == BFLOAT16 and not has_bfloat16(device):
            continue
        config = Config(
            dataset="npz:noise", g_model=network, d_model=network, width=size.width, b_size=size.batch, beta_1=0.0,
            beta_2=0.9, lr=1e-4, lr_generator=1e-4, precision=precision,
        )  # fmt: skip
        trainer, _ = build_trainer(config, frozenset(), data, device)
        if form == FLOAT32:
            floats = (batch.float() for batch in Batches(images, size.batch, device))
            reference = ReferenceTraining(trainer.model.base, trainer.model.energy, floats, LATENT_DIM)
            energy_steps[BASELINE], base_steps[BASELINE] = reference.energy_step, reference.base_step
        energy_steps[form], base_steps[form] = trainer.energy_step, trainer.base_step
    yield f"energy step, {network}", energy_steps
    yield f"base step, {network}", base_steps


def around(size: Size) -> Iterator[tuple[str, Forms]]:
    """What goes on between steps: a batch of data, a distance of ready features, a checkpoint."""
    images = np.random.RandomState(0).randint(256, size=(10_000, *size.shape), dtype=np.uint8)
    batches = Batches(images, size.batch, size.device)
    yield "batch of data", {FLOAT32: lambda: next(batches)}
    features = torch.randn(5000, 64, generator=torch.Generator().manual_seed(0))
    reference = Moments.of(torch.randn(5000, 64, generator=torch.Generator().manual_seed(1)))
    yield "FD of 5,000 x 64 features", {FLOAT32: lambda: frechet_distance(Moments.of(features), reference)}
    config = Config(dataset="npz:noise", width=size.width, b_size=size.batch)
    trainer, _ = build_trainer(config, frozenset(), ImageData("noise", images, images, ""), torch.device(size.device))
    trainer.energy_step()
    with tempfile.TemporaryDirectory() as folder:
        yield "checkpoint, sngan", {FLOAT32: lambda: save_checkpoint(Path(folder), trainer, "")}


def _chain(step: Callable, state: object) -> Callable[[], None]:
    """A call that moves a chain on by one step."""

    def advance() -> None:
        nonlocal state
        state = step(state)

    return advance


def _kernel_chain(kernel: Kernel, target: Target, start: torch.Tensor) -> Callable[[], None]:
    return _chain(lambda state: kernel.step(state, target, None)[0], kernel.init(start, target))
