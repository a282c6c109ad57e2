"""MCMC in latent space: one small file an algorithm, one interface, one loop."""

from gebm.samplers.base import Chain, Info, Kernel, NonFiniteError, State, constant, run, step_decay
from gebm.samplers.kinetic import KineticLangevin
from gebm.samplers.langevin import Langevin

__all__ = [
    "SAMPLERS", "Chain", "Info", "Kernel", "KineticLangevin", "Langevin", "NonFiniteError", "State", "constant", "run",
    "step_decay",
]  # fmt: skip

# flag value -> kernel class
SAMPLERS = {"langevin": Langevin, "lmc": KineticLangevin}
