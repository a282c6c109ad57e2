"""MCMC in latent space: one small file an algorithm, one interface, one loop."""

from gebm.samplers.adaptation import Adapted, adapt
from gebm.samplers.base import Info, Kernel, State, UnfinishedError
from gebm.samplers.chains import Chain, NonFiniteError, run
from gebm.samplers.descent import GradientDescent
from gebm.samplers.hmc import HMC
from gebm.samplers.kinetic import KineticLangevin
from gebm.samplers.langevin import Langevin
from gebm.samplers.mala import MALA
from gebm.samplers.random_walk import SIR, IndependentMetropolis, RandomWalk
from gebm.samplers.schedules import ramp, step_decay
from gebm.samplers.smc import SMC
from gebm.samplers.sphere import SphereLangevin
from gebm.samplers.storage import DrawFiles, load_chain, save_chain
from gebm.samplers.transport import OptimalTransport
from gebm.samplers.truncated import TruncatedLangevin

__all__ = [
    "HMC", "MALA", "SAMPLERS", "SIR", "SMC", "Adapted", "Chain", "DrawFiles", "GradientDescent",
    "IndependentMetropolis", "Info", "Kernel", "KineticLangevin", "Langevin", "NonFiniteError", "OptimalTransport",
    "RandomWalk", "SphereLangevin", "State", "TruncatedLangevin", "UnfinishedError", "adapt", "load_chain",
    "ramp", "run", "save_chain", "step_decay",
]  # fmt: skip

# flag value -> kernel class
SAMPLERS: dict[str, type[Kernel]] = {
    "langevin": Langevin,
    "lmc": KineticLangevin,
    "mala": MALA,
    "hmc": HMC,
    "mh": RandomWalk,
    "imh": IndependentMetropolis,
    "sir": SIR,
    "smc": SMC,
    "zero_temperature_langevin": GradientDescent,
    "dot": OptimalTransport,
    "spherelangevin": SphereLangevin,
    "trunclangevin": TruncatedLangevin,
}
