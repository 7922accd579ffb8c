"""The networks of NVIDIA's EDM release, read by a machine of our own that runs nothing of a
pickle.
"""

from fewstep.zoo.nvidia.release import Summary, describe, load

__all__ = ["Summary", "describe", "load"]
