"""Metrics of samples, on chosen features: each a figure with its interval."""

from gebm.metrics.features import (
    FEATURES,
    Extractor,
    Reference,
    choose_features,
    extract,
    make_reference,
    metric_name,
)
from gebm.metrics.frechet import Moments, frechet_distance
from gebm.metrics.suite import Comparison, Estimate, Frechet, Metric, sample_metrics

__all__ = ["FEATURES", "Comparison", "Estimate", "Extractor", "Frechet", "Metric", "Moments", "Reference"]
__all__ += ["choose_features", "extract", "frechet_distance", "make_reference", "metric_name", "sample_metrics"]
