"""Is the pair better than its base, and how is it best sampled?"""

from gebm.evaluation.judge import Figures, evaluate
from gebm.evaluation.tuning import tune

__all__ = ["Figures", "evaluate", "tune"]
