"""The loop that is the same for every method."""

from fewstep.training.actions import Action, Copy, CopyNode, MeasureSpacing
from fewstep.training.listeners import Bar, Listener, Silent, TensorBoard, WandB
from fewstep.training.monitors import Monitor, Reading
from fewstep.training.optimizer import SGD, Adam, Adam8bit, Optimizer
from fewstep.training.phase import Phase, Stage, Term
from fewstep.training.probes import Probe
from fewstep.training.reporting.divergence import Diverged
from fewstep.training.settings import Settings
from fewstep.training.trainer import Trainer

__all__ = [
    "SGD",
    "Action",
    "Adam",
    "Adam8bit",
    "Bar",
    "Copy",
    "CopyNode",
    "Diverged",
    "Listener",
    "MeasureSpacing",
    "Monitor",
    "Optimizer",
    "Phase",
    "Probe",
    "Reading",
    "Settings",
    "Silent",
    "Stage",
    "TensorBoard",
    "Term",
    "Trainer",
    "WandB",
]
