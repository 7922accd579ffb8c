"""Pictures measured as papers measure them: drawn into folders, a picture a prompt and seed, and
read from folders again.
"""

from fewstep.runs.protocols.clip_figures import ClipChoice
from fewstep.runs.protocols.earlier_results import measure_pictures
from fewstep.runs.protocols.measured_sets import PictureProtocol

__all__ = ["ClipChoice", "PictureProtocol", "measure_pictures"]
