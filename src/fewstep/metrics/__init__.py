"""How good samples are, and how far a student is from its teacher."""

from fewstep.metrics.frechet import FeatureStatistics, frechet_distance
from fewstep.metrics.mismatch import MismatchDegree, assessed_mismatch, comparable_means, training_mismatch
from fewstep.metrics.spread import outside, spread

__all__ = [
    "FeatureStatistics",
    "MismatchDegree",
    "assessed_mismatch",
    "comparable_means",
    "frechet_distance",
    "outside",
    "spread",
    "training_mismatch",
]
