"""What one asks of runs: which there are, covariate shift, sensitivity of steps, mismatch over
training.
"""

from fewstep.studies.covariate import measure_shift
from fewstep.studies.listed_runs import ListedRun, list_runs
from fewstep.studies.mismatch_track import mismatch_over_training

__all__ = ["ListedRun", "list_runs", "measure_shift", "mismatch_over_training"]
