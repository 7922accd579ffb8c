"""Objectives: the learning signal, and the only place that runs the student with a gradient."""

from fewstep.objectives.classification import Classification
from fewstep.objectives.loss import Loss, Objective
from fewstep.objectives.matching import DiffInstructWeight, DistributionMatching, DMDWeight, MatchingWeight, PlainWeight
from fewstep.objectives.score_matching import Denoising, DenoisingWeight, EDMWeight, ScoreMatching, ScoreWeight

__all__ = [
    "Classification",
    "DMDWeight",
    "Denoising",
    "DenoisingWeight",
    "DiffInstructWeight",
    "DistributionMatching",
    "EDMWeight",
    "Loss",
    "MatchingWeight",
    "Objective",
    "PlainWeight",
    "ScoreMatching",
    "ScoreWeight",
]
