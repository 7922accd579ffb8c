"""How good samples are, and how far a student is from its teacher."""

from fewstep.metrics.diversity import class_diversity, relative_diversity
from fewstep.metrics.frechet import FeatureStatistics, frechet_distance
from fewstep.metrics.manifold import ManifoldScores, expected_coverage, manifold_scores
from fewstep.metrics.mismatch import MismatchDegree, assessed_mismatch, comparable_means, training_mismatch
from fewstep.metrics.spread import outside, spread

__all__ = [
    "FeatureStatistics",
    "ManifoldScores",
    "MismatchDegree",
    "assessed_mismatch",
    "class_diversity",
    "comparable_means",
    "expected_coverage",
    "frechet_distance",
    "manifold_scores",
    "outside",
    "relative_diversity",
    "spread",
    "training_mismatch",
]
