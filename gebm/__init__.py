"""Generalized energy-based models: an energy on top of a generator."""

from importlib import import_module

# name -> module; imported on first use, so that the command line's help need not wait for torch
_HOMES = {
    "GEBM": "gebm.model",
    "KALE": "gebm.objectives",
    "Architecture": "gebm.model",
    "DensityRatio": "gebm.networks",
    "Flow": "gebm.networks",
    "GaussianPrior": "gebm.latent",
    "HMC": "gebm.samplers",
    "KineticLangevin": "gebm.samplers",
    "Langevin": "gebm.samplers",
    "LatentPosterior": "gebm.latent",
    "MALA": "gebm.samplers",
    "SMC": "gebm.samplers",
    "UniformPrior": "gebm.latent",
    "adapt": "gebm.samplers",
    "draw": "gebm.sampling",
    "load_chain": "gebm.samplers",
    "load_images": "gebm.data",
    "load_table": "gebm.data",
    "run": "gebm.samplers",
    "save_chain": "gebm.samplers",
    "value_and_grad": "gebm.latent",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gebm' has no attribute '{name}'")
