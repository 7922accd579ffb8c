"""The loop that is the same for every method."""

from fewstep.training.actions import Action, Copy, CopyNode, MeasureSpacing
from fewstep.training.monitors import Monitor, Reading
from fewstep.training.optimizer import SGD, Adam, Optimizer
from fewstep.training.phase import Phase, Stage, Term
from fewstep.training.progress import Bar, Silent, Watcher
from fewstep.training.settings import Probe, Settings
from fewstep.training.trainer import Diverged, Trainer

__all__ = [
    "SGD",
    "Action",
    "Adam",
    "Bar",
    "Copy",
    "CopyNode",
    "Diverged",
    "MeasureSpacing",
    "Monitor",
    "Optimizer",
    "Phase",
    "Probe",
    "Reading",
    "Settings",
    "Silent",
    "Stage",
    "Term",
    "Trainer",
    "Watcher",
]
