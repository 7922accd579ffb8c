"""What one does with a run."""

from fewstep.runs.blocks import Workers
from fewstep.runs.checkpoints import list_checkpoints, prune_checkpoints
from fewstep.runs.compare import Comparison, compare
from fewstep.runs.covariate import measure_shift
from fewstep.runs.distill import distill, pretrain
from fewstep.runs.doctor import examine, has_problem
from fewstep.runs.evaluate import evaluate
from fewstep.runs.folder import RunFolder
from fewstep.runs.guidance import load_guided
from fewstep.runs.inspect import inspect
from fewstep.runs.measure import measure_many, write_reference
from fewstep.runs.mismatch import mismatch_over_training
from fewstep.runs.plan import plan_recipe
from fewstep.runs.sampler import Sampler, StudentSampler, TeacherSampler, load, load_teacher

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
    "examine",
    "has_problem",
    "inspect",
    "list_checkpoints",
    "load",
    "load_guided",
    "load_teacher",
    "measure_many",
    "measure_shift",
    "mismatch_over_training",
    "plan_recipe",
    "pretrain",
    "prune_checkpoints",
    "write_reference",
]
