"""Metrics of samples, on chosen features: each a figure with its interval."""

from gebm.metrics.features import (
    FEATURES,
    Extractor,
    Reference,
    choose_features,
    distance_name,
    extract,
    make_reference,
    metric_name,
    reference_moments,
)
from gebm.metrics.frechet import Moments, bootstrap_distance, bootstrap_gain, frechet_distance
from gebm.metrics.suite import Comparison, Estimate, Frechet, Metric, sample_metrics

__all__ = ["FEATURES", "Comparison", "Estimate", "Extractor", "Frechet", "Metric", "Moments", "Reference"]
__all__ += ["bootstrap_distance", "bootstrap_gain", "choose_features", "distance_name", "extract", "frechet_distance"]
__all__ += ["make_reference", "metric_name", "reference_moments", "sample_metrics"]
