"""Generalized energy-based models: an energy on top of a generator."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; at run time each is imported on its first use
    from gebm.data import load_images, load_table
    from gebm.evaluation import Figures, evaluate, tune
    from gebm.latent import GaussianPrior, LatentPosterior, UniformPrior, value_and_grad
    from gebm.model import GEBM, Architecture
    from gebm.networks import DensityRatio, Flow
    from gebm.networks.critic import critic
    from gebm.objectives import KALE
    from gebm.samplers import HMC, MALA, SMC, KineticLangevin, Langevin, adapt, load_chain, run, save_chain
    from gebm.samples import Samples, Setting, sample
    from gebm.sampling import draw
    from gebm.training.fit import Training, fit, refine
    from gebm.training.history import History
    from gebm.training.trainer import Trainer

__version__: str

# name -> module; imported on first use, so that the command line's help need not wait for torch
_HOMES = {
    "GEBM": "gebm.model",
    "KALE": "gebm.objectives",
    "Architecture": "gebm.model",
    "DensityRatio": "gebm.networks",
    "Figures": "gebm.evaluation",
    "Flow": "gebm.networks",
    "GaussianPrior": "gebm.latent",
    "HMC": "gebm.samplers",
    "History": "gebm.training.history",
    "KineticLangevin": "gebm.samplers",
    "Langevin": "gebm.samplers",
    "LatentPosterior": "gebm.latent",
    "MALA": "gebm.samplers",
    "SMC": "gebm.samplers",
    "Samples": "gebm.samples",
    "Setting": "gebm.samples",
    "Trainer": "gebm.training.trainer",
    "Training": "gebm.training.fit",
    "UniformPrior": "gebm.latent",
    "adapt": "gebm.samplers",
    "critic": "gebm.networks.critic",
    "draw": "gebm.sampling",
    "evaluate": "gebm.evaluation",
    "fit": "gebm.training.fit",
    "load_chain": "gebm.samplers",
    "load_images": "gebm.data",
    "load_table": "gebm.data",
    "refine": "gebm.training.fit",
    "run": "gebm.samplers",
    "sample": "gebm.samples",
    "save_chain": "gebm.samplers",
    "tune": "gebm.evaluation",
    "value_and_grad": "gebm.latent",
}

__all__ = [
    "GEBM", "HMC", "KALE", "MALA", "SMC", "Architecture", "DensityRatio", "Figures", "Flow", "GaussianPrior", "History",
    "KineticLangevin", "Langevin", "LatentPosterior", "Samples", "Setting", "Trainer", "Training", "UniformPrior",
    "adapt", "critic", "draw", "evaluate", "fit", "load_chain", "load_images", "load_table", "refine", "run", "sample",
    "save_chain", "tune", "value_and_grad",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        return version("gebm")
    raise AttributeError(f"module 'gebm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
