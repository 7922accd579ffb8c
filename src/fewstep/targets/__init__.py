"""Targets: which denoiser plays the teacher at this step."""

from fewstep.targets.backtracked import Backtracked
from fewstep.targets.hook import Hook, decides
from fewstep.targets.path import DegradationPath
from fewstep.targets.path_probes import Probes
from fewstep.targets.record import ByDistance, EverySteps, RecordByDistance, RecordEvery, Recording, RecordRule
from fewstep.targets.switch import Every, Plateau, SwitchAtPlateau, SwitchEvery, Switching, SwitchRule
from fewstep.targets.target import Fixed, ReflectedTarget, Target

__all__ = [
    "Backtracked",
    "ByDistance",
    "DegradationPath",
    "Every",
    "EverySteps",
    "Fixed",
    "Hook",
    "Plateau",
    "Probes",
    "RecordByDistance",
    "RecordEvery",
    "RecordRule",
    "Recording",
    "ReflectedTarget",
    "SwitchAtPlateau",
    "SwitchEvery",
    "SwitchRule",
    "Switching",
    "Target",
    "decides",
]
