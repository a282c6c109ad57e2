"""The names that the flags admit are those that something is built for."""

import pytest

from gebm.config import Config
from gebm.data import DATASETS, TABLES
from gebm.data.tabular import PROTOCOLS, SCALINGS
from gebm.flags import by_name
from gebm.latent import PRIORS
from gebm.metrics import FEATURES
from gebm.networks import BASES, ENERGIES, FLOWS
from gebm.objectives import OBJECTIVES
from gebm.penalties import PENALTIES
from gebm.samplers import SAMPLERS

REGISTRIES = {
    "dataset": DATASETS | TABLES,
    "protocol": PROTOCOLS,
    "scaling": SCALINGS,
    "g_model": BASES,
    "d_model": ENERGIES,
    "generator": {"convolutional", *FLOWS},
    "discriminator": {"convolutional", "mlp", *FLOWS},
    "latent_noise": PRIORS,
    "criterion": OBJECTIVES,
    "penalty_type": PENALTIES,
    "latent_sampler": SAMPLERS,
    "fid_features": FEATURES | {"auto": None},
}


@pytest.mark.parametrize("flag", REGISTRIES)
def test_choices_are_the_registered_names(flag):
    field = by_name(Config)[flag]
    assert set(field.metadata["choices"]) == set(REGISTRIES[flag])
    assert field.default in REGISTRIES[flag]
