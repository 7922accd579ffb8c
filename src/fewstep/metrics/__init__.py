"""How good samples are, and how far a student is from its teacher."""

from fewstep.metrics.diversity import class_diversity, outside, relative_diversity, spread
from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.frechet import FeatureStatistics, frechet_distance
from fewstep.metrics.inception_score import ClassScores, InceptionScore, inception_score
from fewstep.metrics.kernel import KernelDistance, kernel_distance, squared_discrepancy
from fewstep.metrics.manifold import ManifoldScores, expected_coverage, manifold_scores
from fewstep.metrics.mismatch import (
    MismatchDegree,
    Norm,
    assessed_mismatch,
    comparable_means,
    comparable_norms,
    training_mismatch,
)
from fewstep.metrics.stored.moments import Moments
from fewstep.metrics.stored.reference import Reference, load_reference, save_reference

__all__ = [
    "ClassScores",
    "FeatureSpace",
    "FeatureStatistics",
    "InceptionScore",
    "KernelDistance",
    "ManifoldScores",
    "MismatchDegree",
    "Moments",
    "Norm",
    "Reference",
    "assessed_mismatch",
    "class_diversity",
    "comparable_means",
    "comparable_norms",
    "expected_coverage",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_reference",
    "manifold_scores",
    "outside",
    "relative_diversity",
    "save_reference",
    "spread",
    "squared_discrepancy",
    "training_mismatch",
]
