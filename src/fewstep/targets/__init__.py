"""Targets: which denoiser plays the teacher at this step."""

from fewstep.targets.backtracked import Backtracked
from fewstep.targets.guided_estimates import (
    ConstantGuidance,
    Guidance,
    GuidanceAlongPath,
    IntervalGuidance,
    NoGuidance,
    PatchwiseGuidance,
    RescaledGuidance,
)
from fewstep.targets.hook import Hook, StopRule, decides
from fewstep.targets.path import DegradationPath
from fewstep.targets.path_probes import Probes
from fewstep.targets.record import ByDistance, EverySteps, RecordByDistance, RecordEvery, Recording, RecordRule
from fewstep.targets.switch import Every, Plateau, SwitchAtPlateau, SwitchEvery, Switching, SwitchRule
from fewstep.targets.target import Fixed, GuidedTarget, ReflectedTarget, Target

__all__ = [
    "Backtracked",
    "ByDistance",
    "ConstantGuidance",
    "DegradationPath",
    "Every",
    "EverySteps",
    "Fixed",
    "Guidance",
    "GuidanceAlongPath",
    "GuidedTarget",
    "Hook",
    "IntervalGuidance",
    "NoGuidance",
    "PatchwiseGuidance",
    "Plateau",
    "Probes",
    "RecordByDistance",
    "RecordEvery",
    "RecordRule",
    "Recording",
    "ReflectedTarget",
    "RescaledGuidance",
    "StopRule",
    "SwitchAtPlateau",
    "SwitchEvery",
    "SwitchRule",
    "Switching",
    "Target",
    "decides",
]
