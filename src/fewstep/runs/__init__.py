"""What one does with a run."""

from fewstep.keeping.checkpoints import list_checkpoints, prune_checkpoints
from fewstep.keeping.run_folder import RunFolder
from fewstep.runs.blocks import Workers
from fewstep.runs.compare import Comparison, compare
from fewstep.runs.distill import distill, pretrain
from fewstep.runs.evaluate import evaluate
from fewstep.runs.export import export
from fewstep.runs.loading import load, load_guided, load_teacher
from fewstep.runs.measure import measure_many, write_reference
from fewstep.runs.sampler import Sampler, StudentSampler, TeacherSampler

__all__ = [
    "Comparison",
    "RunFolder",
    "Sampler",
    "StudentSampler",
    "TeacherSampler",
    "Workers",
    "compare",
    "distill",
    "evaluate",
    "export",
    "list_checkpoints",
    "load",
    "load_guided",
    "load_teacher",
    "measure_many",
    "pretrain",
    "prune_checkpoints",
    "write_reference",
]
