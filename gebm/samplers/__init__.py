"""MCMC in latent space: one small file an algorithm, one interface, one loop."""

from gebm.samplers.base import Chain, Info, Kernel, NonFiniteError, State, constant, run, step_decay
from gebm.samplers.descent import GradientDescent
from gebm.samplers.hmc import HMC
from gebm.samplers.kinetic import KineticLangevin
from gebm.samplers.langevin import Langevin
from gebm.samplers.mala import MALA
from gebm.samplers.random_walk import IndependentMetropolis, RandomWalk
from gebm.samplers.sphere import SphereLangevin
from gebm.samplers.truncated import TruncatedLangevin

__all__ = [
    "HMC", "MALA", "SAMPLERS", "Chain", "GradientDescent", "IndependentMetropolis", "Info", "Kernel", "KineticLangevin",
    "Langevin", "NonFiniteError", "RandomWalk", "SphereLangevin", "State", "TruncatedLangevin", "constant", "run",
    "step_decay",
]  # fmt: skip

# flag value -> kernel class
SAMPLERS = {
    "langevin": Langevin,
    "lmc": KineticLangevin,
    "mala": MALA,
    "hmc": HMC,
    "mh": RandomWalk,
    "imh": IndependentMetropolis,
    "zero_temperature_langevin": GradientDescent,
    "spherelangevin": SphereLangevin,
    "trunclangevin": TruncatedLangevin,
}
