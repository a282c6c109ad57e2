"""Metrics: Fréchet distances on chosen features, each with its interval."""

from gebm.metrics.features import FEATURES, Extractor, choose_features, distance_name, extract, reference_moments
from gebm.metrics.frechet import Moments, bootstrap_distance, bootstrap_gain, frechet_distance

__all__ = ["FEATURES", "Extractor", "Moments", "bootstrap_distance", "bootstrap_gain", "choose_features"]
__all__ += ["distance_name", "extract", "frechet_distance", "reference_moments"]
