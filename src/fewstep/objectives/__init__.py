"""Objectives: the learning signal, and the only place that runs the student with a gradient."""

from fewstep.objectives.clean_data import AttributeReading, Classification, Reconstruction
from fewstep.objectives.distance import L1, Distance, Perceptual, PseudoHuber, SquaredL2
from fewstep.objectives.flow import VelocityRegression, straightness
from fewstep.objectives.games.adversarial import (
    AdversarialCritic,
    AdversarialGenerator,
    Clean,
    CleanCritic,
    Critic,
    GANLoss,
    Hinge,
    Noised,
    NonSaturating,
    Shifted,
    View,
)
from fewstep.objectives.games.balanced import Balanced
from fewstep.objectives.loss import Largest, Loss, Mean, Objective, Reduction, RootMeanSquare, loss_of
from fewstep.objectives.regression import EndpointRegression, Imitation
from fewstep.objectives.scores.anchored_jump import AnchoredJump
from fewstep.objectives.scores.density_ratio import (
    Divergence,
    ForwardKL,
    JensenShannon,
    RatioWeight,
    ReverseKL,
    SoftenedReverseKL,
    SquaredHellinger,
)
from fewstep.objectives.scores.fakes import Delta, FakeScore, FieldOfSamples, Learned
from fewstep.objectives.scores.guidance_augmentation import GuidanceAugmentation
from fewstep.objectives.scores.matching import (
    Compared,
    DiffInstructWeight,
    DistributionMatching,
    DMDWeight,
    ExponentialWeight,
    MatchingWeight,
    PlainWeight,
    SDSWeight,
)
from fewstep.objectives.scores.moment_matching import AuxiliaryMoment, Descent, MomentMatching
from fewstep.objectives.scores.score_identity import ScoreIdentity
from fewstep.objectives.scores.score_matching import (
    Denoising,
    DenoisingWeight,
    EDMWeight,
    NoiseWeight,
    ScoreMatching,
    ScoreWeight,
)
from fewstep.objectives.trajectories.average_velocity import AlignedFlow, AverageVelocity, FlowLine, MeanFlow
from fewstep.objectives.trajectories.consistency_distillation import ConsistencyDistillation, UnitWeight
from fewstep.objectives.trajectories.continuous_time import ContinuousConsistency, LogWeight, TrigFlow
from fewstep.objectives.trajectories.easy_consistency import EasyConsistency, GapCurriculum
from fewstep.objectives.trajectories.ladder import Ladder
from fewstep.objectives.trajectories.phased import PhasedCritic, PhasedGenerator
from fewstep.objectives.trajectories.piecewise import PiecewiseVelocity
from fewstep.objectives.trajectories.progressive_distillation import ProgressiveDistillation, SNRPlusOne, TruncatedSNR
from fewstep.objectives.trajectories.soft_consistency import InverseConsistency, SoftConsistency
from fewstep.objectives.trajectories.to_any_end import TrajectoryConsistency

__all__ = [
    "L1",
    "AdversarialCritic",
    "AdversarialGenerator",
    "AlignedFlow",
    "AnchoredJump",
    "AttributeReading",
    "AuxiliaryMoment",
    "AverageVelocity",
    "Balanced",
    "Classification",
    "Clean",
    "CleanCritic",
    "Compared",
    "ConsistencyDistillation",
    "ContinuousConsistency",
    "Critic",
    "DMDWeight",
    "Delta",
    "Denoising",
    "DenoisingWeight",
    "Descent",
    "DiffInstructWeight",
    "Distance",
    "DistributionMatching",
    "Divergence",
    "EDMWeight",
    "EasyConsistency",
    "EndpointRegression",
    "ExponentialWeight",
    "FakeScore",
    "FieldOfSamples",
    "FlowLine",
    "ForwardKL",
    "GANLoss",
    "GapCurriculum",
    "GuidanceAugmentation",
    "Hinge",
    "Imitation",
    "InverseConsistency",
    "JensenShannon",
    "Ladder",
    "Largest",
    "Learned",
    "LogWeight",
    "Loss",
    "MatchingWeight",
    "Mean",
    "MeanFlow",
    "MomentMatching",
    "NoiseWeight",
    "Noised",
    "NonSaturating",
    "Objective",
    "Perceptual",
    "PhasedCritic",
    "PhasedGenerator",
    "PiecewiseVelocity",
    "PlainWeight",
    "ProgressiveDistillation",
    "PseudoHuber",
    "RatioWeight",
    "Reconstruction",
    "Reduction",
    "ReverseKL",
    "RootMeanSquare",
    "SDSWeight",
    "SNRPlusOne",
    "ScoreIdentity",
    "ScoreMatching",
    "ScoreWeight",
    "Shifted",
    "SoftConsistency",
    "SoftenedReverseKL",
    "SquaredHellinger",
    "SquaredL2",
    "TrajectoryConsistency",
    "TrigFlow",
    "TruncatedSNR",
    "UnitWeight",
    "VelocityRegression",
    "View",
    "loss_of",
    "straightness",
]
