"""What one asks of runs: covariate shift, sensitivity of steps, mismatch over training."""

from fewstep.studies.covariate import measure_shift
from fewstep.studies.mismatch_track import mismatch_over_training

__all__ = ["measure_shift", "mismatch_over_training"]
