"""Criteria of the alternating training: one small module each, one interface."""

from gebm.objectives.adversarial import Hinge, Logistic, Wasserstein
from gebm.objectives.base import Objective, log_mean_exp
from gebm.objectives.contrastive import ContrastiveDivergence
from gebm.objectives.donsker import DonskerVaradhan
from gebm.objectives.kale import KALE, Fenchel
from gebm.objectives.likelihood import MaximumLikelihood

__all__ = [
    "KALE", "OBJECTIVES", "ContrastiveDivergence", "DonskerVaradhan", "Fenchel", "Hinge", "Logistic",
    "MaximumLikelihood", "Objective", "Wasserstein", "log_mean_exp",
]  # fmt: skip

# flag value -> class
OBJECTIVES: dict[str, type[Objective]] = {
    "kale": KALE,
    "fenchel": Fenchel,
    "donsker": DonskerVaradhan,
    "ml": MaximumLikelihood,
    "cd": ContrastiveDivergence,
    "wasserstein": Wasserstein,
    "logistic": Logistic,
    "hinge": Hinge,
}
